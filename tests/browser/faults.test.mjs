// Everything that can go wrong, provoked: each failure has to end in a typed error, a sentence with a remedy, and a
// page that works again. The tiny model keeps this quick.
import assert from 'node:assert/strict';
import { after, afterEach, before, test } from 'node:test';
import { TINY, assertFailure, generate, injectIntoWorker, make, outcome, start } from './support.mjs';

const REQUEST = { prompt: 'a red ball bounces on green grass', seed: 7 };
const CPU = `${TINY}&device=cpu`;
const SHARD = '**/tiny/*-00002-of-*.bin';

let site;
let reference;

before(async () => {
	site = await start();
	reference = (await make(await site.open(CPU), REQUEST)).hash;
});
after(() => site.stop());
afterEach(() => site.clear());

/** Runs into a failure, then removes the cause and takes the way out that the page offers. */
async function failThenRecover({ query = CPU, route, code, button = 'Try again' }) {
	const page = await site.open(query, { prepare: (context) => context.route(SHARD, route) });
	const found = await generate(page, REQUEST);
	assert.equal(found.error?.code, code, found.error?.message);
	await assertFailure(page, code, button);
	await page.context().unroute(SHARD);
	const recovered = outcome(page);
	await page.click('#failure-action');
	const made = await recovered;
	assert.equal(made.error, undefined);
	assert.equal(made.hash, reference);
	return { page, found, made };
}

const shardBytes = async (route) => Buffer.from(await (await route.fetch()).body());

test('a shard that is not on the server: network, and what has arrived is kept', async () => {
	const { page } = await failThenRecover({
		route: (route) => route.fulfill({ status: 404, body: 'gone' }),
		code: 'network',
	});
	assert.equal(page.requests.filter((url) => url.includes('-00001-of-')).length, 1);
});

test('a server that fails for a moment is asked again without bothering the visitor', async () => {
	let tries = 0;
	const page = await site.open(CPU, {
		prepare: (context) =>
			context.route(SHARD, (route) => (tries++ < 2 ? route.fulfill({ status: 503 }) : route.continue())),
	});
	assert.equal((await make(page, REQUEST)).hash, reference);
	assert.equal(tries, 3);
});

test('a connection that stays broken: network, after four tries', async () => {
	let tries = 0;
	const { found } = await failThenRecover({
		route: (route) => {
			tries++;
			return route.abort('connectionreset');
		},
		code: 'network',
	});
	assert.equal(tries, 4);
	// Thrown in the worker: a structured clone of the error would have lost both.
	assert.equal(found.error.retryable, true);
	assert.match(found.error.cause, /^TypeError: ./);
});

test('a shard cut short: integrity', async () => {
	await failThenRecover({
		route: async (route) =>
			route.fulfill({ body: (await shardBytes(route)).subarray(0, 1000), contentType: 'application/octet-stream' }),
		code: 'integrity',
	});
});

test('a shard with one altered bit is fetched once more, then: integrity', async () => {
	let tries = 0;
	await failThenRecover({
		route: async (route) => {
			tries++;
			const bytes = await shardBytes(route);
			bytes[123_456] ^= 1;
			await route.fulfill({ body: bytes, contentType: 'application/octet-stream' });
		},
		code: 'integrity',
	});
	assert.equal(tries, 2);
});

test('a web page in place of a shard: integrity', async () => {
	await failThenRecover({
		route: (route) =>
			route.fulfill({ status: 200, contentType: 'text/html; charset=utf-8', body: '<!doctype html><p>Welcome' }),
		code: 'integrity',
	});
});

test('a stored shard that has gone bad is thrown away and fetched again', async () => {
	const page = await site.open(CPU);
	await make(page, REQUEST);
	await page.evaluate(async () => {
		const [name] = await caches.keys();
		const cache = await caches.open(name);
		const [key] = await cache.keys();
		await cache.put(key, new Response(new Uint8Array(400_000)));
	});
	await page.reload();
	const made = await make(page, REQUEST);
	assert.equal(made.hash, reference);
	assert.ok(
		made.bytesFromCache > 0 &&
			made.bytesFromCache < site.tiny.manifest.shards.reduce((sum, { bytes }) => sum + bytes, 0),
	);
	await page.reload();
	assert.equal(
		(await make(page, REQUEST)).bytesFromCache,
		site.tiny.manifest.shards.reduce((sum, { bytes }) => sum + bytes, 0),
	);
});

test('a browser that refuses to store the model makes the video and says so', async () => {
	const inject = `Cache.prototype.put = async () => { throw new DOMException('Quota exceeded.', 'QuotaExceededError'); }`;
	const page = await site.open(CPU, { inject });
	const made = await make(page, REQUEST);
	assert.equal(made.stored, false);
	assert.match(await page.locator('#consent').innerText(), /did not keep the model/);
});

test('a site that was updated while the page was open: trying again takes the new model', async () => {
	const old = structuredClone(site.tiny.manifest);
	old.shards[0].path = 'tiny-of-last-year.bin';
	let updated = false;
	const page = await site.open(CPU, {
		prepare: (context) =>
			context.route('**/tiny/manifest.json', (route) => (updated ? route.continue() : route.fulfill({ json: old }))),
	});
	assert.equal((await generate(page, REQUEST)).error?.code, 'network');
	updated = true;
	const recovered = outcome(page);
	await page.click('#failure-action');
	assert.equal((await recovered).hash, reference);
});

for (const [what, body] of [
	['is not JSON', '{"schema_version": 1,'],
	[
		'has no shards',
		JSON.stringify({
			schema_version: 1,
			name: 'x',
			video: { fps: 12, sizes: [{ width: 64, height: 64, frames: [5] }] },
		}),
	],
	['is of another version', '{"schema_version": 99}'],
]) {
	test(`a manifest that ${what}: manifest, before anything else is fetched`, async () => {
		const page = await site.open(CPU, {
			prepare: (context) =>
				context.route('**/tiny/manifest.json', (route) => route.fulfill({ body, contentType: 'application/json' })),
		});
		await assertFailure(page, 'manifest', 'Try again');
		assert.ok(!page.requests.some((url) => /\.(bin|wasm)/.test(url)));
	});
}

test('a manifest that only the engine can see through: manifest', async () => {
	const manifest = structuredClone(site.tiny.manifest);
	manifest.interface = 'another-model-1';
	const page = await site.open(CPU, {
		prepare: (context) => context.route('**/tiny/manifest.json', (route) => route.fulfill({ json: manifest })),
	});
	const { error } = await generate(page, REQUEST);
	assert.equal(error?.code, 'manifest');
	assert.equal(error.retryable, false);
	assert.match(error.cause, /^Error: The model's manifest cannot be used/);
	assert.ok(!page.requests.some((url) => url.endsWith('.bin')));
});

test('an altered tokenizer is refused', async () => {
	const page = await site.open(CPU, {
		prepare: (context) =>
			context.route('**/tiny/tokenizer.json', (route) =>
				route.fulfill({ body: '{}', contentType: 'application/json' }),
			),
	});
	assert.equal((await generate(page, REQUEST)).error?.code, 'integrity');
});

test('an engine that cannot be compiled: wasm', async () => {
	const page = await site.open(CPU, {
		prepare: (context) =>
			context.route('**/*.wasm*', (route) => route.fulfill({ body: 'not wasm', contentType: 'application/wasm' })),
	});
	assert.equal((await generate(page, REQUEST)).error?.code, 'wasm');
	await assertFailure(page, 'wasm', 'Reload the page');
});

test('an empty prompt: empty-prompt, without a download', async () => {
	const page = await site.open(CPU);
	assert.equal((await generate(page, { prompt: '   ' })).error?.code, 'empty-prompt');
	await assertFailure(page, 'empty-prompt', 'Change the prompt');
	await page.click('#failure-action');
	assert.equal(await page.evaluate(() => document.activeElement.id), 'prompt');
	assert.ok(!page.requests.some((url) => /\.wasm/.test(url)));
});

test('a prompt that is too long: prompt-too-long, before the weights are downloaded', async () => {
	const page = await site.open(CPU);
	const found = await generate(page, { prompt: 'a red ball '.repeat(30) });
	assert.equal(found.error?.code, 'prompt-too-long');
	await assertFailure(page, 'prompt-too-long', 'Change the prompt');
	assert.ok(!page.requests.some((url) => url.endsWith('.bin')));
	assert.equal((await make(page, REQUEST)).hash, reference);
});

test('a size the model does not make: unsupported-size', async () => {
	const page = await site.open(CPU);
	const code = await page.evaluate(() =>
		document
			.querySelector('kinora-video')
			.generate({ prompt: 'a red ball', seed: 1, width: 640, height: 480, frames: 9 })
			.then(
				() => 'none',
				(error) => error.code,
			),
	);
	assert.equal(code, 'unsupported-size');
});

test('another length the model does make is made', async () => {
	const page = await site.open(CPU);
	const frames = await page.evaluate(async () => {
		const video = document.querySelector('kinora-video');
		return (await video.generate({ prompt: 'a red ball', seed: 1, width: 96, height: 64, frames: 5 })).frames.length;
	});
	assert.equal(frames, 5);
});

test('a seed that is no number: invalid-request', async () => {
	const page = await site.open(CPU);
	assert.equal((await generate(page, { prompt: 'a red ball', seed: 'seven' })).error?.code, 'invalid-request');
});

test('a second generation on the same element: busy', async () => {
	const page = await site.open(CPU);
	const code = await page.evaluate(async () => {
		const video = document.querySelector('kinora-video');
		const first = video.generate({ prompt: 'a red ball', seed: 1 });
		const second = await video.generate({ prompt: 'a red ball', seed: 2 }).catch((error) => error.code);
		await first;
		return second;
	});
	assert.equal(code, 'busy');
});

/** Stands for real hardware, which the page would choose, with a driver that offers no timestamp queries. */
const NO_TIMESTAMPS = `{
	const info = { vendor: 'acme', architecture: 'one', device: '', description: '', isFallbackAdapter: false };
	Object.defineProperty(GPUAdapter.prototype, 'info', { get: () => info });
	const { has } = GPUSupportedFeatures.prototype;
	GPUSupportedFeatures.prototype.has = function (name) {
		return name !== 'timestamp-query' && has.call(this, name);
	};
}`;

// The four ways in which a GPU can be missing: with the device left to the page, the CPU does the work and the page
// says why and what it costs; with the GPU demanded, there is an error with the CPU as the way out.
const MISSING = [
	[
		'unsupported-webgpu',
		'no navigator.gpu',
		`Object.defineProperty(WorkerNavigator.prototype, 'gpu', { get: () => undefined })`,
		/does not offer WebGPU/,
	],
	['no-adapter', 'no adapter', `GPU.prototype.requestAdapter = async () => null`, /No usable graphics adapter/],
	[
		'adapter-timeout',
		'an adapter that never answers',
		`GPU.prototype.requestAdapter = () => new Promise(() => {})`,
		/did not answer/,
	],
	['unsupported-feature', 'an adapter without timestamp-query', NO_TIMESTAMPS, /lacks timestamp-query, so the CPU/],
];
for (const [code, what, inject, notice] of MISSING) {
	test(`${what}: the page says so within six seconds and uses the CPU`, async () => {
		const began = performance.now();
		const page = await site.open(TINY, { inject });
		assert.ok(performance.now() - began < 9000);
		const text = await page.locator('#device-notice').innerText();
		assert.match(text, notice);
		assert.match(text, /more time/);
		const made = await make(page, REQUEST);
		assert.equal(made.engine.device, 'cpu');
		assert.equal(made.hash, reference);
	});

	test(`${what}, GPU demanded: ${code}, with the CPU as the way out`, async () => {
		const page = await site.open(`${TINY}&device=webgpu`, { inject });
		assert.equal((await generate(page, REQUEST)).error?.code, code);
		await assertFailure(page, code, 'Use the CPU instead');
		assert.match(await page.locator('#failure-text').innerText(), /more time/);
		assert.ok(!page.requests.some((url) => /\.(bin|wasm)/.test(url)), 'it is known before anything is downloaded');
		const recovered = outcome(page);
		await page.click('#failure-action');
		assert.equal((await recovered).hash, reference);
	});
}

test('the built-in model on an adapter without timestamp-query: the page says so and uses the CPU', async () => {
	const page = await site.open('', { inject: NO_TIMESTAMPS });
	const text = await page.locator('#device-notice').innerText();
	assert.match(text, /lacks timestamp-query, so the CPU .+ more time/);
	assert.equal(await page.evaluate(() => document.querySelector('kinora-video').device), 'cpu');
	assert.ok(!page.requests.some((url) => /\.(bin|wasm)/.test(url)));
});

test('an adapter without a feature that the manifest asks for: the page names it and uses the CPU', async () => {
	const page = await site.open(TINY, {
		prepare: site.changed(({ requires }) => {
			requires.features = ['timestamp-query', 'no-such-feature'];
		}),
	});
	assert.match(await page.locator('#device-notice').innerText(), /lacks no-such-feature, so the CPU/);
});

const NO_H264 = `
	const { configure } = VideoEncoder.prototype;
	VideoEncoder.prototype.configure = function (config) {
		if (REFUSED.test(config.codec)) { throw new DOMException('Unsupported codec.', 'NotSupportedError'); }
		return configure.call(this, config);
	};`;

test('a browser whose H.264 encoder lies gets the next codec', async () => {
	const page = await site.open(CPU, {
		prepare: (context) => context.addInitScript(NO_H264.replace('REFUSED', '/^avc/')),
	});
	const made = await make(page, REQUEST);
	assert.equal(made.codec, 'vp9');
	assert.equal(made.refusedCodecs.length, 2);
	assert.equal(made.hash, reference);
	assert.ok((await page.evaluate(() => document.querySelector('kinora-video').video.videoWidth)) > 0, 'the file plays');
});

test('with VP8 as the only encoder the file is WebM', async () => {
	const page = await site.open(CPU, {
		prepare: (context) => context.addInitScript(NO_H264.replace('REFUSED', '/^(avc|vp09|av01)/')),
	});
	const made = await make(page, REQUEST);
	assert.deepEqual([made.codec, made.extension], ['vp8', '.webm']);
});

test('encoders that all fail: encode', async () => {
	const page = await site.open(CPU, { prepare: (context) => context.addInitScript(NO_H264.replace('REFUSED', '/./')) });
	assert.equal((await generate(page, REQUEST)).error?.code, 'encode');
	await assertFailure(page, 'encode', 'Try again');
});

test('a browser without WebCodecs: encode, before the model is downloaded', async () => {
	const page = await site.open(CPU, { prepare: (context) => context.addInitScript('delete globalThis.VideoEncoder') });
	assert.equal((await generate(page, REQUEST)).error?.code, 'encode');
	assert.ok(!page.requests.some((url) => /\.(bin|wasm)/.test(url)));
});

test('what an earlier version of the model left in storage is removed', async () => {
	const page = await site.open(CPU);
	await page.evaluate(async () => {
		const cache = await caches.open('kinora-shards-v1');
		await cache.put(new URL(`kinora-shard/${'0'.repeat(64)}`, location.origin), new Response('old'));
	});
	await make(page, REQUEST);
	const kept = await page.evaluate(async () =>
		(await (await caches.open('kinora-shards-v1')).keys()).map(({ url }) => url.split('/').pop()),
	);
	assert.deepEqual(kept.sort(), site.tiny.manifest.shards.map(({ sha256 }) => sha256).sort());
});

test('an engine that traps: internal, and a fresh engine afterwards', async () => {
	const inject = `addEventListener('message', ({ data }) => { if (data.call === 'generate') { data.call = 'none'; throw new WebAssembly.RuntimeError('unreachable'); } })`;
	const page = await site.open(CPU, { inject });
	assert.equal((await generate(page, REQUEST)).error?.code, 'internal');
	await assertFailure(page, 'internal', 'Try again');
	await page.context().unroute('**/worker.js*');
	const recovered = outcome(page);
	await page.click('#failure-action');
	assert.equal((await recovered).hash, reference);
});

test('cancelling a download ends it at once, and the next run finishes it', async () => {
	const page = await site.open(CPU, { prepare: (context) => context.route(SHARD, () => undefined) });
	await page.fill('#prompt', REQUEST.prompt);
	await page.fill('#seed', '7');
	const asked = page.waitForRequest(SHARD);
	await page.click('#generate');
	await asked;
	await page.click('#cancel');
	await page.waitForFunction(() => document.querySelector('kinora-video').state === 'idle', undefined, {
		timeout: 2000,
	});
	assert.equal(await page.locator('#running').isVisible(), false);
	await page.context().unroute(SHARD);
	assert.equal((await make(page, REQUEST)).hash, reference);
});

test('a worker that does not react to cancelling is ended', async () => {
	// Stands for a denoising step on the CPU, during which the worker hears nothing.
	const inject = `addEventListener('message', ({ data }) => { if (data.call === 'load') { const end = performance.now() + 20000; while (performance.now() < end); } })`;
	const page = await site.open(CPU, { inject });
	await page.fill('#prompt', REQUEST.prompt);
	await page.click('#generate');
	await page.waitForFunction(() => document.getElementById('progress-text').textContent.startsWith('Downloading'));
	await page.click('#cancel');
	await page.waitForFunction(() => document.querySelector('kinora-video').state === 'idle', undefined, {
		timeout: 2500,
	});
	await page.context().unroute('**/worker.js*');
	assert.equal((await make(page, REQUEST)).hash, reference);
});

test('the stored model can be removed', async () => {
	const page = await site.open(CPU);
	await make(page, REQUEST);
	await page.click('#delete');
	await page.waitForFunction(() =>
		document.getElementById('consent').textContent.includes('The first video downloads'),
	);
	const kept = await page.evaluate(async () =>
		Promise.all((await caches.keys()).map(async (name) => (await (await caches.open(name)).keys()).length)),
	);
	assert.equal(
		kept.reduce((sum, count) => sum + count, 0),
		0,
	);
});

test('a broken worker script: network', async () => {
	const page = await site.open(CPU, {
		prepare: (context) => context.route('**/worker.js*', (route) => route.fulfill({ status: 404 })),
	});
	assert.equal((await generate(page, REQUEST)).error?.code, 'network');
	await injectIntoWorker(page.context(), '');
	const recovered = outcome(page);
	await page.click('#failure-action');
	assert.equal((await recovered).hash, reference);
});
