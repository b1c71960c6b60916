// Visits the built page in a headless browser the way a person does, for the demo and the benchmark.
import { readdir } from 'node:fs/promises';
import { launch } from './browser.mjs';

/** Longest wait for a clip; an old machine's CPU needs minutes, not half an hour. */
const PATIENCE = 30 * 60_000;
/** Longest wait for the page to say what it can compute on. */
const SETTLE = 30_000;

/** Chromium draws no text without a font: it aborts. */
const CRASHED =
	'Chromium crashed while it opened the page. It does so where no font is installed: install one ' +
	'(apt-get install fonts-dejavu-core), or set CHROMIUM to the path of another browser.';

/** A failure whose message says everything a person needs. */
export class Failure extends Error {}

function after(milliseconds, answer) {
	return new Promise((resolve) => {
		setTimeout(() => resolve(answer), milliseconds).unref();
	});
}

/** Whether Linux offers a GPU. Asking Chromium for Vulkan without one can freeze it. */
async function hasGpu() {
	if (process.platform !== 'linux') {
		return true;
	}
	const entries = [...(await readdir('/dev').catch(() => [])), ...(await readdir('/dev/dri').catch(() => []))];
	return entries.some((name) => /^(renderD\d+|nvidia\d+)$/.test(name));
}

async function openPage(browser, url) {
	const page = await browser.newPage({ acceptDownloads: true });
	const troubles = [];
	page.on('pageerror', (error) => troubles.push(error.message));
	let crashed = false;
	page.on('crash', () => {
		crashed = true;
	});
	await page.goto(url).catch((error) => {
		throw crashed || !browser.isConnected() ? new Failure(CRASHED) : error;
	});
	const availability = await Promise.race([
		page.evaluate(() =>
			document
				.querySelector('kinora-video')
				.availability()
				.then(
					({ probe, device }) => ({ probe, device }),
					({ code, message }) => ({ code, message }),
				),
		),
		after(SETTLE, { code: 'timeout', message: 'The page did not become ready.' }),
	]);
	if (availability.code) {
		throw new Failure(`${availability.message} (${availability.code})`);
	}
	return { page, availability, troubles };
}

/**
 * The browser and page to use: a real GPU when there is one, else the device that was asked for, else the CPU.
 * @param {string} url address of the page
 * @param {'webgpu' | 'cpu' | undefined} device
 * @param {string | undefined} size WIDTHxHEIGHT, one of the model's
 */
export async function visit(url, device, size) {
	const address = (used) => {
		const found = new URL(url);
		for (const [name, value] of Object.entries({ device: used, size })) {
			if (value !== undefined) {
				found.searchParams.set(name, value);
			}
		}
		return found.href;
	};
	if (device !== 'cpu' && (await hasGpu())) {
		const browser = await launch({ gpu: 'hardware' });
		try {
			const opened = await openPage(browser, address(device));
			const { probe } = opened.availability;
			if (probe?.adapter && !probe.software) {
				return { browser, ...opened };
			}
		} catch (error) {
			console.error(`No GPU to be had: ${error.message}`);
		}
		await browser.close();
	}
	const browser = await launch({ gpu: 'software' });
	try {
		return { browser, ...(await openPage(browser, address(device ?? 'cpu'))) };
	} catch (error) {
		await browser.close();
		throw error;
	}
}

/**
 * Types the prompt, clicks Generate and waits.
 * @param {(percent: number, text: string) => void} onStage called when the text beside the progress bar changes
 * @returns the detail of the element's `result` event, with the number of frames in place of their pixels
 */
export async function generate({ page, troubles }, prompt, seed, onStage = () => {}) {
	await page.exposeFunction('kinoraStage', onStage).catch(() => undefined);
	const finished = page.evaluate(
		() =>
			new Promise((resolve) => {
				const video = document.querySelector('kinora-video');
				let text;
				const follow = ({ detail }) => {
					if (detail.text !== text) {
						text = detail.text;
						window.kinoraStage(Math.floor(detail.value * 100), text);
					}
				};
				const end = (found) => {
					video.removeEventListener('progress', follow);
					resolve(found);
				};
				video.addEventListener('progress', follow);
				video.addEventListener(
					'result',
					({ detail: { frames: _, blob, frameCount, ...rest } }) => end({ ...rest, frames: frameCount }),
					{ once: true },
				);
				video.addEventListener('error', ({ detail: { code, message } }) => end({ code, message }), { once: true });
			}),
	);
	await page.getByLabel('Your scene').fill('');
	await page.getByLabel('Your scene').click();
	await page.keyboard.type(prompt);
	if (seed !== undefined) {
		await page.getByLabel('Seed', { exact: true }).fill(String(seed));
	}
	await page.getByRole('button', { name: 'Generate' }).click();
	const timeout = { code: 'timeout', message: `There is no video after ${PATIENCE / 60_000} minutes.` };
	const result = await Promise.race([finished, after(PATIENCE, timeout)]);
	if (result.code) {
		const more = troubles.length > 0 ? ` The page reported: ${troubles.join('; ')}` : '';
		throw new Failure(`${result.message} (${result.code})${more}`);
	}
	return result;
}

/** Runs a program: one sentence on failure, and an exit status that says whether it worked. */
export function run(name, main) {
	main().then(
		() => process.exit(0),
		(error) => {
			console.error(
				`${name}: ${error instanceof Failure ? error.message : String(error?.message ?? error).split('\n')[0]}`,
			);
			process.exit(1);
		},
	);
}
