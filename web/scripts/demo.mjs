// Makes one clip the way a visitor does: opens the page in a headless browser, types the prompt, clicks Generate and
// saves the video. `node scripts/demo.mjs ["PROMPT"] [--seed N] [--out clip.mp4] [--device webgpu|cpu]`
import { readFile, readdir } from 'node:fs/promises';
import { extname, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { launch } from './browser.mjs';
import { serve } from './serve.mjs';

/** Longest wait for a clip; an old machine's CPU needs minutes, not half an hour. */
const PATIENCE = 30 * 60_000;
const SETTLE = 30_000;

class Failure extends Error {}

function readArguments() {
	let parsed;
	try {
		parsed = parseArgs({
			allowPositionals: true,
			options: { seed: { type: 'string' }, out: { type: 'string' }, device: { type: 'string' } },
		});
	} catch (error) {
		throw new Failure(`${error.message}. Usage: demo ["PROMPT"] [--seed N] [--out clip.mp4] [--device webgpu|cpu]`);
	}
	const { values, positionals } = parsed;
	if (values.device !== undefined && !['webgpu', 'cpu'].includes(values.device)) {
		throw new Failure(`--device is webgpu or cpu, not ${values.device}.`);
	}
	if (values.seed !== undefined && !/^\d+$/.test(values.seed)) {
		throw new Failure(`--seed is a whole number from 0 up, not ${values.seed}.`);
	}
	return { ...values, prompt: positionals.join(' ').trim() };
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
	await page.goto(url);
	const availability = await Promise.race([
		page.evaluate(async () => {
			const { probe, device, manifest } = await document.querySelector('kinora-video').availability();
			return { probe, device, bytes: manifest.totalBytes };
		}),
		new Promise((_, reject) => {
			setTimeout(() => reject(new Failure('The page did not become ready.')), SETTLE).unref();
		}),
	]);
	return { page, availability, troubles };
}

/** The browser and page to use: a real GPU when there is one, else what the visitor asked for, else the CPU. */
async function open(url, device) {
	if (device !== 'cpu' && (await hasGpu())) {
		const browser = await launch({ gpu: 'hardware' });
		try {
			const opened = await openPage(browser, `${url}${device ? `?device=${device}` : ''}`);
			if (opened.availability.probe?.adapter && !opened.availability.probe.software) {
				return { browser, ...opened };
			}
		} catch (error) {
			console.error(`No GPU to be had: ${error.message}`);
		}
		await browser.close();
	}
	const browser = await launch({ gpu: 'software' });
	return { browser, ...(await openPage(browser, `${url}?device=${device ?? 'cpu'}`)) };
}

const seconds = (milliseconds) => `${(milliseconds / 1000).toFixed(2)} s`;

function report(result, path) {
	const { timings, engine } = result;
	const rows = [
		['file', path],
		['clip', `${result.width} x ${result.height}, ${result.frames} frames at ${result.fps} per second, ${result.codec}`],
		['seed', result.seed],
		['model', result.model],
		['device', `${engine.device}: ${engine.adapter}${engine.software ? ' (emulated on the CPU)' : ''}`],
		['downloaded', `${(result.bytesDownloaded / 1e6).toFixed(1)} MB`],
		['engine start', seconds(timings.engine)],
		['download', seconds(timings.download)],
		['warm-up', seconds(timings.warmup)],
		['text', seconds(timings.text)],
		...timings.steps.map((step, index) => [`step ${index + 1}`, seconds(step)]),
		['previews', seconds(timings.preview)],
		['decoding', seconds(timings.decode)],
		['encoding', seconds(timings.encode)],
		['total', seconds(timings.total)],
	];
	for (const [name, value] of rows) {
		console.log(`${`${name}:`.padEnd(14)}${value}`);
	}
	if (result.unknownWords.length > 0) {
		console.log(`The model does not know: ${result.unknownWords.join(', ')}`);
	}
}

async function generate(page, prompt, seed) {
	await page.exposeFunction('kinoraStage', (text) => console.error(text));
	const finished = page.evaluate(
		() =>
			new Promise((resolve) => {
				const video = document.querySelector('kinora-video');
				let stage;
				video.addEventListener('progress', ({ detail }) => {
					if (detail.text !== stage) {
						stage = detail.text;
						window.kinoraStage(`${String(Math.floor(detail.value * 100)).padStart(3)} %  ${stage}`);
					}
				});
				video.addEventListener('result', ({ detail: { frames, blob, ...rest } }) => resolve({ ...rest, frames: frames.length }));
				video.addEventListener('error', ({ detail: { code, message } }) => resolve({ code, message }));
			}),
	);
	await page.getByLabel('Your scene').click();
	await page.keyboard.type(prompt);
	if (seed !== undefined) {
		await page.getByLabel('Seed', { exact: true }).fill(seed);
	}
	await page.getByRole('button', { name: 'Generate' }).click();
	const result = await Promise.race([
		finished,
		new Promise((resolve) => {
			setTimeout(() => resolve({ code: 'timeout', message: `There is no video after ${PATIENCE / 60_000} minutes.` }), PATIENCE).unref();
		}),
	]);
	if (result.code) {
		throw new Failure(`${result.message} (${result.code})`);
	}
	return result;
}

async function save(page, result, out) {
	const arriving = page.waitForEvent('download');
	await page.getByRole('link', { name: 'Save video' }).click();
	const wanted = resolve(process.cwd(), out);
	// Without an H.264 encoder the clip may be WebM; a wrong name would not play.
	const path = extname(wanted) === result.extension ? wanted : `${wanted.slice(0, wanted.length - extname(wanted).length)}${result.extension}`;
	await (await arriving).saveAs(path);
	return path;
}

async function main() {
	const { prompt: given, seed, device, out = 'clip.mp4' } = readArguments();
	const manifest = JSON.parse(await readFile(fileURLToPath(new URL('../dist/model/manifest.json', import.meta.url)), 'utf8').catch(() => '{}'));
	const prompt = given || manifest.examples?.[0];
	if (!prompt) {
		throw new Failure('web/dist holds no built page with a model; ./build.sh demo builds it.');
	}
	const server = await serve();
	let browser;
	try {
		const opened = await open(server.url, device);
		browser = opened.browser;
		const { probe } = opened.availability;
		console.error(`Prompt: ${prompt}`);
		console.error(`Adapter: ${probe?.adapter ?? 'none used'}${probe?.software ? ' (emulated)' : ''}; computing on ${opened.availability.device}`);
		const result = await generate(opened.page, prompt, seed).catch((error) => {
			throw opened.troubles.length > 0 ? new Failure(`${error.message} The page reported: ${opened.troubles.join('; ')}`) : error;
		});
		report(result, await save(opened.page, result, out));
	} finally {
		await browser?.close();
		await server.close();
	}
}

main().then(
	() => process.exit(0),
	(error) => {
		// One sentence for a person; a stack only where the program itself is at fault.
		console.error(error instanceof Failure ? `demo: ${error.message}` : `demo: ${String(error.message ?? error).split('\n')[0]}`);
		process.exit(1);
	},
);
