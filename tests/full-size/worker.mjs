// Runs one stage of a model inside a dedicated worker, as the page does, and says what it took.
import './meter.js';

async function fetched(url) {
	const response = await fetch(url);
	if (!response.ok) {
		throw new Error(`${url}: ${response.status}`);
	}
	return response;
}

async function run({ site, model, device, stage, input }) {
	const { default: init, Engine } = await import(new URL('engine/kinora.js', site).href);
	await init({ module_or_path: fetch(new URL('engine/kinora_bg.wasm', site)) });
	const started = performance.now();
	const seconds = (since) => Math.round((performance.now() - since) / 100) / 10;
	const text = async (name) => (await fetched(new URL(name, model))).text();
	const manifestText = await text('manifest.json');
	const manifest = JSON.parse(manifestText);
	const engine = await Engine.create(manifestText, await text('tokenizer.json'), { device });
	for (const index of engine.missingShards()) {
		const shard = await fetched(new URL(manifest.shards[index].path, model));
		await engine.addShard(index, new Uint8Array(await shard.arrayBuffer()));
	}
	const loadSeconds = seconds(started);
	const loaded = performance.now();
	const { wasmPeakMiB: wasmLoadedMiB } = meter();
	const output = await engine.runStage(stage, new Uint8Array(await (await fetched(input)).arrayBuffer()));
	const shards = manifest.shards.length;
	const facts = { shards, loadSeconds, stageSeconds: seconds(loaded), wasmLoadedMiB, ...meter() };
	engine.free();
	return { facts, output: [...output] };
}

self.addEventListener('message', ({ data }) => {
	run(data).then(
		(result) => self.postMessage(result),
		(error) => self.postMessage({ error: `${error.code ?? ''} ${error.message ?? error}` }),
	);
});
