/**
 * Finds out what this browser can compute on, without downloading anything. Runs in the worker, because starting a
 * GPU process can block the thread that asked; the page times it from outside.
 */
import type { Device } from './engine.js';
import type { ErrorCode } from './errors.js';

/** Milliseconds after which a GPU that has not answered counts as absent. */
export const ADAPTER_TIMEOUT = 5000;

/**
 * Asked of every adapter, whatever the manifest says: burn's runtime panics in a browser without timestamp queries, so
 * the engine refuses such an adapter (`crate/src/gpu.rs`). Known here, it costs no download and the CPU takes over.
 */
const ENGINE_FEATURES: readonly string[] = ['timestamp-query'];

export interface ProbeReport {
	/** What to use unless the visitor says otherwise. */
	device: Device;
	/** Readable name of the GPU adapter, when there is one. */
	adapter: string | undefined;
	/** The adapter is emulated on the CPU. */
	software: boolean;
	/** Why WebGPU cannot be used at all; undefined when it can. */
	problem:
		Extract<ErrorCode, 'unsupported-webgpu' | 'no-adapter' | 'adapter-timeout' | 'unsupported-feature'> | undefined;
	/** The features that are missing, when that is the problem. */
	missing: string[];
}

/** GPU access must not be withheld for want of a secure context: say so, since the cure is another address. */
export function secureContext(): boolean {
	return globalThis.isSecureContext;
}

const SOFTWARE = /swiftshader|llvmpipe|lavapipe|softpipe|basic render|software/i;

function describe(info: GPUAdapterInfo): string {
	return (
		info.description ||
		[info.vendor, info.architecture, info.device].filter((part) => part !== '').join(' ') ||
		'unnamed adapter'
	);
}

export function withoutGpu(problem: ProbeReport['problem'], adapter?: string, missing: string[] = []): ProbeReport {
	return { device: 'cpu', adapter, software: false, problem, missing };
}

/** @param features what the model asks of an adapter beyond the engine's own needs */
export async function probe(features: string[]): Promise<ProbeReport> {
	const { gpu } = navigator as { gpu?: GPU };
	if (gpu === undefined) {
		return withoutGpu('unsupported-webgpu');
	}
	const adapter = await gpu.requestAdapter({ powerPreference: 'high-performance' }).catch(() => null);
	if (adapter === null) {
		return withoutGpu('no-adapter');
	}
	const name = describe(adapter.info);
	const needed = new Set([...ENGINE_FEATURES, ...features]);
	const missing = [...needed].filter((feature) => !adapter.features.has(feature));
	if (missing.length > 0) {
		return withoutGpu('unsupported-feature', name, missing);
	}
	const software = adapter.info.isFallbackAdapter || SOFTWARE.test(`${name} ${adapter.info.architecture}`);
	// An emulated GPU costs more than the engine's own CPU kernels, so it is only used on request.
	return { device: software ? 'cpu' : 'webgpu', adapter: name, software, problem: undefined, missing: [] };
}
