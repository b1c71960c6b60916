/**
 * GPU memory that is given back at a known moment. A GPU buffer goes with the garbage collector, which sees a small object
 * and not what it stands for; where the parts of a model take turns, the memory of one has to be free before the next
 * arrives. So the buffers that were made are remembered here, and those that the engine has let go of are destroyed.
 */

const made = new Set<WeakRef<GPUBuffer>>();

/** Remembers the buffers that are made from here on. */
export function rememberBuffers(): void {
	const device = (globalThis as { GPUDevice?: { prototype: GPUDevice } }).GPUDevice?.prototype;
	if (device === undefined) {
		return;
	}
	const { createBuffer } = device;
	device.createBuffer = function (descriptor) {
		const buffer = createBuffer.call(this, descriptor);
		made.add(new WeakRef(buffer));
		return buffer;
	};
}

/**
 * Destroys the buffers that WebAssembly does not refer to. Everything that uses them must have been submitted.
 *
 * @param exports those of the instance. What it refers to lies in a table of wasm-bindgen; without that table, because
 * another version calls it otherwise, buffers are left to the garbage collector.
 */
export function destroyUnused(exports: object): void {
	const { __wbindgen_externrefs: table } = exports as { __wbindgen_externrefs?: unknown };
	if (!(table instanceof WebAssembly.Table)) {
		return;
	}
	const used = new Set<unknown>();
	for (let index = 0; index < table.length; index++) {
		used.add(table.get(index));
	}
	for (const reference of made) {
		const buffer = reference.deref();
		if (buffer === undefined || !used.has(buffer)) {
			buffer?.destroy();
			made.delete(reference);
		}
	}
}
