// One clip of a packed model from the page itself, its worker and its storage: `node page.mjs --model DIR --device
// cpu|webgpu --residency together|turns`. Prints what it took as JSON, the plan beside it. Needs the built page.
import { readFile } from 'node:fs/promises';
import { parseArgs } from 'node:util';
import { launch } from '../../web/scripts/browser.mjs';
import { serve } from '../../web/scripts/serve.mjs';
import { injectIntoWorker, make, planned, settled } from '../browser/support.mjs';

const { values } = parseArgs({
	options: {
		model: { type: 'string' },
		device: { type: 'string', default: 'cpu' },
		residency: { type: 'string', default: 'together' },
	},
});

const server = await serve({ mounts: { 'full-size/': values.model } });
const browser = await launch({ gpu: 'software' });
try {
	const context = await browser.newContext();
	await injectIntoWorker(context, await readFile(new URL('meter.js', import.meta.url), 'utf8'));
	const page = await context.newPage();
	await page.goto(`${server.url}?model=full-size&device=${values.device}&residency=${values.residency}`);
	await settled(page);
	const plan = planned(page);
	const started = performance.now();
	const { engine, count, hash } = await make(page, { prompt: 'a red ball', seed: 7 });
	const seconds = Math.round((performance.now() - started) / 100) / 10;
	const [worker] = page.workers();
	const taken = await worker.evaluate(() => meter());
	const { residency, engine: host, gpu } = await plan;
	const figures = { plannedWasmMiB: Math.round(host / 2 ** 20), plannedGpuMiB: Math.round(gpu / 2 ** 20) };
	console.log(JSON.stringify({ device: engine.device, residency, frames: count, hash, seconds, ...taken, ...figures }));
} finally {
	await browser.close();
	await server.close();
}
