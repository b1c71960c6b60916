// What every browser test starts from: one browser and one server a file, a fresh context a test.
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { fileURLToPath } from 'node:url';
import { launch } from '../../web/scripts/browser.mjs';
import { serve } from '../../web/scripts/serve.mjs';
import { packTiny } from './tiny.mjs';

/** The built page; another folder can be named to test a deployment. */
const SITE = process.env.KINORA_SITE ?? fileURLToPath(new URL('../../web/dist', import.meta.url));

export const TINY = 'model=tiny';

/**
 * @param {{gpu?: 'hardware' | 'software' | 'any', arguments?: string[], base?: string, shardBytes?: number}} options passed
 * to the browser, the server and the tiny model; $KINORA_GPU names another `gpu` where the test names none
 */
export async function start({
	gpu = process.env.KINORA_GPU ?? 'software',
	arguments: more = [],
	base = '/',
	shardBytes,
} = {}) {
	const tiny = await packTiny({ shardBytes });
	const server = await serve({ directory: SITE, base, mounts: { 'tiny/': tiny.folder } });
	const browser = await launch({ gpu, arguments: more });
	const contexts = new Set();

	/**
	 * A page in a context of its own. `inject` is a script that runs before the worker's, where playwright's own init
	 * scripts do not reach; `prepare` gets the context before the first request, for routes and init scripts.
	 */
	async function open(query = '', { inject, prepare, wait = true, ...contextOptions } = {}) {
		const context = await browser.newContext({ acceptDownloads: true, ...contextOptions });
		contexts.add(context);
		const requests = [];
		context.on('request', (request) => requests.push(request.url()));
		if (inject) {
			await injectIntoWorker(context, inject);
		}
		await prepare?.(context);
		const page = await context.newPage();
		page.errors = [];
		page.on('pageerror', (error) => page.errors.push(error.message));
		page.requests = requests;
		await page.goto(`${server.url}${query && `?${query}`}`);
		if (wait) {
			await settled(page);
		}
		return page;
	}

	return {
		browser,
		url: server.url,
		tiny,
		open,
		/** For `prepare`: serves the tiny model's manifest with a change. */
		changed(change) {
			const manifest = structuredClone(tiny.manifest);
			change(manifest);
			return (context) => context.route('**/tiny/manifest.json', (route) => route.fulfill({ json: manifest }));
		},
		/** Ends the pages of one test, so that the next has the processor to itself. */
		async clear() {
			await Promise.all([...contexts].map((context) => context.close()));
			contexts.clear();
		},
		async stop() {
			await browser.close();
			await server.close();
			await tiny.remove();
		},
	};
}

export async function injectIntoWorker(context, script) {
	await context.route('**/worker.js*', async (route) => {
		const response = await route.fetch();
		await route.fulfill({ response, body: `${script};\n${await response.text()}` });
	});
}

/** Until the page knows its model and its device, or has said why not. */
export async function settled(page) {
	await page.waitForFunction(
		() => document.getElementById('fact-model').textContent !== '…' || !document.getElementById('failure').hidden,
	);
}

/**
 * The next result or error of the page's element; call it before what causes them. `beforePreview` is the last progress
 * that was reported before the first preview.
 */
export function outcome(page) {
	return page
		.evaluate(
			() =>
				new Promise((resolve) => {
					const video = document.querySelector('kinora-video');
					const progress = [];
					let previews = 0;
					let beforePreview;
					video.addEventListener('frame', ({ detail }) => {
						if (detail.index === undefined) {
							previews++;
							beforePreview ??= progress.at(-1);
						}
					});
					video.addEventListener('progress', ({ detail }) => progress.push(detail));
					const base64 = async (blob) => {
						const reader = new FileReader();
						const read = new Promise((done) => reader.addEventListener('load', done, { once: true }));
						reader.readAsDataURL(blob);
						await read;
						return reader.result.split(',')[1] ?? '';
					};
					const onResult = async ({ detail: { frames, blob, ...rest } }) =>
						resolve({
							...rest,
							progress,
							previews,
							beforePreview,
							pixels: await base64(new Blob(frames)),
							count: frames.length,
							file: await base64(blob),
						});
					video.addEventListener('result', onResult, { once: true });
					video.addEventListener(
						'error',
						({ detail: { code, message, retryable, cause } }) =>
							resolve({ progress, error: { code, message, retryable, cause: cause && String(cause) } }),
						{ once: true },
					);
				}),
		)
		.then((found) => {
			if (found.error) {
				return found;
			}
			const pixels = Buffer.from(found.pixels, 'base64');
			return {
				...found,
				pixels,
				hash: createHash('sha256').update(pixels).digest('hex'),
				file: Buffer.from(found.file, 'base64'),
			};
		});
}

/** Uses the form as a visitor would and gives what comes of it. */
export async function generate(page, { prompt, seed }) {
	const found = outcome(page);
	await page.fill('#prompt', prompt);
	if (seed !== undefined) {
		await page.fill('#seed', String(seed));
	}
	await page.click('#generate');
	return found;
}

/** As `generate`, for runs that must succeed. */
export async function make(page, request) {
	const found = await generate(page, request);
	assert.equal(found.error, undefined, `no video: ${found.error?.code}: ${found.error?.message}`);
	return found;
}

/**
 * Clicks Cancel as soon as the next run reports `stage`. Gives the state that the run ends in and the milliseconds that
 * took, counted from the click; call it before what causes the run.
 */
export function cancelAt(page, stage) {
	return page.evaluate(
		(stage) =>
			new Promise((resolve) => {
				const video = document.querySelector('kinora-video');
				let clicked;
				const follow = ({ detail }) => {
					if (detail.stage === stage && clicked === undefined) {
						clicked = performance.now();
						document.getElementById('cancel').click();
					}
				};
				const end = ({ detail: state }) => {
					if (['idle', 'done', 'error'].includes(state)) {
						video.removeEventListener('progress', follow);
						video.removeEventListener('statechange', end);
						resolve({ state, took: performance.now() - clicked });
					}
				};
				video.addEventListener('progress', follow);
				video.addEventListener('statechange', end);
			}),
		stage,
	);
}

/** The next memory plan that the page's element tells of; call it before what causes it. */
export const planned = (page) =>
	page.evaluate(
		() =>
			new Promise((resolve) =>
				document
					.querySelector('kinora-video')
					.addEventListener('notice', ({ detail }) => detail.plan && resolve(detail.plan)),
			),
	);

/** The panel a visitor sees after a failure: a sentence with a remedy, and a button for it. */
export async function assertFailure(page, code, button) {
	const panel = page.locator('#failure');
	await panel.waitFor({ state: 'visible' });
	assert.equal(await panel.getAttribute('data-code'), code);
	assert.equal(await panel.getAttribute('role'), 'alert');
	assert.match(await page.locator('#failure-text').innerText(), /^\p{Lu}.{20,}\.$/su);
	assert.equal(await page.locator('#failure-action').innerText(), button);
}

/** Peak signal-to-noise ratio of two equally long pixel buffers, in decibels. */
export function psnr(a, b) {
	assert.equal(a.length, b.length);
	let sum = 0;
	for (let index = 0; index < a.length; index++) {
		sum += (a[index] - b[index]) ** 2;
	}
	return sum === 0 ? Number.POSITIVE_INFINITY : 10 * Math.log10((255 * 255 * a.length) / sum);
}
