// What an engine takes in this worker; to run before the engine is imported.
{
	/** Bytes of the GPU buffers that were made and not destroyed: now, and at most. */
	const gpu = { bytes: 0, peak: 0, made: 0, largest: 0 };
	const { createBuffer } = GPUDevice.prototype;
	const { destroy } = GPUBuffer.prototype;
	const sizes = new WeakMap();
	GPUDevice.prototype.createBuffer = function (descriptor) {
		const buffer = createBuffer.call(this, descriptor);
		sizes.set(buffer, descriptor.size);
		gpu.made++;
		gpu.bytes += descriptor.size;
		gpu.peak = Math.max(gpu.peak, gpu.bytes);
		gpu.largest = Math.max(gpu.largest, descriptor.size);
		return buffer;
	};
	GPUBuffer.prototype.destroy = function () {
		gpu.bytes -= sizes.get(this) ?? 0;
		sizes.delete(this);
		destroy.call(this);
	};

	let memory;
	const { instantiateStreaming } = WebAssembly;
	WebAssembly.instantiateStreaming = async (...given) => {
		const made = await instantiateStreaming.apply(WebAssembly, given);
		memory = made.instance.exports.memory;
		return made;
	};

	const mebibytes = (bytes) => Math.round(bytes / 2 ** 20);
	/** A wasm memory never shrinks, so its size is its peak so far. */
	globalThis.meter = () => ({
		wasmPeakMiB: mebibytes(memory.buffer.byteLength),
		gpuPeakMiB: mebibytes(gpu.peak),
		gpuBuffers: gpu.made,
		gpuLargestBufferMiB: mebibytes(gpu.largest),
	});
}
