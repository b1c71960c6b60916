// The same pictures from WebGPU, here on an emulated adapter: correctness, not speed. One full clip of the built-in
// model, the rest on the tiny one.
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { after, before, test } from 'node:test';
import { TINY, assertFailure, generate, make, outcome, psnr, start } from './support.mjs';

const REQUEST = { prompt: 'a red ball bounces on green grass', seed: 7 };

let site;
/** The tiny model on the GPU; most tests share it, because an emulated adapter compiles shaders slowly. */
let page;
let first;
/** The same clip from the CPU. */
let fromCpu;

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
	fromCpu = await make(other, REQUEST);
	await other.context().close();
	assert.ok(psnr(first.pixels, fromCpu.pixels) > 45, `${psnr(first.pixels, fromCpu.pixels)} dB`);
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
	{ timeout: 600_000 },
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

/** Changes a line of a kernel on its way to the driver. */
const rewrite = (from, to) => `{
	const { createShaderModule } = GPUDevice.prototype;
	GPUDevice.prototype.createShaderModule = function (descriptor) {
		descriptor.code = descriptor.code.replace(${JSON.stringify(from)}, ${JSON.stringify(to)});
		return createShaderModule.call(this, descriptor);
	};
}`;

/** The kernel has the line that a test is about to change, or the test would prove nothing. */
async function assertLine(kernel, line) {
	const text = await readFile(new URL(`../../crate/src/kernels/${kernel}`, import.meta.url), 'utf8');
	assert.ok(text.includes(line), `${kernel} has no line ${line}`);
}

/** A GPU that was tampered with gives no clip: the run ends with an error in the self-test, before it draws. */
async function assertNoClip(inject, codes, button) {
	const other = await site.open(`${TINY}&device=webgpu`, { inject });
	const { error, progress } = await generate(other, REQUEST);
	assert.ok(codes.includes(error?.code), error ? `${error.code}: ${error.message}` : 'a clip was made');
	await assertFailure(other, error.code, button);
	const stages = new Set(progress.map(({ stage }) => stage));
	assert.ok(stages.has('warmup') && !stages.has('text') && !stages.has('denoise'), [...stages].join(', '));
	assert.equal(await other.locator('#player').isVisible(), false);
	assert.equal(await other.evaluate(() => document.querySelector('kinora-video').result), undefined);
	return { other, error };
}

/** The way out that the page offers leads to the clip that the CPU makes. */
async function takeTheCpu(other) {
	const recovered = outcome(other);
	await other.click('#failure-action');
	const made = await recovered;
	assert.equal(made.engine?.device, 'cpu', made.error?.message);
	assert.equal(made.hash, fromCpu.hash);
	await other.context().close();
}

// What the kernel does, its file, the line that does it, what that line becomes, and the check that has to notice.
const WRONG = [
	['adds with the wrong sign', 'linear.wgsl', 'v += bias[col];', 'v -= bias[col];', 'linear f32'],
	// As a driver that skips a kernel in silence.
	[
		'writes nothing',
		'linear.wgsl',
		'out[row * info.cols + col] = activate(v);',
		'if (info.depth == 0u) { out[row * info.cols + col] = activate(v); }',
		'linear f32',
	],
	['takes away what it should add', 'conv2d.wgsl', 'v += residual[to];', 'v -= residual[to];', 'convolution'],
];
for (const [what, kernel, from, to, check] of WRONG) {
	test(`a kernel in ${kernel} that ${what}: numeric, with the CPU as the way out`, { timeout: 300_000 }, async () => {
		await assertLine(kernel, from);
		const { other, error } = await assertNoClip(rewrite(from, to), ['numeric'], 'Use the CPU instead');
		assert.ok(error.message.includes(`its ${check} is off by`), error.message);
		assert.match(await other.locator('#failure-text').innerText(), /computes wrong results.+ more time/);
		// Thrown in the worker: a structured clone of the error would have lost both.
		assert.equal(error.retryable, false);
		assert.match(error.cause, /^Error: The computation gave wrong values/);
		await takeTheCpu(other);
	});
}

test('a shader that the driver refuses: no clip, with the CPU as the way out', { timeout: 300_000 }, async () => {
	const line = 'v += bias[col];';
	await assertLine('linear.wgsl', line);
	// The driver's report and the wrong values that follow race each other; either is right, and leads to the CPU.
	const codes = ['unsupported-feature', 'numeric'];
	const { other } = await assertNoClip(rewrite(line, 'v += no_such_array[col];'), codes, 'Use the CPU instead');
	await takeTheCpu(other);
});

/** Reports a lack of memory for the first buffer of the weights as a driver does: later, and not to the caller. */
const NO_MEMORY = `{
	let loading = false;
	addEventListener('message', ({ data }) => (loading ||= data.call === 'load'));
	const { createBuffer } = GPUDevice.prototype;
	GPUDevice.prototype.createBuffer = function (descriptor) {
		if (loading) {
			loading = false;
			const error = new GPUOutOfMemoryError('no memory for a buffer');
			queueMicrotask(() => this.dispatchEvent(new GPUUncapturedErrorEvent('uncapturederror', { error })));
		}
		return createBuffer.call(this, descriptor);
	};
}`;

test(
	'a GPU without memory for the weights: out-of-memory, with the CPU as the way out',
	{ timeout: 300_000 },
	async () => {
		const { other, error } = await assertNoClip(NO_MEMORY, ['out-of-memory'], 'Use the CPU instead');
		assert.match(await other.locator('#failure-text').innerText(), /ran out of memory.+ more time/);
		assert.equal(error.retryable, true);
		await takeTheCpu(other);
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
