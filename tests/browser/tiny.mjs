// The tiny model of tests/goldens packed as f32 into shards of a few hundred kilobytes, written without the packer so
// that the engine reads the format from a second hand. Several shards and split tensors come for free.
import { createHash } from 'node:crypto';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { readSafetensors } from './safetensors.mjs';

const SOURCE = fileURLToPath(new URL('../goldens/tiny/', import.meta.url));
const SHARD_BYTES = 400_000;
const ALIGNMENT = 16;

const FIRST_USE = ['text_encoder.', 'transformer.', 'autoencoder.decoder.', 'autoencoder.encoder.'];

const sha256 = (bytes) => createHash('sha256').update(bytes).digest('hex');

function order(name) {
	const place = FIRST_USE.findIndex((prefix) => name.startsWith(prefix));
	return place < 0 ? FIRST_USE.length : place;
}

/**
 * @param {{shardBytes?: number}} options
 * @returns {Promise<{folder: string, manifest: object, remove: () => Promise<void>}>}
 */
export async function packTiny({ shardBytes = SHARD_BYTES } = {}) {
	const folder = await mkdtemp(join(tmpdir(), 'kinora-tiny-'));
	const manifest = JSON.parse(await readFile(join(SOURCE, 'model.json'), 'utf8'));
	const tokenizer = await readFile(join(SOURCE, 'tokenizer.json'));
	const weights = readSafetensors(await readFile(join(SOURCE, 'weights.safetensors')));
	const names = [...weights.keys()].sort((a, b) => order(a) - order(b) || (a < b ? -1 : 1));

	const stream = [];
	const tensors = {};
	let length = 0;
	for (const name of names) {
		const { shape, bytes } = weights.get(name);
		const gap = (ALIGNMENT - (length % ALIGNMENT)) % ALIGNMENT;
		stream.push(Buffer.alloc(gap), bytes);
		length += gap;
		const parts = [];
		for (let from = length; from < length + bytes.length;) {
			const shard = Math.floor(from / shardBytes);
			const to = Math.min(length + bytes.length, (shard + 1) * shardBytes);
			parts.push({ shard, offset: from - shard * shardBytes, bytes: to - from });
			from = to;
		}
		tensors[name] = { dtype: 'f32', shape, parts };
		length += bytes.length;
	}
	const all = Buffer.concat(stream);
	const count = Math.ceil(all.length / shardBytes);
	const shards = [];
	for (let index = 0; index < count; index++) {
		const bytes = all.subarray(index * shardBytes, (index + 1) * shardBytes);
		const path = `tiny-${String(index + 1).padStart(5, '0')}-of-${String(count).padStart(5, '0')}.bin`;
		await writeFile(join(folder, path), bytes);
		shards.push({ path, bytes: bytes.length, sha256: sha256(bytes) });
	}
	manifest.schema_version = 1;
	manifest.text_encoder.tokenizer = { path: 'tokenizer.json', bytes: tokenizer.length, sha256: sha256(tokenizer) };
	// As in the built-in model: what the engine needs of every adapter the page has to ask for by itself.
	manifest.requires.features = [];
	Object.assign(manifest, { shards, tensors });
	await writeFile(join(folder, 'tokenizer.json'), tokenizer);
	await writeFile(join(folder, 'manifest.json'), JSON.stringify(manifest));
	return { folder, manifest, remove: () => rm(folder, { recursive: true, force: true }) };
}
