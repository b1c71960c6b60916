/** What a clip is asked for with, and what it will need. */
import type { Device, Residency } from './engine.js';
import type { ClipSize, ModelManifest } from './manifest.js';

/** What a clip will need, in bytes, as the engine tells it before the weights are fetched. */
export interface ClipPlan extends ClipSize {
	/** Files of the model that the first clip fetches. */
	download: number;
	/** The engine, the GPU, and the frames that the page keeps, at the fullest moment. */
	memory: number;
	/** Part of it: memory of the engine. */
	engine: number;
	/** Part of it: memory of the GPU. */
	gpu: number;
	/** The longest buffer that the GPU has to give; 0 on the CPU. */
	largestBuffer: number;
	/** `turns` where memory is too short for the model as a whole: no previews then, and no frames before the last step. */
	residency: Residency;
}

/** What a clip takes at the most, as the manifest lists it. */
export interface ClipNeeds extends ClipSize {
	cpu: number;
	webgpu: number;
}

export function seedOf(value: string | null): number | undefined {
	return value === null || value.trim() === '' ? undefined : Number(value);
}

/** `176x96` or `176x96x17`; what cannot be read becomes 0, which no model makes. */
export function sizeOf(value: string | null): Partial<ClipSize> {
	if (value === null || value.trim() === '') {
		return {};
	}
	const number = (part: string) => (/^\s*\d{1,5}\s*$/.test(part) ? Number(part) : 0);
	const [width = 0, height = 0, frames] = value.split(/[x×]/i).map(number);
	return frames === undefined ? { width, height } : { width, height, frames };
}

export function newSeed(): number {
	return crypto.getRandomValues(new Uint32Array(1))[0] ?? 0;
}

/**
 * Bytes of memory that a clip needs, known without the engine: the figure for it in the manifest, or that of the whole
 * model; undefined where the manifest says nothing, as it may where another tool wrote it.
 */
export function memoryOf({ needs, memoryBytes }: ModelManifest, size: ClipSize, device: Device): number | undefined {
	const found = needs.find(
		(each) => each.width === size.width && each.height === size.height && each.frames === size.frames,
	);
	return found?.[device] ?? (memoryBytes > 0 ? memoryBytes : undefined);
}

/**
 * Bytes of memory that a clip may take before it is short, as far as the browser tells: half of what a device with less
 * than 8 GiB has. Chromium alone says, in powers of two, and never more than what would identify a visitor.
 */
export function comfortableMemory(): number | undefined {
	const { deviceMemory } = navigator as { deviceMemory?: number };
	return deviceMemory === undefined || deviceMemory >= 8 ? undefined : deviceMemory * 2 ** 29;
}
