// One stage of a packed model in Chromium: `node stage.mjs --model DIR --device cpu|webgpu --in FILE --out FILE`.
// Prints what it took as JSON. Needs the built page.
import { mkdtemp, copyFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { launch } from '../../web/scripts/browser.mjs';
import { serve } from '../../web/scripts/serve.mjs';

const { values } = parseArgs({
	options: {
		model: { type: 'string' },
		device: { type: 'string', default: 'cpu' },
		stage: { type: 'string', default: 'denoise' },
		in: { type: 'string' },
		out: { type: 'string' },
	},
});

const inputs = await mkdtemp(join(tmpdir(), 'kinora-full-size-'));
await copyFile(values.in, join(inputs, 'in.safetensors'));
const server = await serve({
	mounts: {
		'full-size/model/': values.model,
		'full-size/inputs/': inputs,
		'full-size/': fileURLToPath(new URL('.', import.meta.url)),
	},
});
const browser = await launch({ gpu: 'software' });
try {
	const page = await browser.newPage();
	page.on('console', (message) => console.error(message.text()));
	await page.goto(server.url);
	const result = await page.evaluate(
		({ device, stage }) =>
			new Promise((resolve) => {
				const at = (path) => new URL(path, document.baseURI).href;
				const worker = new Worker(at('full-size/worker.mjs'), { type: 'module' });
				worker.onmessage = ({ data }) => resolve(data);
				worker.onerror = ({ message }) => resolve({ error: message || 'the worker could not be started' });
				const input = at('full-size/inputs/in.safetensors');
				worker.postMessage({ site: document.baseURI, model: at('full-size/model/'), device, stage, input });
			}),
		{ device: values.device, stage: values.stage },
	);
	if (result.error) {
		console.error(result.error);
		process.exitCode = 1;
	} else {
		await writeFile(values.out, Uint8Array.from(result.output));
		console.log(JSON.stringify(result.facts));
	}
} finally {
	await browser.close();
	await server.close();
	await rm(inputs, { recursive: true });
}
