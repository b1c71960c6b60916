// The same pictures from WebGPU, here on an emulated adapter: correctness, not speed. One full clip of the built-in
// model, the rest on the tiny one.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { TINY, assertFailure, generate, make, outcome, psnr, start } from './support.mjs';

const REQUEST = { prompt: 'a red ball bounces on green grass', seed: 7 };

let site;
/** The tiny model on the GPU; most tests share it, because an emulated adapter compiles shaders slowly. */
let page;
let first;

before(async () => {
	site = await start();
});
after(() => site.stop());

test('the tiny model gives the same frames on the GPU and on the CPU', async () => {
	page = await site.open(`${TINY}&device=webgpu`);
	first = await make(page, REQUEST);
	assert.equal(first.engine.device, 'webgpu');
	assert.equal(first.engine.software, true);
	assert.match(first.engine.adapter, /swiftshader/i);
	const other = await site.open(`${TINY}&device=cpu`);
	const cpu = await make(other, REQUEST);
	await other.context().close();
	assert.ok(psnr(first.pixels, cpu.pixels) > 45, `${psnr(first.pixels, cpu.pixels)} dB`);
});

test('the GPU repeats itself to the bit', async () => {
	assert.equal((await make(page, REQUEST)).hash, first.hash);
});

test(
	'a causal model with its cache in 8 bits gives the same frames on the GPU and on the CPU',
	{ timeout: 300_000 },
	async () => {
		const causal = async (device, cache) => {
			const manifest = structuredClone(site.tiny.manifest);
			// Chunks of one frame with a window of one: the third chunk is made after the first has left the cache.
			manifest.sampler.causal = { chunk_frames: 1, window_frames: 1, cache };
			const prepare = (context) => context.route('**/tiny/manifest.json', (route) => route.fulfill({ json: manifest }));
			const other = await site.open(`${TINY}&device=${device}`, { prepare });
			const made = await make(other, REQUEST);
			await other.context().close();
			assert.equal(made.engine.device, device);
			return made;
		};
		const gpu = await causal('webgpu', 'q8');
		const cpu = await causal('cpu', 'q8');
		const exact = await causal('cpu', 'f32');
		assert.ok(psnr(gpu.pixels, cpu.pixels) > 45, `${psnr(gpu.pixels, cpu.pixels)} dB`);
		assert.notEqual(cpu.hash, exact.hash, 'the 8 bits are in use');
		assert.ok(
			gpu.checks.some(({ name }) => name === 'cache q8'),
			'the device proved its kernels',
		);
		// Both round alike, so what the rounding changes does not lie between them.
		const rounding = psnr(cpu.pixels, exact.pixels);
		assert.ok(
			rounding > 40 && psnr(gpu.pixels, cpu.pixels) > rounding + 10,
			`${psnr(gpu.pixels, cpu.pixels)} dB, q8 to f32 ${rounding} dB`,
		);
	},
);

/** Refuses every device that was given more than WebGPU guarantees. */
const DEFAULT_LIMITS_ONLY = `{
	const { requestDevice } = GPUAdapter.prototype;
	GPUAdapter.prototype.requestDevice = async function (descriptor) {
		const device = await requestDevice.call(this, descriptor);
		const { maxBufferSize, maxStorageBufferBindingSize, maxStorageBuffersPerShaderStage, maxComputeWorkgroupStorageSize } = device.limits;
		if (maxBufferSize > 2 ** 28 || maxStorageBufferBindingSize > 2 ** 27 || maxStorageBuffersPerShaderStage > 8 || maxComputeWorkgroupStorageSize > 16384) {
			throw new Error('the device was given more than the default limits');
		}
		return device;
	};
}`;

test(
	'the built-in model runs within the default limits of WebGPU and agrees with the CPU',
	{ timeout: 300_000 },
	async () => {
		const strict = await site.open('device=webgpu&limits=default', { inject: DEFAULT_LIMITS_ONLY });
		const gpu = await make(strict, REQUEST);
		await strict.context().close();
		const other = await site.open('device=cpu');
		const cpu = await make(other, REQUEST);
		await other.context().close();
		assert.ok(psnr(gpu.pixels, cpu.pixels) >= 45, `${psnr(gpu.pixels, cpu.pixels)} dB`);
	},
);

/** Crashes the GPU process whenever denoising begins, as often as `left` says. */
const crashes = { left: 0 };

async function armCrashes() {
	const session = await site.browser.newBrowserCDPSession();
	await page.exposeFunction('drawingBegins', async () => {
		if (crashes.left > 0) {
			crashes.left--;
			await session.send('Browser.crashGpuProcess').catch(() => undefined);
		}
	});
	await page.evaluate(() => {
		let drawing = false;
		document.querySelector('kinora-video').addEventListener('progress', ({ detail }) => {
			const now = detail.stage === 'denoise';
			if (now && !drawing) {
				window.drawingBegins();
			}
			drawing = now;
		});
	});
}

test('a graphics device lost while drawing is replaced once, and the clip is the same', async () => {
	await armCrashes();
	crashes.left = 1;
	const made = await make(page, REQUEST);
	assert.equal(crashes.left, 0);
	assert.match(await page.locator('#words').innerText(), /was reset/);
	assert.equal(made.hash, first.hash);
	const values = made.progress.map(({ value }) => value);
	assert.ok(
		values.every((value, index) => index === 0 || value >= values[index - 1]),
		'the figure fell',
	);
});

test('a graphics device lost twice is reported, with the CPU as the way out', async () => {
	crashes.left = 2;
	const found = await generate(page, REQUEST);
	assert.equal(found.error?.code, 'device-lost');
	await assertFailure(page, 'device-lost', 'Use the CPU instead');
	const recovered = outcome(page);
	await page.click('#failure-action');
	assert.equal((await recovered).engine?.device, 'cpu');
});
