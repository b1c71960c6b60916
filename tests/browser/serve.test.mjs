// The program behind `./build.sh serve`: a page with a packed model of one's own beside it.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { after, afterEach, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { make, settled, start } from './support.mjs';

const PROGRAM = fileURLToPath(new URL('../../web/scripts/serve.mjs', import.meta.url));

/** A folder that holds no model. */
const HERE = fileURLToPath(new URL('.', import.meta.url));

let site;
let running;

before(async () => {
	site = await start();
});
after(() => site.stop());
afterEach(() => {
	running?.kill();
	return site.clear();
});

/** Its first line, or how it ended without one. */
function serve(...words) {
	running = spawn(process.execPath, [PROGRAM, ...words]);
	return new Promise((resolve) => {
		let stderr = '';
		running.stderr.on('data', (text) => (stderr += text));
		running.stdout.once('data', (text) => resolve({ address: String(text).trim() }));
		running.once('close', (status) => resolve({ status, stderr }));
	});
}

test('a packed folder is served beside the page, under the address that is printed', async () => {
	const { address } = await serve('--model', site.tiny.folder);
	assert.match(address, /^http:\/\/127\.0\.0\.1:\d+\/\?model=models\/kinora-tiny-\w+$/);
	const context = await site.browser.newContext();
	const page = await context.newPage();
	await page.goto(`${address}&device=cpu`);
	await settled(page);
	assert.match(await page.locator('#fact-model').innerText(), /Random weights/);
	const { count } = await make(page, { prompt: 'a red ball bounces on green grass', seed: 7 });
	assert.equal(count, 9);
	await context.close();
});

for (const [what, words, says] of [
	['a folder without a model', ['--model', HERE], /^serve: .+ has no manifest\.json; pack a model into it first\.\n$/],
	['a port that is none', ['--port', '99999'], /^serve: --port 99999 is no port; .+\n$/],
	['an unknown option', ['--modle', 'x'], /^serve: Unknown option '--modle'.*\n$/],
]) {
	test(`${what}: one sentence and no server`, async () => {
		const { status, stderr } = await serve(...words);
		assert.equal(status, 1);
		assert.match(stderr, says);
	});
}
