// The demo as `./build.sh demo` starts it: a prompt on the command line becomes a file, or one sentence says why not.
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdtemp, readFile, readdir, realpath, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import { fileURLToPath } from 'node:url';

const DEMO = fileURLToPath(new URL('../../web/scripts/demo.mjs', import.meta.url));
const PROMPT = 'a red ball bounces on green grass under a blue sky';

/** Where the demo is started and where it puts its file; empty before each test. */
let folder;

beforeEach(async () => {
	folder = await realpath(await mkdtemp(join(tmpdir(), 'kinora-demo-')));
});
afterEach(() => rm(folder, { recursive: true }));

/** Runs the demo; the exit status is null where it had to be stopped. */
function demo(given, environment = {}) {
	const options = { cwd: folder, env: { ...process.env, ...environment }, timeout: 800_000 };
	return new Promise((resolve) => {
		execFile(process.execPath, [DEMO, ...given], options, (error, stdout, stderr) =>
			resolve({ status: error ? error.code : 0, stdout, stderr }),
		);
	});
}

/** A run that failed before it opened a browser: one line about it and no trace of the code, no report, no file. */
async function assertRefused({ status, stdout, stderr }, sentence) {
	assert.equal(status, 1, stderr);
	assert.match(stderr, /^demo: [^\n]+\n$/);
	assert.match(stderr, sentence);
	assert.equal(stdout, '');
	assert.deepEqual(await readdir(folder), []);
}

test('a prompt becomes an MP4, and the report says what it took', { timeout: 300_000 }, async () => {
	const { status, stdout, stderr } = await demo([PROMPT, '--seed', '7', '--device', 'cpu', '--out', 'ball.mp4']);
	assert.equal(status, 0, stderr);
	assert.deepEqual(await readdir(folder), ['ball.mp4']);
	const file = await readFile(join(folder, 'ball.mp4'));
	assert.equal(file.toString('latin1', 4, 8), 'ftyp');
	assert.ok(file.includes('moov'), 'the file is complete');

	const manifest = JSON.parse(await readFile(new URL('../../web/dist/model/manifest.json', import.meta.url), 'utf8'));
	const [{ width, height, frames }] = manifest.video.sizes;
	const lines = stdout.trimEnd().split('\n');
	const rows = new Map(lines.map((line) => line.match(/^([^:]+): +(.+)$/)?.slice(1) ?? [line]));
	assert.equal(rows.get('file'), join(folder, 'ball.mp4'));
	assert.equal(rows.get('clip'), `${width} x ${height}, ${frames[0]} frames at ${manifest.video.fps} per second, avc`);
	assert.equal(rows.get('seed'), '7');
	assert.equal(rows.get('model'), manifest.name);
	assert.equal(rows.get('device'), 'cpu');
	const megabytes = rows.get('downloaded')?.match(/^(\d+\.\d) MB$/)?.[1];
	const shards = manifest.shards.reduce((sum, { bytes }) => sum + bytes, 0);
	assert.ok(Number(megabytes) > shards / 1e6, `${rows.get('downloaded')} with the engine, ${shards} bytes without`);

	const steps = manifest.sampler.sigmas.map((_, index) => `step ${index + 1}`);
	const stages = ['engine start', 'download', 'warm-up', 'text', ...steps, 'previews', 'decoding', 'encoding'];
	const seconds = [...stages, 'total'].map((name) => {
		assert.match(rows.get(name) ?? '', /^\d+\.\d\d s$/, `time of ${name}`);
		return Number.parseFloat(rows.get(name));
	});
	const total = seconds.pop();
	// Each figure is rounded to hundredths.
	assert.ok(seconds.reduce((sum, time) => sum + time, 0) <= total + 0.01 * stages.length, stdout);
	assert.ok(total > 0, stdout);

	// What goes on is told on the other stream, so that the report can be kept.
	assert.ok(stderr.startsWith(`Prompt: ${PROMPT}\n`), stderr);
	assert.match(stderr, /^Adapter: none used; computing on cpu$/m);
	assert.match(stderr, new RegExp(`^ *\\d+ % {2}Drawing, step ${steps.length} of ${steps.length}$`, 'm'));
});

test('another size of the model', { timeout: 300_000 }, async () => {
	const { status, stdout, stderr } = await demo([PROMPT, '--seed', '7', '--device', 'cpu', '--size', '176x96']);
	assert.equal(status, 0, stderr);
	assert.match(stdout, /^clip: +176 x 96, 17 frames /m);
	assert.deepEqual(await readdir(folder), ['clip.mp4']);
});

test('on WebGPU too, emulated where there is no other', { timeout: 900_000 }, async () => {
	const { status, stdout, stderr } = await demo([PROMPT, '--seed', '7', '--device', 'webgpu', '--out', 'gpu.mp4']);
	assert.equal(status, 0, stderr);
	assert.match(stderr, /^Adapter: .+; computing on webgpu$/m);
	assert.match(stdout, /^device: +webgpu: .+$/m);
	assert.equal((await readFile(join(folder, 'gpu.mp4'))).toString('latin1', 4, 8), 'ftyp');
});

for (const [what, given, sentence] of [
	['an empty prompt', ['  ', '--device', 'cpu'], /The prompt is empty\. Say in a few words .+\.$/m],
	['a device that does not exist', [PROMPT, '--device', 'gpu'], /--device is webgpu or cpu, not gpu\.$/m],
	['a seed that is no number', [PROMPT, '--seed', 'seven'], /--seed is a whole number from 0 up, not seven\.$/m],
	// Node's own words for this one have three lines.
	['an option without its value', [PROMPT, '--device', '--seed', '7'], /'--device' .+[^.]\. Usage: demo /],
	['an option that does not exist', [PROMPT, '--frames', '17'], /Unknown option '--frames'.+ Usage: demo /],
	[
		'a size that the model does not make',
		[PROMPT, '--size', '64x64'],
		/--size is 128x128 or 176x96 with this .+ 64x64\.$/m,
	],
]) {
	test(`${what}: one sentence and no file`, async () => {
		await assertRefused(await demo([...given]), sentence);
	});
}

// Elsewhere Chrome is also looked for where it is usually installed.
const skip = process.platform !== 'linux';

test('no browser on this machine: one sentence and no file', { skip }, async () => {
	const nowhere = { CHROMIUM: join(folder, 'chromium'), PATH: folder, PLAYWRIGHT_BROWSERS_PATH: folder };
	const run = await demo([PROMPT, '--device', 'cpu'], nowhere);
	await assertRefused(run, /No Chromium or Chrome was found\. Set CHROMIUM to the path of one\.$/m);
});

test(
	'a browser that crashes on the page, as Chromium does without fonts: one sentence and no file',
	{ skip },
	async () => {
		const settings = await mkdtemp(join(tmpdir(), 'kinora-fonts-'));
		const FONTCONFIG_FILE = join(settings, 'fonts.conf');
		await writeFile(FONTCONFIG_FILE, '<?xml version="1.0"?><fontconfig></fontconfig>');
		try {
			const run = await demo([PROMPT, '--device', 'cpu'], { FONTCONFIG_FILE });
			await assertRefused(run, /Chromium crashed while it opened the page\. .+ fonts-dejavu-core.+ CHROMIUM .+\.$/m);
		} finally {
			await rm(settings, { recursive: true });
		}
	},
);

test(
	'a prompt that the model cannot take: its sentence comes last, and there is no file',
	{ timeout: 300_000 },
	async () => {
		const { status, stdout, stderr } = await demo(['a red ball '.repeat(40), '--device', 'cpu']);
		assert.equal(status, 1, stderr);
		const lines = stderr.trimEnd().split('\n');
		assert.match(lines.at(-1), /^demo: The prompt needs \d+ tokens .+\. Shorten the prompt\. \(prompt-too-long\)$/);
		assert.equal(lines.filter((line) => line.startsWith('demo: ')).length, 1);
		assert.doesNotMatch(stderr, /^\s+at /m);
		assert.equal(stdout, '');
		assert.deepEqual(await readdir(folder), []);
	},
);
