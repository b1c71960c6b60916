// Where memory is short, text encoder, denoiser and decoder take turns: the same clip, from what the browser has stored.
import assert from 'node:assert/strict';
import { after, afterEach, before, test } from 'node:test';
import { TINY, assertFailure, cancelAt, generate, make, outcome, planned, start } from './support.mjs';

const REQUEST = { prompt: 'a red ball bounces on green grass', seed: 7 };
const OTHER = { prompt: 'the blue bird flies over the sea', seed: 7 };
const CPU = `${TINY}&device=cpu`;
const SHORT = 'Memory is short here, so the parts of the model are loaded one after the other';

let site;
/** Clips of a model that is in memory as a whole. */
let references;

before(async () => {
	site = await start({ shardBytes: 100_000 });
	const page = await site.open(CPU);
	const first = await make(page, REQUEST);
	assert.ok(first.previews > 0);
	assert.doesNotMatch(await page.locator('#needs').innerText(), /Memory is short/);
	references = [first.hash, (await make(page, OTHER)).hash];
});
after(() => site.stop());
afterEach(() => site.clear());

/** A device that says it has so many bytes of memory. */
const memory = (bytes) => (context) =>
	context.addInitScript(
		(gibibytes) => Object.defineProperty(Navigator.prototype, 'deviceMemory', { get: () => gibibytes }),
		bytes / 2 ** 30,
	);

const shards = (page) => page.requests.filter((url) => url.endsWith('.bin'));

test('in turns the clips are the same, without previews, and once stored the model needs no network', async () => {
	const page = await site.open(`${CPU}&residency=turns`);
	const plan = planned(page);
	const first = await make(page, REQUEST);
	assert.equal((await plan).residency, 'turns');
	assert.equal(first.hash, references[0]);
	assert.equal(first.previews, 0);
	assert.equal(first.bytesFromCache, 0);
	assert.equal(shards(page).length, site.tiny.manifest.shards.length, 'every shard is fetched once');
	await page.locator('#needs').filter({ hasText: SHORT }).waitFor({ timeout: 5000 });
	await page.locator('#player').waitFor();
	await page.locator('#needs').filter({ hasText: SHORT }).waitFor({ timeout: 5000 });
	page.requests.length = 0;
	assert.equal((await make(page, OTHER)).hash, references[1]);
	assert.equal((await make(page, REQUEST)).hash, references[0]);
	assert.deepEqual(
		page.requests.filter((url) => !url.startsWith('blob:')),
		[],
	);
	// A visit later nothing is fetched but page and engine.
	await page.reload();
	page.requests.length = 0;
	assert.equal((await make(page, REQUEST)).hash, references[0]);
	assert.deepEqual(shards(page), []);
});

test('a device with little memory takes turns by itself, and only for the clips that need it', async () => {
	const sizes = [
		{ width: 96, height: 64, frames: [9] },
		{ width: 384, height: 256, frames: [17] },
	];
	const change = site.changed(({ video }) => (video.sizes = sizes));
	const prepare = async (context) => {
		await change(context);
		await memory(2 * (8 << 20))(context);
	};
	const page = await site.open(CPU, { prepare });
	const small = await make(page, REQUEST);
	assert.ok(small.previews > 0);
	assert.equal(small.hash, references[0]);
	page.requests.length = 0;

	await page.selectOption('#size', { index: 1 });
	const plan = planned(page);
	const large = await make(page, REQUEST);
	assert.deepEqual([(await plan).residency, large.previews], ['turns', 0]);
	assert.deepEqual(shards(page), [], 'what was loaded as a whole had been stored as well');

	await page.selectOption('#size', { index: 0 });
	const again = await make(page, REQUEST);
	assert.ok(again.previews > 0 && again.hash === small.hash);

	const rich = await site.open(`${CPU}&size=384x256`, { prepare: change });
	const whole = await make(rich, REQUEST);
	assert.ok(whole.previews > 0);
	assert.equal(whole.hash, large.hash);
});

test('turns need a browser that stores the model: one that does not says so', async () => {
	const page = await site.open(`${CPU}&residency=turns`, {
		inject: `Object.defineProperty(self, 'caches', { value: undefined });`,
	});
	const { error } = await generate(page, REQUEST);
	assert.equal(error?.code, 'storage', error?.message);
	await assertFailure(page, 'storage', 'Try again');
	assert.match(await page.locator('#failure-text').innerText(), /does not keep the model on this device/);
	assert.deepEqual(shards(page), [], 'known before anything is fetched');
	await page.context().close();
	// Where it was only thought better, the model is held as a whole instead.
	const whole = await site.open(CPU, {
		prepare: memory(2 << 20),
		inject: `Object.defineProperty(self, 'caches', { value: undefined });`,
	});
	const made = await make(whole, REQUEST);
	assert.equal(made.hash, references[0]);
	assert.ok(made.previews > 0);
	assert.equal(shards(whole).length, site.tiny.manifest.shards.length, 'every shard is fetched once');
	await whole.context().close();
	// A disk that is full.
	const full = await site.open(`${CPU}&residency=turns`, {
		inject: `Cache.prototype.put = () => Promise.reject(new DOMException('full', 'QuotaExceededError'));`,
	});
	const { error: noRoom } = await generate(full, REQUEST);
	assert.equal(noRoom?.code, 'storage', noRoom?.message);
	assert.ok(shards(full).length < site.tiny.manifest.shards.length, 'the first that cannot be kept ends it');
});

test('a part that the browser has thrown away meanwhile: storage, and the next try fetches it', async () => {
	const page = await site.open(`${CPU}&residency=turns`);
	await make(page, REQUEST);
	const forget = (paths) =>
		page.evaluate(async (hashes) => {
			const cache = await caches.open('kinora-shards-v1');
			const gone = await Promise.all(
				hashes.map((hash) => cache.delete(new URL(`kinora-shard/${hash}`, location.origin).href)),
			);
			return gone.every(Boolean);
		}, paths);
	const { shards: all, tensors } = site.tiny.manifest;
	const of = (prefix) => {
		const found = Object.entries(tensors).filter(([name]) => name.startsWith(prefix));
		return [...new Set(found.flatMap(([, { parts }]) => parts.map(({ shard }) => shard)))];
	};
	for (const prefix of ['autoencoder.decoder.', 'transformer.blocks.1.', 'text_encoder.encoder.']) {
		const lost = of(prefix).at(-1);
		assert.equal(await forget([all[lost].sha256]), true);
		page.requests.length = 0;
		const { error } = await generate(page, REQUEST);
		assert.equal(error?.code, 'storage', `${prefix}: ${error?.message}`);
		assert.deepEqual(shards(page), []);
		await assertFailure(page, 'storage', 'Try again');
		const recovered = outcome(page);
		await page.click('#failure-action');
		const made = await recovered;
		assert.equal(made.hash, references[0], made.error?.message);
		assert.deepEqual(
			shards(page).map((url) => url.slice(url.lastIndexOf('/') + 1)),
			[all[lost].path],
			'only what was lost',
		);
	}
});

test('cancelled while a part is read, the model is there for the next clip', async () => {
	const page = await site.open(`${CPU}&residency=turns`);
	await make(page, REQUEST);
	for (const stage of ['text', 'denoise', 'decode']) {
		const ended = cancelAt(page, stage);
		await page.fill('#prompt', OTHER.prompt);
		await page.click('#generate');
		assert.equal((await ended).state, 'idle', stage);
		assert.equal((await make(page, REQUEST)).hash, references[0], stage);
	}
});

/** Counts the bytes of GPU buffers that are there, and reports a lack of memory as a driver does where there are more. */
const count = (most = Number.MAX_SAFE_INTEGER) => `{
	let [live, peak] = [0, 0];
	const { createBuffer } = GPUDevice.prototype;
	GPUDevice.prototype.createBuffer = function (descriptor) {
		live += descriptor.size;
		peak = Math.max(peak, live);
		if (live > ${most}) {
			const error = new GPUOutOfMemoryError('no memory for a buffer');
			queueMicrotask(() => this.dispatchEvent(new GPUUncapturedErrorEvent('uncapturederror', { error })));
		}
		return createBuffer.call(this, descriptor);
	};
	const { destroy } = GPUBuffer.prototype;
	GPUBuffer.prototype.destroy = function () {
		live -= this.size;
		return destroy.call(this);
	};
	const { postMessage } = self;
	self.postMessage = function (message, ...rest) {
		if (message.type === 'done' || message.type === 'error') {
			console.log('gpu-peak ' + peak);
		}
		return postMessage.call(self, message, ...rest);
	};
}`;

const WIDE = ({ video }) => (video.sizes = [{ width: 384, height: 256, frames: [17] }]);

/** A clip on an adapter with so much memory: what was made, its plan, and the most bytes of buffers. */
async function onGpu(query, most) {
	const change = site.changed(WIDE);
	let peak = 0;
	const prepare = async (context) => {
		await change(context);
		context.on('console', (message) => {
			const [, bytes] = /^gpu-peak (\d+)$/.exec(message.text()) ?? [];
			peak = Math.max(peak, Number(bytes ?? 0));
		});
	};
	const page = await site.open(`${TINY}&device=webgpu${query}`, { prepare, inject: count(most) });
	await page.evaluate(() => {
		window.notices = [];
		document.querySelector('kinora-video').addEventListener('notice', ({ detail }) => window.notices.push(detail));
	});
	const made = await generate(page, REQUEST);
	const notices = await page.evaluate(() => window.notices);
	const words = await page.locator('#words').innerText();
	await page.context().close();
	return { made, notices, words, plan: notices.filter(({ plan }) => plan).at(-1)?.plan, peak };
}

test('on WebGPU the memory plan holds, and in turns less is there at once', { timeout: 300_000 }, async () => {
	const together = await onGpu('&residency=together');
	const turns = await onGpu('&residency=turns');
	assert.ok(together.made.hash !== undefined, together.made.error?.message);
	assert.equal(turns.made.hash, together.made.hash, turns.made.error?.message);
	for (const { plan, peak } of [together, turns]) {
		console.log(`${plan.residency}: planned ${plan.gpu} bytes of GPU memory, ${peak} in buffers`);
		assert.ok(peak <= plan.gpu && plan.gpu < 1.6 * peak, `planned ${plan.gpu}, taken ${peak}`);
	}
	const { tensors } = site.tiny.manifest;
	const denoiser = Object.entries(tensors).filter(([name]) => name.startsWith('transformer.'));
	const bytes = denoiser.flatMap(([, { parts }]) => parts.map((part) => part.bytes)).reduce((a, b) => a + b);
	assert.ok(
		turns.peak + bytes < together.peak,
		`${turns.peak} in turns, ${together.peak} together, ${bytes} of denoiser`,
	);

	// An adapter on which the model fits in turns alone: found out by the lack, and mended without the visitor.
	const short = await onGpu('', (turns.peak + together.peak) / 2);
	assert.equal(short.made.hash, together.made.hash, short.made.error?.message);
	assert.deepEqual(
		short.notices.filter(({ restarted }) => restarted),
		[{ restarted: 'out-of-memory' }],
	);
	assert.equal(short.plan.residency, 'turns');
	assert.match(short.words, /memory ran out.+one after the other/);
	// On one that is smaller still there is no clip, and it is not tried for ever.
	const tiny = await onGpu('', 4e6);
	assert.equal(tiny.made.error?.code, 'out-of-memory', tiny.made.error?.message);
});
