// LoRAs on the page: by address and as bytes, on both devices, with another strength and away again without a reload.
import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, afterEach, before, test } from 'node:test';
import { writeSafetensors } from './safetensors.mjs';
import { TINY, outcome, psnr, start } from './support.mjs';

const REQUEST = { prompt: 'a red ball bounces on green grass', seed: 7 };

/** A LoRA for three layers of the tiny model, strong enough to be seen. */
function lora(salt) {
	const matrix = (rows, columns, seed) => {
		const values = Float32Array.from(
			{ length: rows * columns },
			(_, index) => (((index * 7919 + seed * 104_729) % 1009) / 504.5 - 1) * 0.6,
		);
		return { dtype: 'F32', shape: [rows, columns], bytes: new Uint8Array(values.buffer) };
	};
	const tensors = new Map();
	for (const [index, [name, rows, columns]] of [
		['blocks.0.self_attn.v', 64, 64],
		['blocks.1.ffn.2', 64, 160],
		['head.head', 32, 64],
	].entries()) {
		tensors.set(`diffusion_model.${name}.lora_down.weight`, matrix(3, columns, salt + index));
		tensors.set(`diffusion_model.${name}.lora_up.weight`, matrix(rows, 3, salt + 10 + index));
	}
	return writeSafetensors(tensors);
}

let site;

before(async () => {
	site = await start();
	await writeFile(join(site.tiny.folder, 'first.safetensors'), lora(1));
	await writeFile(join(site.tiny.folder, 'second.safetensors'), lora(50));
	await writeFile(join(site.tiny.folder, 'text.safetensors'), 'no LoRA at all');
	await writeFile(
		join(site.tiny.folder, 'other.safetensors'),
		writeSafetensors(
			new Map([['blocks.9.attn1.to_q.lora_A.weight', { dtype: 'F32', shape: [1, 1], bytes: new Uint8Array(4) }]]),
		),
	);
});
after(() => site.stop());
afterEach(() => site.clear());

/** Makes a clip through the element, with the attribute `loras` or with options. */
async function make(page, { attribute, loras } = {}) {
	const found = outcome(page);
	await page.evaluate(
		async ({ request, attribute, loras }) => {
			const video = document.querySelector('kinora-video');
			video.toggleAttribute('loras', false);
			if (attribute !== undefined) {
				video.setAttribute('loras', attribute);
			}
			const options = loras?.map(({ base64, ...rest }) =>
				base64 ? { ...rest, bytes: Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0)) } : rest,
			);
			await video.generate(options ? { ...request, loras: options } : request).catch(() => undefined);
		},
		{ request: REQUEST, attribute, loras },
	);
	return found;
}

/** A server that mounts files reads its list once, before the LoRAs were there; this hands them out. */
const prepare = (context) =>
	context.route('**/tiny/*.safetensors', async (route) => {
		await route.fulfill({ path: join(site.tiny.folder, new URL(route.request().url()).pathname.split('/').pop()) });
	});

for (const device of ['cpu', 'webgpu']) {
	test(`a LoRA changes the clip by its strength and leaves no trace, on ${device}`, async () => {
		const page = await site.open(`${TINY}&device=${device}`, { prepare });
		const plain = await make(page);
		assert.equal(plain.error, undefined, plain.error?.message);
		assert.equal(plain.engine.device, device);
		page.requests.length = 0;
		const fetched = () => page.requests.filter((url) => !url.startsWith('blob:')).map((url) => url.split('/').pop());

		const full = await make(page, { attribute: 'tiny/first.safetensors' });
		assert.equal(full.error, undefined, full.error?.message);
		assert.notEqual(full.hash, plain.hash);
		assert.deepEqual(full.checks, [], 'the model stays loaded');
		assert.ok(full.progress.some(({ stage }) => stage === 'lora'));
		assert.equal(full.bytesDownloaded, lora(1).length);
		const half = await make(page, { attribute: ' tiny/first.safetensors=0.5 ' });
		assert.ok(![plain.hash, full.hash].includes(half.hash));
		assert.equal((await make(page, { attribute: 'tiny/first.safetensors=0' })).hash, plain.hash);
		assert.equal((await make(page, { attribute: 'tiny/first.safetensors=1.0' })).hash, full.hash);
		assert.deepEqual(fetched(), ['first.safetensors'], 'one download for every strength');

		const both = await make(page, {
			loras: [{ url: 'tiny/first.safetensors' }, { base64: lora(50).toString('base64'), strength: 0.8 }],
		});
		assert.ok(![plain.hash, full.hash].includes(both.hash));
		const swapped = await make(page, { attribute: 'tiny/second.safetensors=0.8 tiny/first.safetensors' });
		// The sums are taken in another order.
		assert.ok(psnr(both.pixels, swapped.pixels) > 50, `${psnr(both.pixels, swapped.pixels)} dB`);

		const empty = await make(page, { attribute: 'tiny/first.safetensors', loras: [] });
		assert.equal(empty.hash, plain.hash, 'options go before the attribute');
		assert.equal((await make(page)).hash, plain.hash, 'the base is what it was');
		assert.deepEqual(page.errors, []);
	});
}

test('a LoRA that cannot be used ends in a typed error, and the page goes on', async () => {
	const page = await site.open(`${TINY}&device=cpu`, { prepare });
	const plain = await make(page);
	for (const [request, code, says] of [
		[{ attribute: 'tiny/text.safetensors' }, 'lora', /not a safetensors file/],
		[{ attribute: 'tiny/other.safetensors' }, 'lora', /blocks\.9\.attn1\.to_q\.lora_A\.weight matches no weight/],
		[{ loras: [{ url: 'http://' }] }, 'invalid-request', /address/],
		[{ loras: [{ url: 'tiny/first.safetensors', strength: 'much' }] }, 'invalid-request', /much/],
		[{ attribute: 'tiny/first.safetensors tiny/first.safetensors' }, 'invalid-request', /twice/],
	]) {
		const { error } = await make(page, request);
		assert.equal(error?.code, code, JSON.stringify(error));
		assert.match(error.message, says);
		assert.equal(error.retryable, false);
	}
	const after = await make(page);
	assert.equal(after.hash, plain.hash);
	assert.deepEqual(after.checks, [], 'without loading the model again');
});
