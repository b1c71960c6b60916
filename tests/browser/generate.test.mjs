// The built-in model on the CPU: from a prompt to a video file, and what a visitor may rely on.
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdtemp, readFile, readdir, rm } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { homedir, tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { cancelAt, make, outcome, psnr, start } from './support.mjs';

const { ALL_FORMATS, BufferSource, EncodedPacketSink, Input } = createRequire(
	new URL('../../web/package.json', import.meta.url),
)('mediabunny');

const RED = { prompt: 'a red ball bounces on green grass under a blue sky', seed: 7 };
const BLUE = { prompt: 'a blue ball bounces on green grass under a blue sky', seed: 7 };

let site;
/** The page most tests share: its model stays loaded. */
let page;
let red;

before(async () => {
	site = await start();
	page = await site.open('device=cpu');
});
after(() => site.stop());
afterEach(() => assert.deepEqual(page.errors, []));

test('nothing but the manifest is fetched before Generate is clicked', () => {
	const weights = page.requests.filter((url) => /\.(bin|wasm)|tokenizer/.test(url));
	assert.deepEqual(weights, []);
	assert.ok(page.requests.some((url) => url.endsWith('model/manifest.json')));
});

test('a prompt becomes an MP4 of the promised size, length and codec', async () => {
	red = await make(page, RED);
	assert.equal(red.engine.device, 'cpu');
	assert.equal(red.codec, 'avc');
	assert.match(red.mimeType, /^video\/mp4/);
	assert.equal(red.count, 17);
	assert.equal(red.pixels.length, 17 * 128 * 128 * 4);
	assert.ok(red.previews >= 1, 'the picture is shown while it forms');

	const input = new Input({ source: new BufferSource(red.file), formats: ALL_FORMATS });
	const track = await input.getPrimaryVideoTrack();
	assert.equal(track.codec, 'avc');
	assert.deepEqual([track.displayWidth, track.displayHeight], [128, 128]);
	const stats = await track.computePacketStats();
	assert.equal(stats.packetCount, 17);
	assert.ok(Math.abs(stats.averagePacketRate - 12) < 0.01, `${stats.averagePacketRate} frames per second`);
	assert.ok(Math.abs((await input.computeDuration()) - 17 / 12) < 0.01);
	assert.equal((await new EncodedPacketSink(track).getFirstPacket()).type, 'key');
});

test('the first preview comes after the first step and before the last', () => {
	const { stage, text } = red.beforePreview ?? {};
	const [, coming, steps] = (text?.match(/step (\d+) of (\d+)/) ?? []).map(Number);
	assert.deepEqual([stage, coming], ['denoise', 2], text);
	assert.ok(coming < steps, text);
});

test('the file says that it is AI-generated, by what and from which seed, and never the prompt', async () => {
	const input = new Input({ source: new BufferSource(red.file), formats: ALL_FORMATS });
	const { comment } = await input.getMetadataTags();
	assert.match(comment, /AI-generated/);
	assert.match(comment, /trainedAlgorithmicMedia/);
	assert.match(comment, new RegExp(`Model: ${red.model}\\. Seed: 7\\.`));
	assert.ok(!red.file.includes('red ball'));
});

test('the browser plays the file, and its pictures are the generated ones', async () => {
	const played = await page.evaluate(async () => {
		const { video } = document.querySelector('kinora-video');
		video.pause();
		video.currentTime = 0;
		await new Promise((resolve) => video.addEventListener('seeked', resolve, { once: true }));
		const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
		const context = canvas.getContext('2d');
		context.drawImage(video, 0, 0);
		return {
			width: video.videoWidth,
			height: video.videoHeight,
			duration: video.duration,
			pixels: [...context.getImageData(0, 0, canvas.width, canvas.height).data],
		};
	});
	assert.deepEqual([played.width, played.height], [128, 128]);
	assert.ok(Math.abs(played.duration - 17 / 12) < 0.1);
	let difference = 0;
	for (let index = 0; index < played.pixels.length; index++) {
		difference += Math.abs(played.pixels[index] - red.pixels[index]);
	}
	assert.ok(difference / played.pixels.length < 12, `mean difference ${difference / played.pixels.length}`);
});

test('the progress never falls, starts near nothing and ends complete', () => {
	const values = red.progress.map(({ value }) => value);
	assert.ok(values[0] < 0.02 && values.at(-1) === 1, `${values[0]} to ${values.at(-1)}`);
	assert.ok(values.every((value, index) => index === 0 || value >= values[index - 1]));
	const stages = [...new Set(red.progress.map(({ stage }) => stage))];
	assert.deepEqual(stages, ['engine', 'download', 'warmup', 'text', 'denoise', 'decode', 'encode']);
});

test('the result accounts for every stage and every byte', async () => {
	const { timings } = red;
	assert.ok(timings.steps.length > 0);
	const measured = [
		timings.engine,
		timings.download,
		timings.warmup,
		timings.text,
		...timings.steps,
		timings.decode,
		timings.encode,
	];
	assert.ok(
		measured.every((time) => time > 0),
		JSON.stringify(timings),
	);
	assert.ok(measured.reduce((sum, time) => sum + time, timings.preview) <= timings.total + 1);
	const bytes = await page.evaluate(
		async () => (await document.querySelector('kinora-video').availability()).manifest.totalBytes,
	);
	assert.ok(red.bytesDownloaded > bytes, 'model and engine');
	assert.ok(red.checks.length > 0 && red.checks.every(({ error, tolerance }) => error <= tolerance));
});

test('the same seed gives the same frames, without one request to any server', async () => {
	page.requests.length = 0;
	const again = await make(page, RED);
	assert.equal(again.hash, red.hash);
	assert.equal(again.bytesDownloaded, 0);
	assert.deepEqual(
		page.requests.filter((url) => !url.startsWith('blob:')),
		[],
	);
});

/** The native program; `./build.sh test` names it. */
const CLI = process.env.KINORA_CLI ?? join(homedir(), '.cache/kinora/target/release/kinora');

test('the native program makes the same frames', { timeout: 120_000 }, async () => {
	const folder = await mkdtemp(join(tmpdir(), 'kinora-native-'));
	try {
		const model = fileURLToPath(new URL('../../model-shards', import.meta.url));
		await promisify(execFile)(CLI, [
			'generate',
			'--model',
			model,
			'--prompt',
			RED.prompt,
			'--seed',
			String(RED.seed),
			'--device',
			'cpu',
			'--out',
			folder,
		]);
		const names = (await readdir(folder)).filter((name) => name.startsWith('frame-')).sort();
		assert.equal(names.length, red.count);
		const files = await Promise.all(names.map(async (name) => (await readFile(join(folder, name))).toString('base64')));
		// The browser reads its own picture format; nothing else here can.
		const pixels = await page.evaluate(async (pictures) => {
			const canvas = new OffscreenCanvas(1, 1);
			const parts = [];
			for (const base64 of pictures) {
				const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
				const bitmap = await createImageBitmap(new Blob([bytes], { type: 'image/png' }), {
					colorSpaceConversion: 'none',
				});
				[canvas.width, canvas.height] = [bitmap.width, bitmap.height];
				const context = canvas.getContext('2d', { willReadFrequently: true });
				context.drawImage(bitmap, 0, 0);
				parts.push(context.getImageData(0, 0, bitmap.width, bitmap.height).data);
			}
			const reader = new FileReader();
			return new Promise((resolve) => {
				reader.addEventListener('load', () => resolve(reader.result.split(',')[1]), { once: true });
				reader.readAsDataURL(new Blob(parts));
			});
		}, files);
		const decibels = psnr(red.pixels, Buffer.from(pixels, 'base64'));
		assert.ok(decibels >= 45, `${decibels} dB`);
	} finally {
		await rm(folder, { recursive: true });
	}
});

test('another seed gives another video', async () => {
	const other = await make(page, { ...RED, seed: 8 });
	assert.notEqual(other.hash, red.hash);
});

/** How much the pixels lean towards one channel: the mean by which it exceeds the larger of the other two, 0 to 255. */
function tint(pixels, channel) {
	let sum = 0;
	for (let index = 0; index < pixels.length; index += 4) {
		const [one, two] = [0, 1, 2].filter((other) => other !== channel).map((other) => pixels[index + other]);
		sum += Math.max(0, pixels[index + channel] - Math.max(one, two));
	}
	return sum / (pixels.length / 4);
}

test('another size has its own shape and follows the prompt, and the first is as before it', async () => {
	await page.selectOption('#size', '176x96x17');
	const [reds, blues] = [await make(page, RED), await make(page, BLUE)];
	assert.equal(reds.pixels.length, 17 * 176 * 96 * 4);
	const track = await new Input({
		source: new BufferSource(reds.file),
		formats: ALL_FORMATS,
	}).getPrimaryVideoTrack();
	assert.deepEqual([track.displayWidth, track.displayHeight], [176, 96]);
	const found = {
		red: [tint(reds.pixels, 0), tint(blues.pixels, 0)],
		blue: [tint(reds.pixels, 2), tint(blues.pixels, 2)],
	};
	assert.ok(found.red[0] > found.red[1] + 0.5, JSON.stringify(found));
	assert.ok(found.blue[1] > found.blue[0] + 0.5, JSON.stringify(found));
	await page.selectOption('#size', '128x128x17');
	assert.equal((await make(page, RED)).hash, red.hash);
});

test('the colour in the prompt is the colour in the video', async () => {
	// Under a grey sky nothing but the ball is blue or red, and the same scene twice counts the same on both sides.
	const clip = (colour) =>
		make(page, { prompt: `a ${colour} ball bounces on green grass under an overcast sky`, seed: 7 });
	const [reds, blues] = [await clip('red'), await clip('blue')];
	const found = {
		red: [tint(reds.pixels, 0), tint(blues.pixels, 0)],
		blue: [tint(reds.pixels, 2), tint(blues.pixels, 2)],
	};
	assert.ok(found.red[0] > found.red[1] + 2, JSON.stringify(found));
	assert.ok(found.blue[1] > found.blue[0] + 2, JSON.stringify(found));
});

test('the colour in the prompt holds against other colour words', async () => {
	const blue = await make(page, BLUE);
	const found = { red: [tint(red.pixels, 0), tint(blue.pixels, 0)], blue: [tint(red.pixels, 2), tint(blue.pixels, 2)] };
	assert.ok(found.red[0] > found.red[1] + 0.5, JSON.stringify(found));
	assert.ok(found.blue[1] > found.blue[0] + 0.5, JSON.stringify(found));
});

test('words the model does not know are named, and the video is made all the same', async () => {
	const made = await make(page, { prompt: 'a red helicopter on green grass', seed: 3 });
	assert.deepEqual(made.unknownWords, ['helicopter']);
	assert.match(await page.locator('#words').innerText(), /“helicopter”/);
});

for (const stage of ['denoise', 'decode']) {
	test(`cancelling in the stage ${stage} ends the run within two seconds, and the next one works`, async () => {
		const ended = cancelAt(page, stage);
		await page.fill('#prompt', RED.prompt);
		await page.fill('#seed', '7');
		await page.click('#generate');
		const { state, took } = await ended;
		assert.equal(state, 'idle');
		assert.ok(took < 2000, `${took} ms`);
		assert.equal(await page.locator('#running').isVisible(), false);
		const shown = () => document.querySelector('kinora-video').shadowRoot.querySelector('.shown').localName;
		assert.equal(await page.evaluate(shown), 'video', 'the last clip again, no half-finished picture');
		const next = await make(page, RED);
		assert.equal(next.hash, red.hash);
		// If the worker had to be ended, the model came from this device's storage.
		assert.ok(!page.requests.some((url) => url.endsWith('.bin')));
	});
}

test('the video can be saved, paused and looped', async () => {
	const arriving = page.waitForEvent('download');
	await page.getByRole('link', { name: 'Save video' }).click();
	assert.equal((await arriving).suggestedFilename(), 'kinora-7.mp4');
	const playing = () => page.evaluate(() => !document.querySelector('kinora-video').video.paused);
	const before = await playing();
	await page.locator('#play').click();
	assert.equal(await playing(), !before);
	const loop = page.getByRole('button', { name: 'Loop' });
	await loop.click();
	assert.equal(await loop.getAttribute('aria-pressed'), 'false');
});

test('another take keeps the prompt and draws a new seed', async () => {
	const found = outcome(page);
	await page.getByRole('button', { name: 'Another take' }).click();
	const take = await found;
	assert.equal(take.error, undefined);
	assert.notEqual(take.seed, 7);
	assert.equal(await page.inputValue('#seed'), String(take.seed));
	assert.notEqual(take.hash, red.hash);
});
