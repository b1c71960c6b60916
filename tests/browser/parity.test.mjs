// Every stage of the engine in the browser against the goldens of the PyTorch references, on both devices.
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { after, before, test } from 'node:test';
import { floats, readSafetensors, writeSafetensors } from './safetensors.mjs';
import { start } from './support.mjs';

/** Largest difference allowed, as a share of the largest value of the reference. */
const TOLERANCE = 1e-4;
const STAGES = ['encode-text', 'block0', 'denoise', 'sample', 'decode', 'encode'];

const goldens = readSafetensors(await readFile(new URL('../goldens/tiny.safetensors', import.meta.url)));

let site;
let page;

before(async () => {
	site = await start();
	page = await site.open('', { wait: false });
});
after(() => site.stop());

function tensorsOf(stage, direction) {
	const prefix = `${stage}.${direction}.`;
	return new Map(
		[...goldens]
			.filter(([name]) => name.startsWith(prefix))
			.map(([name, tensor]) => [name.slice(prefix.length), tensor]),
	);
}

/** Runs the stages on a fresh engine inside the page; the page's own worker is not involved. */
async function runStages(device, inputs) {
	const outputs = await page.evaluate(
		async ({ device, inputs }) => {
			const { default: init, Engine } = await import(new URL('engine/kinora.js', document.baseURI).href);
			await init({ module_or_path: fetch('engine/kinora_bg.wasm') });
			const text = async (name) => (await fetch(`tiny/${name}`)).text();
			const manifest = await text('manifest.json');
			const engine = await Engine.create(manifest, await text('tokenizer.json'), { device });
			for (const index of engine.missingShards()) {
				const shard = await fetch(`tiny/${JSON.parse(manifest).shards[index].path}`);
				await engine.addShard(index, new Uint8Array(await shard.arrayBuffer()));
			}
			const results = {};
			for (const [stage, bytes] of Object.entries(inputs)) {
				results[stage] = [
					...(await engine.runStage(
						stage,
						Uint8Array.from(atob(bytes), (letter) => letter.charCodeAt(0)),
					)),
				];
			}
			engine.free();
			return results;
		},
		{ device, inputs },
	);
	return new Map(Object.entries(outputs).map(([stage, bytes]) => [stage, readSafetensors(Uint8Array.from(bytes))]));
}

for (const device of ['cpu', 'webgpu']) {
	test(`every stage agrees with PyTorch on ${device}`, async (context) => {
		const inputs = Object.fromEntries(
			STAGES.map((stage) => [stage, writeSafetensors(tensorsOf(stage, 'in')).toString('base64')]),
		);
		const outputs = await runStages(device, inputs);
		for (const stage of STAGES) {
			await context.test(stage, () => {
				for (const [name, reference] of tensorsOf(stage, 'out')) {
					const expected = floats(reference);
					const found = floats(outputs.get(stage).get(name));
					assert.deepEqual(outputs.get(stage).get(name).shape, reference.shape);
					const scale = expected.reduce((largest, value) => Math.max(largest, Math.abs(value)), 0);
					const worst = expected.reduce((most, value, index) => Math.max(most, Math.abs(value - found[index])), 0);
					assert.ok(worst <= TOLERANCE * scale, `${name} is off by ${(worst / scale).toExponential(2)}`);
				}
			});
		}
	});
}

test('a stage refuses tensors of the wrong shape with a typed error', async () => {
	const [latents] = tensorsOf('decode', 'in').values();
	const wrong = writeSafetensors(
		new Map([['latents', { ...latents, shape: [latents.shape.reduce((a, b) => a * b, 1)] }]]),
	);
	await assert.rejects(runStages('cpu', { decode: wrong.toString('base64') }), /decode|latents|shape/);
});
