// Makes one clip the way a visitor does: opens the page in a headless browser, types the prompt, clicks Generate and
// saves the video. `node scripts/demo.mjs ["PROMPT"] [--seed N] [--size WxH] [--out clip.mp4] [--device webgpu|cpu]`
import { readFile } from 'node:fs/promises';
import { extname, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { serve } from './serve.mjs';
import { Failure, generate, run, visit } from './visit.mjs';

function readArguments() {
	let parsed;
	try {
		parsed = parseArgs({
			allowPositionals: true,
			options: Object.fromEntries(['seed', 'size', 'out', 'device'].map((name) => [name, { type: 'string' }])),
		});
	} catch (error) {
		// Node explains some mistakes over several lines; the first one says what is wrong.
		const reason = error.message.split('\n')[0].replace(/\.$/, '');
		throw new Failure(
			`${reason}. Usage: demo ["PROMPT"] [--seed N] [--size WxH] [--out clip.mp4] [--device webgpu|cpu]`,
		);
	}
	const { values, positionals } = parsed;
	if (values.device !== undefined && !['webgpu', 'cpu'].includes(values.device)) {
		throw new Failure(`--device is webgpu or cpu, not ${values.device}.`);
	}
	if (values.seed !== undefined && !/^\d+$/.test(values.seed)) {
		throw new Failure(`--seed is a whole number from 0 up, not ${values.seed}.`);
	}
	const prompt = positionals.join(' ').trim();
	if (positionals.length && !prompt) {
		throw new Failure(
			'The prompt is empty. Say in a few words what the clip should show, or leave it out for an example.',
		);
	}
	return { ...values, prompt };
}

const seconds = (milliseconds) => `${(milliseconds / 1000).toFixed(2)} s`;

function report(result, path) {
	const { timings, engine } = result;
	const rows = [
		['file', path],
		[
			'clip',
			`${result.width} x ${result.height}, ${result.frames} frames at ${result.fps} per second, ${result.codec}`,
		],
		['seed', result.seed],
		['model', result.model],
		[
			'device',
			engine.device === 'cpu' ? 'cpu' : `webgpu: ${engine.adapter}${engine.software ? ' (emulated on the CPU)' : ''}`,
		],
		['downloaded', `${(result.bytesDownloaded / 1e6).toFixed(1)} MB`],
		['engine start', seconds(timings.engine)],
		['download', seconds(timings.download)],
		['warm-up', seconds(timings.warmup)],
		['text', seconds(timings.text)],
		...timings.steps.map((step, index) => [`step ${index + 1}`, seconds(step)]),
		['previews', seconds(timings.preview)],
		['decoding', seconds(timings.decode)],
		['encoding', seconds(timings.encode)],
		['total', seconds(timings.total)],
	];
	for (const [name, value] of rows) {
		console.log(`${`${name}:`.padEnd(14)}${value}`);
	}
	if (result.unknownWords.length > 0) {
		console.log(`The model does not know: ${result.unknownWords.join(', ')}`);
	}
}

function checkSize(asked, { video }) {
	const offered = video.sizes.map(({ width, height }) => `${width}x${height}`);
	if (asked !== undefined && !offered.includes(asked)) {
		throw new Failure(`--size is ${offered.join(' or ')} with this model, not ${asked}.`);
	}
}

async function save(page, result, out) {
	const arriving = page.waitForEvent('download');
	await page.getByRole('link', { name: 'Save video' }).click();
	const wanted = resolve(process.cwd(), out);
	// Without an H.264 encoder the clip may be WebM; a wrong name would not play.
	const path =
		extname(wanted) === result.extension
			? wanted
			: `${wanted.slice(0, wanted.length - extname(wanted).length)}${result.extension}`;
	await (await arriving).saveAs(path);
	return path;
}

async function main() {
	const { prompt: given, seed, size, device, out = 'clip.mp4' } = readArguments();
	const manifest = JSON.parse(
		await readFile(fileURLToPath(new URL('../dist/model/manifest.json', import.meta.url)), 'utf8').catch(() => '{}'),
	);
	const prompt = given || manifest.examples?.[0];
	if (!prompt) {
		throw new Failure('web/dist holds no built page with a model; ./build.sh demo builds it.');
	}
	checkSize(size, manifest);
	const server = await serve();
	let opened;
	try {
		opened = await visit(server.url, device, size);
		const { probe, device: used } = opened.availability;
		console.error(`Prompt: ${prompt}`);
		console.error(
			`Adapter: ${probe?.adapter ?? 'none used'}${probe?.software ? ' (emulated)' : ''}; computing on ${used}`,
		);
		const result = await generate(opened, prompt, seed, (percent, text) =>
			console.error(`${String(percent).padStart(3)} %  ${text}`),
		);
		report(result, await save(opened.page, result, out));
	} finally {
		await opened?.browser.close();
		await server.close();
	}
}

run('demo', main);
