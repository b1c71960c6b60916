// Visitors who are faster than the page, and pages that handle the element while it works.
import assert from 'node:assert/strict';
import { after, afterEach, before, test } from 'node:test';
import { TINY, assertFailure, cancelAt, generate, make, outcome, settled, start } from './support.mjs';

const REQUEST = { prompt: 'a red ball bounces on green grass', seed: 7 };
const CPU = `${TINY}&device=cpu`;
const ENGINE = '**/kinora_bg.wasm*';
const NEVER_ANSWERS = 'GPU.prototype.requestAdapter = () => new Promise(() => {})';

let site;

before(async () => {
	site = await start();
});
after(() => site.stop());
afterEach(() => site.clear());

/** A page whose manifest arrives when `release` is called. */
async function withoutManifest() {
	let release;
	const gate = new Promise((resolve) => (release = resolve));
	const page = await site.open(CPU, {
		wait: false,
		prepare: (context) =>
			context.route('**/tiny/manifest.json', async (route) => {
				await gate;
				await route.continue();
			}),
	});
	await page.fill('#prompt', REQUEST.prompt);
	await page.fill('#seed', String(REQUEST.seed));
	return { page, release };
}

const idle = (page) =>
	page.waitForFunction(() => document.querySelector('kinora-video').state === 'idle', undefined, { timeout: 2500 });

test('cancelling before the model is known ends it, and nothing is downloaded afterwards', async () => {
	const { page, release } = await withoutManifest();
	await page.click('#generate');
	await page.click('#cancel');
	await page.locator('#running').waitFor({ state: 'hidden', timeout: 2000 });
	assert.equal(await page.locator('#status').innerText(), 'Cancelled.');
	release();
	await settled(page);
	await page.waitForTimeout(300);
	assert.equal(await page.evaluate(() => document.querySelector('kinora-video').state), 'idle');
	assert.ok(!page.requests.some((url) => /\.(bin|wasm)/.test(url)));
	await make(page, REQUEST);
});

/** A run that was cancelled leaves nothing behind, and on the CPU the next one works. */
async function assertCancelled(page) {
	assert.equal(await page.locator('#running').isVisible(), false);
	assert.equal(await page.locator('#failure').isVisible(), false);
	assert.equal(await page.locator('#player').isVisible(), false);
	assert.equal(await page.locator('#status').innerText(), 'Cancelled.');
	await page.selectOption('#device', 'cpu');
	assert.equal((await make(page, REQUEST)).engine.device, 'cpu');
}

test('cancelling while the engine is downloaded ends it, and the next run starts it', async () => {
	const page = await site.open(CPU, { prepare: (context) => context.route(ENGINE, () => undefined) });
	await page.fill('#prompt', REQUEST.prompt);
	const asked = page.waitForRequest(ENGINE);
	await page.click('#generate');
	await asked;
	await page.click('#cancel');
	await idle(page);
	await page.context().unroute(ENGINE);
	await assertCancelled(page);
});

test('cancelling while the graphics driver keeps the engine waiting ends it', async () => {
	// The request tells the test that the engine has got that far; nobody answers it.
	const inject = `GPUAdapter.prototype.requestDevice = () => { fetch('device-wanted'); return new Promise(() => {}); }`;
	const page = await site.open(`${TINY}&device=webgpu`, { inject });
	await page.fill('#prompt', REQUEST.prompt);
	const asked = page.waitForRequest('**/device-wanted');
	await page.click('#generate');
	await asked;
	await page.click('#cancel');
	await idle(page);
	await assertCancelled(page);
});

for (const device of ['cpu', 'webgpu']) {
	test(`cancelling while the engine warms up on ${device} ends it, and the next run works`, async () => {
		const page = await site.open(`${TINY}&device=${device}`);
		const ended = cancelAt(page, 'warmup');
		await page.fill('#prompt', REQUEST.prompt);
		await page.click('#generate');
		const { state, took } = await ended;
		assert.equal(state, 'idle');
		assert.ok(took < 2500, `${took} ms`);
		await assertCancelled(page);
	});
}

test('asking twice before the model is known makes one video and no failure', async () => {
	const { page, release } = await withoutManifest();
	const found = outcome(page);
	await page.evaluate(() => {
		document.getElementById('form').requestSubmit();
		document.getElementById('form').requestSubmit();
	});
	release();
	assert.equal((await found).error, undefined);
	await page.locator('#player').waitFor();
	assert.equal(await page.locator('#failure').isVisible(), false);
});

test('choosing the CPU while the graphics driver is silent makes a video', async () => {
	const page = await site.open(TINY, { inject: NEVER_ANSWERS, wait: false });
	await page.selectOption('#device', 'cpu');
	await page.selectOption('#device', 'auto');
	await page.selectOption('#device', 'cpu');
	const made = await make(page, REQUEST);
	assert.equal(made.engine.device, 'cpu');
	// The answers of the looks before, which come now, change nothing.
	await page.waitForTimeout(1000);
	assert.equal(await page.locator('#failure').isVisible(), false);
	assert.equal(await page.evaluate(() => document.querySelector('kinora-video').device), 'cpu');
});

test('an encoder that falls silent can be cancelled', async () => {
	const silent =
		'VideoEncoder.prototype.encode = () => undefined; VideoEncoder.prototype.flush = () => new Promise(() => undefined);';
	const page = await site.open(CPU, { prepare: (context) => context.addInitScript(silent) });
	await page.fill('#prompt', REQUEST.prompt);
	await page.click('#generate');
	await page.waitForFunction(() => document.querySelector('kinora-video').state === 'encoding');
	await page.click('#cancel');
	await idle(page);
	assert.equal(await page.locator('#running').isVisible(), false);
});

test('a model that could not be stored is not said to be there at the second clip either', async () => {
	const inject = `Cache.prototype.put = async () => { throw new DOMException('Quota exceeded.', 'QuotaExceededError'); }`;
	const page = await site.open(CPU, { inject });
	for (const seed of [1, 2]) {
		assert.equal((await make(page, { ...REQUEST, seed })).stored, false);
		await page.locator('#player').waitFor();
		assert.match(await page.locator('#consent').innerText(), /did not keep the model/);
	}
});

test('an element that is moved keeps its clip and its engine; one that is put back keeps the clip', async () => {
	const page = await site.open(CPU);
	await make(page, REQUEST);
	const moved = await page.evaluate(async () => {
		const video = document.querySelector('kinora-video');
		const { src } = video.video;
		document.body.append(video);
		await new Promise((resolve) => setTimeout(resolve));
		return { same: video.video.src === src, loaded: video.loaded };
	});
	assert.deepEqual(moved, { same: true, loaded: true });
	const back = await page.evaluate(async () => {
		const video = document.querySelector('kinora-video');
		video.remove();
		await new Promise((resolve) => setTimeout(resolve));
		const gone = { src: video.video.getAttribute('src'), loaded: video.loaded };
		document.body.append(video);
		await new Promise((resolve) => video.video.addEventListener('loadeddata', resolve, { once: true }));
		return { gone, width: video.video.videoWidth };
	});
	assert.deepEqual(back, { gone: { src: null, loaded: false }, width: 96 });
	await make(page, { ...REQUEST, seed: 8 });
});

test('another device after a clip is loaded from the beginning, and the bar says so', async () => {
	const page = await site.open(`${TINY}&device=webgpu`);
	await make(page, REQUEST);
	await page.selectOption('#device', 'cpu');
	const made = await make(page, REQUEST);
	assert.deepEqual([...new Set(made.progress.map(({ stage }) => stage))].slice(0, 3), ['engine', 'download', 'warmup']);
	const values = made.progress.map(({ value }) => value);
	assert.ok(
		values.some((value) => value > 0 && value < 0.5),
		values.join(' '),
	);
});

test('reloading after a failure keeps prompt and seed, and not in the address', async () => {
	const broken = (route) => route.fulfill({ contentType: 'application/wasm', body: 'no wasm' });
	const page = await site.open(CPU, { prepare: (context) => context.route('**/kinora_bg.wasm*', broken) });
	assert.equal((await generate(page, REQUEST)).error?.code, 'wasm');
	await assertFailure(page, 'wasm', 'Reload the page');
	await page.context().unroute('**/kinora_bg.wasm*');
	const address = page.url();
	await Promise.all([page.waitForEvent('load'), page.click('#failure-action')]);
	await settled(page);
	assert.deepEqual(
		[page.url(), await page.inputValue('#prompt'), await page.inputValue('#seed')],
		[address, REQUEST.prompt, '7'],
	);
});
