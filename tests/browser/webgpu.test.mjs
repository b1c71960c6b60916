// The same pictures from WebGPU, here on an emulated adapter: correctness, not speed. One full clip of the built-in
// model, the rest on the tiny one.
import assert from 'node:assert/strict';
import { after, afterEach, before, test } from 'node:test';
import { TINY, assertFailure, make, outcome, psnr, start } from './support.mjs';

const REQUEST = { prompt: 'a red ball bounces on green grass', seed: 7 };

let site;

before(async () => {
	site = await start();
});
after(() => site.stop());
afterEach(() => site.clear());

test('the tiny model gives the same frames on the GPU and on the CPU', async () => {
	const gpu = await make(await site.open(`${TINY}&device=webgpu`), REQUEST);
	const cpu = await make(await site.open(`${TINY}&device=cpu`), REQUEST);
	assert.equal(gpu.engine.device, 'webgpu');
	assert.equal(gpu.engine.software, true);
	assert.ok(psnr(gpu.pixels, cpu.pixels) > 45, `${psnr(gpu.pixels, cpu.pixels)} dB`);
});

test('the GPU repeats itself to the bit', async () => {
	const page = await site.open(`${TINY}&device=webgpu`);
	const first = await make(page, REQUEST);
	assert.equal((await make(page, REQUEST)).hash, first.hash);
});

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

test('the built-in model runs within the default limits of WebGPU and agrees with the CPU', { timeout: 240_000 }, async () => {
	const gpu = await make(await site.open('device=webgpu&limits=default', { inject: DEFAULT_LIMITS_ONLY }), REQUEST);
	await site.clear();
	const cpu = await make(await site.open('device=cpu'), REQUEST);
	assert.ok(psnr(gpu.pixels, cpu.pixels) > 40, `${psnr(gpu.pixels, cpu.pixels)} dB`);
});

/** Crashes the GPU process as soon as denoising has begun, `times` times. */
async function crashWhileDrawing(page, times) {
	const session = await site.browser.newBrowserCDPSession();
	let left = times;
	await page.exposeFunction('crash', async () => {
		if (left-- > 0) {
			await session.send('Browser.crashGpuProcess').catch(() => undefined);
		}
	});
	await page.evaluate(() => {
		const video = document.querySelector('kinora-video');
		let drawing = false;
		video.addEventListener('progress', ({ detail }) => {
			const now = detail.stage === 'denoise';
			if (now && !drawing) {
				window.crash();
			}
			drawing = now;
		});
	});
}

test('a graphics device lost while drawing is replaced once, and the clip is the same', async () => {
	const undisturbed = await make(await site.open(`${TINY}&device=webgpu`), REQUEST);
	const page = await site.open(`${TINY}&device=webgpu`);
	await crashWhileDrawing(page, 1);
	const made = await make(page, REQUEST);
	assert.match(await page.locator('#words').innerText(), /was reset/);
	assert.equal(made.hash, undisturbed.hash);
	const values = made.progress.map(({ value }) => value);
	assert.ok(values.every((value, index) => index === 0 || value >= values[index - 1]), 'the figure fell');
});

test('a graphics device lost twice is reported, with the CPU as the way out', async () => {
	const page = await site.open(`${TINY}&device=webgpu`);
	await crashWhileDrawing(page, 2);
	const found = outcome(page);
	await page.fill('#prompt', REQUEST.prompt);
	await page.click('#generate');
	assert.equal((await found).error?.code, 'device-lost');
	await assertFailure(page, 'device-lost', 'Use the CPU instead');
	const saved = outcome(page);
	await page.click('#failure-action');
	assert.equal((await saved).engine?.device, 'cpu');
});
