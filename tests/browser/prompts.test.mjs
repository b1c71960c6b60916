// Clips without the text encoder, from a prompt pack; and with a text encoder that is read layer by layer from storage.
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { homedir, tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, test } from 'node:test';
import { promisify } from 'node:util';
import { floats, readSafetensors, writeSafetensors } from './safetensors.mjs';
import { TINY, assertFailure, generate, make, start } from './support.mjs';

const CLI = process.env.KINORA_CLI ?? join(homedir(), '.cache/kinora/target/release/kinora');
const CPU = `${TINY}&device=cpu`;
const PACKED = { prompt: 'a red ball bounces on green grass', seed: 7 };
const OTHER = { prompt: 'the blue bird flies over the sea', seed: 7 };

let site;
/** The pack that the native program wrote, with the numbers that the browser's own CPU gives. */
let pack;
let references;

before(async () => {
	// Small shards, so that some hold nothing but the text encoder.
	site = await start({ shardBytes: 100_000 });
	const page = await site.open(CPU);
	references = [(await make(page, PACKED)).hash, (await make(page, OTHER)).hash];
	pack = await makePack(page);
});
after(() => site.stop());
afterEach(() => site.clear());

/** Embeddings of ids by an engine inside the page. */
async function encode(page, ids) {
	const input = writeSafetensors(
		new Map([['input_ids', { dtype: 'I32', shape: [ids.length], bytes: new Uint8Array(Int32Array.from(ids).buffer) }]]),
	);
	const output = await page.evaluate(
		async (bytes) => {
			const { default: init, Engine } = await import(new URL('engine/kinora.js', document.baseURI).href);
			await init({ module_or_path: fetch('engine/kinora_bg.wasm') });
			const text = async (name) => (await fetch(`tiny/${name}`)).text();
			const manifest = await text('manifest.json');
			const engine = await Engine.create(manifest, await text('tokenizer.json'), { device: 'cpu' });
			for (const index of engine.missingShards()) {
				const shard = await fetch(`tiny/${JSON.parse(manifest).shards[index].path}`);
				await engine.addShard(index, new Uint8Array(await shard.arrayBuffer()));
			}
			return [...(await engine.runStage('encode-text', Uint8Array.from(bytes)))];
		},
		[...input],
	);
	return readSafetensors(Uint8Array.from(output)).get('embeddings');
}

async function makePack(page) {
	const folder = await mkdtemp(join(tmpdir(), 'kinora-pack-'));
	try {
		const path = join(folder, 'prompts.safetensors');
		await promisify(execFile)(CLI, ['prompts', '--model', site.tiny.folder, '--prompt', PACKED.prompt, '--out', path]);
		const file = await readFile(path);
		const cases = JSON.parse(await readFile(new URL('../goldens/tokens.json', import.meta.url), 'utf8'));
		const { input_ids } = cases.find(({ prompt }) => prompt === PACKED.prompt);
		const own = await encode(page, input_ids);
		const native = readSafetensors(file).get('prompt.0');
		assert.deepEqual(native.shape, [input_ids.length, 64]);
		const [a, b] = [floats(native), floats(own)];
		assert.ok(
			a.every((value, index) => Math.abs(value - b[index]) < 1e-4),
			'native and browser agree',
		);
		// The devices differ in last bits; with the browser's own numbers the clips have to be equal.
		native.bytes.set(own.bytes);
		return file;
	} finally {
		await rm(folder, { recursive: true });
	}
}

const sha256 = async (bytes) => Buffer.from(await crypto.subtle.digest('SHA-256', bytes)).toString('hex');

/** The tiny model with a prompt pack beside it, or without its text encoder. */
async function open({ hosted = true, change = () => undefined, query = '', ...options } = {}) {
	const manifest = structuredClone(site.tiny.manifest);
	manifest.prompt_pack = { path: 'prompts.safetensors', bytes: pack.length, sha256: await sha256(pack) };
	manifest.text_encoder.hosted = hosted;
	change(manifest);
	const prepare = async (context) => {
		await context.route('**/tiny/manifest.json', (route) => route.fulfill({ json: manifest }));
		await context.route('**/tiny/prompts.safetensors', (route) =>
			route.fulfill({ body: pack, contentType: 'application/octet-stream' }),
		);
	};
	return site.open(`${CPU}${query}`, { prepare, ...options });
}

/** Paths of the shards that only the text encoder needs, found without the engine. */
function textShards() {
	const { shards, tensors } = site.tiny.manifest;
	const rest = new Set(
		Object.entries(tensors).flatMap(([name, { parts }]) =>
			name.startsWith('text_encoder.') ? [] : parts.map(({ shard }) => shard),
		),
	);
	return shards.filter((_, index) => !rest.has(index)).map(({ path }) => path);
}

const asked = (page, paths) => page.requests.filter((url) => paths.some((path) => url.endsWith(path)));

test('a packed prompt gives the same clip without the text encoder, and another one fetches it', async () => {
	assert.ok(textShards().length >= 2, 'the encoder has shards of its own');
	const page = await open();
	const first = await make(page, PACKED);
	assert.equal(first.hash, references[0]);
	assert.deepEqual(asked(page, textShards()), []);
	assert.equal((await make(page, OTHER)).hash, references[1]);
	assert.equal(asked(page, textShards()).length, textShards().length);
	page.requests.length = 0;
	assert.equal((await make(page, PACKED)).hash, references[0]);
	assert.equal((await make(page, OTHER)).hash, references[1]);
	assert.deepEqual(
		page.requests.filter((url) => !url.startsWith('blob:')),
		[],
	);
	assert.deepEqual(page.errors, []);
});

test('a site without the text encoder makes the packed prompts and names them when it is asked for another', async () => {
	const page = await open({ hosted: false });
	const found = await generate(page, OTHER);
	assert.equal(found.error?.code, 'unknown-prompt');
	assert.ok(found.error.message.includes(PACKED.prompt), found.error.message);
	await assertFailure(page, 'unknown-prompt', 'Change the prompt');
	assert.equal(page.requests.filter((url) => url.endsWith('.bin')).length, 0, 'known before anything large is fetched');
	assert.equal((await make(page, PACKED)).hash, references[0]);
	assert.deepEqual(asked(page, [...textShards(), 'tokenizer.json']), []);
	const { totalBytes, stored } = await page.evaluate(async () => {
		const video = document.querySelector('kinora-video');
		video.setAttribute('limits', 'default');
		const { manifest, stored } = await video.availability();
		return { totalBytes: manifest.totalBytes, stored };
	});
	const kept = site.tiny.manifest.shards.filter(({ path }) => !textShards().includes(path));
	assert.equal(
		totalBytes,
		kept.reduce((sum, { bytes }) => sum + bytes, pack.length),
	);
	assert.ok(stored, 'what is needed is stored');
});

test('a pack is given by its address', async () => {
	const page = await open({
		change: (manifest) => delete manifest.prompt_pack,
		query: '&prompts=tiny/prompts.safetensors',
	});
	assert.equal((await make(page, PACKED)).hash, references[0]);
	assert.deepEqual(asked(page, textShards()), []);
});

test('a pack of another model, and one that was changed on the way, are refused', async () => {
	const other = await open({ change: (manifest) => (manifest.text_encoder.layer_norm_epsilon = 1e-5) });
	assert.equal((await generate(other, PACKED)).error?.code, 'prompt-pack');
	await assertFailure(other, 'prompt-pack', 'Try again');
	const changed = await open({ change: (manifest) => (manifest.prompt_pack.sha256 = '0'.repeat(64)) });
	assert.equal((await generate(changed, PACKED)).error?.code, 'integrity');
});

for (const device of ['cpu', 'webgpu']) {
	test(`a text encoder read layer by layer gives the clip of the whole one on ${device}`, async () => {
		const query = `${TINY}&device=${device}`;
		const whole = await make(await site.open(query), OTHER);
		await site.clear();
		const page = await site.open(`${query}&text-encoder=streamed`);
		const made = await make(page, OTHER);
		assert.equal(made.hash, whole.hash);
		if (device === 'cpu') {
			assert.equal(made.hash, references[1]);
		}
		// The next prompt is read from storage, whatever its words are.
		page.requests.length = 0;
		await make(page, PACKED);
		assert.deepEqual(
			page.requests.filter((url) => !url.startsWith('blob:')),
			[],
		);
	});
}

test('without storage a streamed text encoder is refused, and no server is asked for single shards', async () => {
	const inject = `Cache.prototype.put = async () => { throw new DOMException('Quota exceeded.', 'QuotaExceededError'); }`;
	const page = await site.open(`${CPU}&text-encoder=streamed`, { inject });
	assert.equal((await generate(page, OTHER)).error?.code, 'storage');
	await assertFailure(page, 'storage', 'Try again');
});

test('a stored encoder that has gone is fetched again as a whole', async () => {
	const page = await site.open(`${CPU}&text-encoder=streamed`);
	await make(page, OTHER);
	await page.evaluate(async () => Promise.all((await caches.keys()).map((name) => caches.delete(name))));
	assert.equal((await generate(page, PACKED)).error?.code, 'storage');
	page.requests.length = 0;
	assert.equal((await make(page, PACKED)).hash, references[0]);
	assert.equal(asked(page, textShards()).length, textShards().length);
});
