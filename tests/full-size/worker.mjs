// Runs one stage of a model inside a dedicated worker, as the page does, and says what it took.

/** Bytes of the GPU buffers that were made and not destroyed: now, and at most. */
const buffers = { bytes: 0, peak: 0, made: 0, largest: 0 };

function countBuffers() {
	const { createBuffer } = GPUDevice.prototype;
	const { destroy } = GPUBuffer.prototype;
	GPUDevice.prototype.createBuffer = function (descriptor) {
		const buffer = createBuffer.call(this, descriptor);
		buffers.made++;
		buffers.bytes += descriptor.size;
		buffers.peak = Math.max(buffers.peak, buffers.bytes);
		buffers.largest = Math.max(buffers.largest, descriptor.size);
		buffer.counted = descriptor.size;
		return buffer;
	};
	GPUBuffer.prototype.destroy = function () {
		buffers.bytes -= this.counted ?? 0;
		this.counted = 0;
		destroy.call(this);
	};
}

async function fetched(url) {
	const response = await fetch(url);
	if (!response.ok) {
		throw new Error(`${url}: ${response.status}`);
	}
	return response;
}

async function run({ site, model, device, stage, input }) {
	countBuffers();
	const { default: init, Engine } = await import(new URL('engine/kinora.js', site).href);
	const { memory } = await init({ module_or_path: fetch(new URL('engine/kinora_bg.wasm', site)) });
	// A wasm memory never shrinks, so its size is its peak so far.
	const wasmMiB = () => Math.round(memory.buffer.byteLength / 2 ** 20);
	const started = performance.now();
	const text = async (name) => (await fetched(new URL(name, model))).text();
	const manifestText = await text('manifest.json');
	const manifest = JSON.parse(manifestText);
	const engine = await Engine.create(manifestText, await text('tokenizer.json'), { device });
	for (const index of engine.missingShards()) {
		const shard = await fetched(new URL(manifest.shards[index].path, model));
		await engine.addShard(index, new Uint8Array(await shard.arrayBuffer()));
	}
	const loaded = performance.now();
	const wasmAfterLoading = wasmMiB();
	const output = await engine.runStage(stage, new Uint8Array(await (await fetched(input)).arrayBuffer()));
	const { adapter } = engine.info;
	const facts = {
		adapter,
		shards: manifest.shards.length,
		loadSeconds: Math.round((loaded - started) / 100) / 10,
		stageSeconds: Math.round((performance.now() - loaded) / 100) / 10,
		wasmAfterLoadingMiB: wasmAfterLoading,
		wasmPeakMiB: wasmMiB(),
		gpuPeakMiB: Math.round(buffers.peak / 2 ** 20),
		gpuBuffers: buffers.made,
		gpuLargestBufferMiB: Math.round(buffers.largest / 2 ** 20),
	};
	engine.free();
	return { facts, output: [...output] };
}

self.addEventListener('message', ({ data }) => {
	run(data).then(
		(result) => self.postMessage(result),
		(error) => self.postMessage({ error: `${error.code ?? ''} ${error.message ?? error}` }),
	);
});
