// What a clip will need is said before the model is fetched, and one that cannot be held is refused then.
import assert from 'node:assert/strict';
import { after, afterEach, before, test } from 'node:test';
import { TINY, assertFailure, generate, make, planned, start } from './support.mjs';

const REQUEST = { prompt: 'a red ball bounces on green grass', seed: 7 };
const CPU = `${TINY}&device=cpu`;

let site;

before(async () => {
	site = await start();
});
after(() => site.stop());
afterEach(() => site.clear());

const changed = (change) => ({ prepare: site.changed(change) });

const weights = (page) => page.requests.filter((url) => /\.bin|\.wasm|tokenizer/.test(url));

const line = (page, pattern) => page.locator('#needs').filter({ hasText: pattern }).waitFor({ timeout: 5000 });

test('what the built-in model needs is said while only its manifest is there', async () => {
	const page = await site.open('device=cpu');
	const { shards, text_encoder: text } = await page.evaluate(async () => (await fetch('model/manifest.json')).json());
	const bytes = shards.reduce((sum, shard) => sum + shard.bytes, text.tokenizer.bytes);
	await line(
		page,
		new RegExp(`^This clip needs ${Math.round(bytes / 1e6)} MB to download and about \\d\\d MB of memory\\.$`),
	);
	assert.deepEqual(weights(page), []);
	assert.ok((await page.getAttribute('#prompt', 'aria-describedby')).split(' ').includes('needs'));
});

test('the figure follows size and device, and the engine has its own', async () => {
	const figures = changed(({ requires, video }) => {
		const [{ width, height, frames }] = video.sizes;
		requires.clips = frames.map((count, index) => ({
			width,
			height,
			frames: count,
			cpu_bytes: (index + 1) * 123e6,
			webgpu_bytes: 3.14e9,
		}));
	});
	const page = await site.open(CPU, figures);
	await line(page, /to download and about 120 MB of memory/);
	await page.selectOption('#size', { index: 1 });
	await line(page, /about 250 MB of memory/);
	await page.selectOption('#device', 'webgpu');
	await line(page, /about 3\.1 GB of memory/);
	assert.deepEqual(weights(page), []);

	await page.selectOption('#device', 'cpu');
	await line(page, /about 250 MB of memory/);
	const plan = planned(page);
	await make(page, REQUEST);
	const { width, height, frames, download, memory, engine, gpu, largestBuffer } = await plan;
	assert.deepEqual([width, height, frames, gpu, largestBuffer], [96, 64, 5, 0, 0]);
	assert.ok(engine > 1e6 && memory > engine && memory < 20e6, `${engine} of ${memory}`);
	assert.equal(
		download,
		site.tiny.manifest.shards.reduce((sum, { bytes }) => sum + bytes, site.tiny.manifest.text_encoder.tokenizer.bytes),
	);
	// The model is here now, so there is nothing left to download.
	await line(page, new RegExp(`^This clip needs about ${(memory / 1e6).toPrecision(2)} MB of memory\\.$`));
});

test('a model that says nothing of its clips says what it says of itself', async () => {
	const page = await site.open(
		CPU,
		changed(({ requires }) => (requires.memory_bytes = 77e6)),
	);
	await line(page, /about 77 MB of memory/);
	const silent = await site.open(
		CPU,
		changed((manifest) => delete manifest.requires),
	);
	await line(silent, /^This clip needs [\d.]+ MB to download\.$/);
});

for (const device of ['cpu', 'webgpu']) {
	test(`a clip too large for the ${device} is refused before a shard is fetched, and the one that fits is named`, async () => {
		const large = changed(({ video }) => video.sizes.push({ width: 8192, height: 8192, frames: [9] }));
		const page = await site.open(`${TINY}&device=${device}&size=8192x8192x9`, large);
		assert.equal(await page.locator('#size').inputValue(), '8192x8192x9');
		const { error } = await generate(page, REQUEST);
		assert.equal(error?.code, 'too-large', error?.message);
		assert.equal(error.retryable, false);
		await assertFailure(page, 'too-large', 'Change the size');
		assert.match(
			await page.locator('#failure-text').innerText(),
			/8192x8192 \(9 frames\) is too large: .+ Choose 96x64 \(9 frames\)\.$/,
		);
		assert.deepEqual(
			page.requests.filter((url) => url.includes('.bin')),
			[],
		);
		await page.click('#failure-action');
		assert.equal(await page.evaluate(() => document.activeElement.id), 'size');
		if (device === 'cpu') {
			await page.selectOption('#size', '96x64x9');
			await make(page, REQUEST);
		}
	});
}

test('a model of which nothing fits says so', async () => {
	const page = await site.open(
		CPU,
		changed(({ video }) => (video.sizes = [{ width: 8192, height: 8192, frames: [9] }])),
	);
	const { error } = await generate(page, REQUEST);
	assert.equal(error?.code, 'too-large', error?.message);
	assert.match(error.message, /No other clip of this model fits; choose a smaller model or another device\.$/);
	assert.deepEqual(
		page.requests.filter((url) => url.includes('.bin')),
		[],
	);
});

test('a model that works chunk by chunk shows finished frames while it draws on', async () => {
	const causal = changed(({ sampler }) => (sampler.causal = { chunk_frames: 1, sink_frames: 0, window_frames: 2 }));
	const { progress, count } = await make(await site.open(CPU, causal), REQUEST);
	assert.equal(count, 9);
	const stages = progress.map(({ stage }) => stage);
	assert.ok(stages.indexOf('decode') > stages.lastIndexOf('denoise'), stages.join(' '));
	const texts = progress.map(({ text }) => text);
	for (const text of [
		'Drawing, step 2 of 12',
		'Drawing, step 5 of 12; 1 of 9 frames are finished',
		'Drawing, step 10 of 12; 5 of 9 frames are finished',
	]) {
		assert.ok(texts.includes(text), `${text}: ${texts.join(' | ')}`);
	}
	const denoise = progress.filter(({ stage }) => stage === 'denoise').map(({ value }) => value);
	assert.ok(new Set(denoise).size >= 12, denoise.join(' '));
});
