// Models that make a clip chunk by chunk: any length, frames that play while the rest is made, and a file that is written
// meanwhile instead of pictures that pile up.
import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { after, afterEach, before, test } from 'node:test';
import { TINY, assertFailure, generate, make, start } from './support.mjs';

const { ALL_FORMATS, BufferSource, EncodedPacketSink, Input } = createRequire(
	new URL('../../web/package.json', import.meta.url),
)('mediabunny');

const REQUEST = { prompt: 'a red ball bounces on green grass', seed: 7 };
const CPU = `${TINY}&device=cpu`;
const FPS = 12;

let site;

before(async () => {
	site = await start();
});
after(() => site.stop());
afterEach(() => site.clear());

/** The tiny model, four frames after the other. */
const causal = (context) =>
	site.changed(({ sampler }) => {
		sampler.causal = { chunk_frames: 1, sink_frames: 0, window_frames: 2 };
	})(context);

const attribute = (page) => page.evaluate(() => document.querySelector('kinora-video').getAttribute('size'));

/** Frames and length in seconds of a video file, by another reader than the browser's. */
async function read(file) {
	const input = new Input({ formats: ALL_FORMATS, source: new BufferSource(file) });
	const track = await input.getPrimaryVideoTrack();
	let packets = 0;
	for await (const packet of new EncodedPacketSink(track).packets()) {
		packets += packet ? 1 : 0;
	}
	return { packets, seconds: await track.computeDuration() };
}

test('a length in seconds is asked for where the model makes any', async () => {
	const offered = await site.open(CPU);
	assert.equal(await offered.locator('#length-field').isVisible(), false);
	assert.equal(await offered.locator('#size option').count(), 2);

	const page = await site.open(CPU, { prepare: causal });
	await page.locator('#length-field').waitFor({ state: 'visible' });
	// One picture size, so there is nothing to choose but the length.
	assert.equal(await page.locator('#size-field').isVisible(), false);
	assert.equal(await attribute(page), '96x64x9');
	assert.equal(await page.inputValue('#length'), '0.75');
	await page.fill('#length', '1.7');
	await page.keyboard.press('Tab');
	// 1.7 s are 20.4 frames; a multiple of four and one are 21.
	await page.waitForFunction(() => document.querySelector('kinora-video').getAttribute('size') === '96x64x21');

	const { count, frameCount, file } = await make(page, REQUEST);
	assert.deepEqual([count, frameCount], [21, 21]);
	const { packets, seconds } = await read(file);
	assert.equal(packets, 21);
	assert.ok(Math.abs(seconds - 21 / FPS) < 0.01, `${seconds} s`);
	assert.match(await page.locator('#caption').innerText(), /1\.8 s/);
});

test('the address may name a length, and a length that cannot be is said', async () => {
	const page = await site.open(`${CPU}&size=96x64x13`, { prepare: causal });
	assert.equal(await attribute(page), '96x64x13');
	assert.ok(Math.abs((await page.inputValue('#length')) - 13 / FPS) < 0.01);
	const wrong = await site.open(`${CPU}&size=96x64x14`, { prepare: causal });
	assert.match(await wrong.locator('#size-notice').innerText(), /does not make 96x64x14; it will be 96 × 64/);
	const error = await wrong.evaluate(() =>
		document
			.querySelector('kinora-video')
			.generate({ prompt: 'a red ball', width: 96, height: 64, frames: 14 })
			.catch(({ code, message }) => ({ code, message })),
	);
	assert.equal(error.code, 'unsupported-size');
	assert.match(error.message, /or 1 to 4093 frames, a multiple of 4 plus 1/);
});

test('finished frames play at their pace while the rest is made', async () => {
	const page = await site.open(`${CPU}&size=96x64x61`, { prepare: causal });
	await page.evaluate(() => {
		const video = document.querySelector('kinora-video');
		globalThis.painted = [];
		globalThis.finished = [];
		const sum = (pixels) => pixels.reduce((total, value, index) => (total + value * (index + 1)) % 1e9, 0);
		const { putImageData } = CanvasRenderingContext2D.prototype;
		CanvasRenderingContext2D.prototype.putImageData = function (image, ...rest) {
			globalThis.painted.push({ at: performance.now(), sum: sum(image.data), state: video.state });
			return putImageData.call(this, image, ...rest);
		};
		video.addEventListener('frame', ({ detail }) => {
			if (detail.index !== undefined) {
				globalThis.finished[detail.index] = { at: performance.now(), sum: sum(detail.rgba) };
			}
		});
		video.addEventListener('progress', ({ detail }) => {
			if (detail.stage === 'denoise') {
				globalThis.lastStep = performance.now();
			}
		});
	});
	await make(page, REQUEST);
	const { painted, finished, lastStep } = await page.evaluate(() => {
		const { painted, finished, lastStep } = globalThis;
		return { painted, finished, lastStep };
	});
	assert.equal(finished.filter(Boolean).length, 61);
	const shown = painted.filter(({ sum }) => finished.some((frame) => frame.sum === sum));
	const early = shown.filter(({ at }) => at < lastStep);
	assert.ok(early.length >= 5, `${early.length} of ${shown.length} frames were painted before the last step ended`);
	const order = shown.map(({ sum }) => finished.findIndex((frame) => frame.sum === sum));
	assert.deepEqual(
		order,
		[...order].sort((one, other) => one - other),
		order.join(' '),
	);
	// A chunk's frames arrive within a few milliseconds of each other.
	const gaps = shown.slice(1).map(({ at }, index) => at - shown[index].at);
	assert.ok(Math.min(...gaps) > 0.4 * (1000 / FPS), gaps.map(Math.round).join(' '));
	// No guess is painted over what is finished.
	const after = painted.slice(painted.findIndex(({ sum }) => sum === shown[0].sum));
	assert.equal(after.length, shown.length);
});

test('frames that nobody wants to keep go into the file as they come', async () => {
	const kept = await make(await site.open(`${CPU}&size=96x64x37`, { prepare: causal }), REQUEST);
	const page = await site.open(`${CPU}&size=96x64x37`, { prepare: causal });
	await page.evaluate(() => document.querySelector('kinora-video').setAttribute('keep-frames', 'no'));
	const { count, frameCount, file, codec, extension } = await make(page, REQUEST);
	assert.deepEqual([count, frameCount, codec, extension], [0, 37, kept.codec, kept.extension]);
	assert.equal((await read(file)).packets, 37);
	const decoded = await page.evaluate(async () => {
		const { video } = document.querySelector('kinora-video');
		return { width: video.videoWidth, height: video.videoHeight, seconds: video.duration };
	});
	assert.deepEqual([decoded.width, decoded.height], [96, 64]);
	assert.ok(Math.abs(decoded.seconds - 37 / FPS) < 0.05, `${decoded.seconds} s`);
	// The same pictures by the same encoder: the size of the file tells if one were missing or out of its place.
	assert.ok(Math.abs(file.length / kept.file.length - 1) < 0.02, `${file.length} and ${kept.file.length} bytes`);
});

// Eight frames for the trial, eight again, and some more: in the middle of a clip, and at its very last frame.
for (const [where, frames, good, most] of [
	['in the middle of a long clip ends it there', 81, 20, 60],
	['at the last frame is told, not taken for a cancel', 9, 16, 12],
]) {
	test(`an encoder that fails ${where}`, async () => {
		const page = await site.open(`${CPU}&size=96x64x${frames}`, { prepare: causal });
		await page.evaluate((good) => {
			document.querySelector('kinora-video').setAttribute('keep-frames', 'no');
			const { encode } = VideoEncoder.prototype;
			let count = 0;
			VideoEncoder.prototype.encode = function (...rest) {
				if (++count > good) {
					throw new DOMException('the encoder is gone', 'OperationError');
				}
				return encode.apply(this, rest);
			};
		}, good);
		const { error, progress } = await generate(page, REQUEST);
		assert.equal(error?.code, 'encode', error?.message);
		assert.match(error.message, /the encoder is gone/);
		await assertFailure(page, 'encode', 'Try again');
		// Of four steps for each chunk of four frames.
		const steps = new Set(progress.flatMap(({ text }) => text.match(/step \d+/) ?? []));
		assert.ok(steps.size <= most, `${steps.size} steps were made for a clip that could not be saved`);
	});
}
