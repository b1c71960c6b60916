// Builds web/dist: a static site that runs from any path. `--engine` and `--model` name the folders with the wasm-bindgen
// output and the packed model when they are not at their usual places; `--out` another place for the result.
import { build } from 'esbuild';
import { createHash } from 'node:crypto';
import { cp, mkdir, readFile, readdir, rm, stat, writeFile } from 'node:fs/promises';
import { join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const web = fileURLToPath(new URL('..', import.meta.url));
const { values } = parseArgs({
	options: { engine: { type: 'string' }, model: { type: 'string' }, out: { type: 'string' } },
});
const source = join(web, 'src');
const engine = values.engine ?? join(web, 'engine');
const model = values.model ?? join(web, '..', 'model-shards');
const out = values.out ?? join(web, 'dist');

function fail(sentence) {
	console.error(sentence);
	process.exit(1);
}

async function requireFile(path, hint) {
	await stat(path).catch(() => fail(`${relative(process.cwd(), path)} is missing: ${hint}`));
}

await requireFile(join(engine, 'kinora_bg.wasm'), 'build the engine first (./build.sh does both).');
await requireFile(join(model, 'manifest.json'), 'pack or fetch the model first (./build.sh does both).');

// One version for everything: a page never meets a worker or an engine of another build out of the HTTP cache.
const hash = createHash('sha256');
for (const folder of [source, engine]) {
	for (const name of (await readdir(folder)).sort()) {
		hash.update(name).update(await readFile(join(folder, name)));
	}
}
hash.update(await readFile(join(web, 'package-lock.json')));
const version = hash.digest('hex').slice(0, 12);

await rm(out, { recursive: true, force: true });
await mkdir(join(out, 'engine'), { recursive: true });
// As it is on disk; a host that compresses sends about a quarter of it.
const engineBytes = (await stat(join(engine, 'kinora_bg.wasm'))).size;
const options = {
	outdir: out,
	bundle: true,
	format: 'esm',
	target: ['es2022'],
	minify: true,
	sourcemap: true,
	legalComments: 'linked',
	chunkNames: '[name]-[hash]',
	define: { __BUILD__: JSON.stringify(version), __ENGINE_BYTES__: String(engineBytes) },
	logLevel: 'warning',
};
// The page splits off the encoder, which is loaded with the model; the worker is one file.
await build({ ...options, entryPoints: [join(source, 'main.ts')], splitting: true });
await build({ ...options, entryPoints: [join(source, 'worker.ts')] });
const page = await readFile(join(source, 'index.html'), 'utf8');
await writeFile(join(out, 'index.html'), page.replace(/(src|href)="(main\.js|styles\.css)"/g, `$1="$2?v=${version}"`));
for (const name of ['styles.css', 'icon.svg']) {
	await cp(join(source, name), join(out, name));
}
for (const name of ['kinora.js', 'kinora_bg.wasm']) {
	await cp(join(engine, name), join(out, 'engine', name));
}
await cp(model, join(out, 'model'), { recursive: true });

const sizes = await Promise.all(
	['main.js', 'worker.js', 'engine/kinora_bg.wasm'].map(
		async (name) => `${name} ${((await stat(join(out, name))).size / 1e6).toFixed(2)} MB`,
	),
);
console.log(`built ${relative(process.cwd(), out)} (${version}): ${sizes.join(', ')}`);
