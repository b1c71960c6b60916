/** The choice of size and length: what the model offers, and what the visitor asks for. */
import { sizeOf } from './clip.js';
import { seconds } from './format.js';
import type { ClipSize, ModelManifest } from './manifest.js';

interface Fields {
	/** Where there is more than one size to choose from. */
	size: HTMLSelectElement;
	/** Seconds, where the model makes clips of any length. */
	length: HTMLInputElement;
}

/** The number of frames of so many seconds that the model can make. */
export function framesOf(wanted: number, { fps, frameStep, longest = 1 }: ModelManifest): number {
	const most = Math.floor((longest - 1) / frameStep);
	return 1 + frameStep * Math.min(Math.max(0, Math.round((wanted * fps - 1) / frameStep)), most);
}

const written = ({ width, height, frames }: ClipSize) => `${width}x${height}x${frames}`;

/** What the fields ask for. */
export function chosenSize({ size, length }: Fields, manifest: ModelManifest): ClipSize {
	const offered = { ...manifest.sizes[0], ...sizeOf(size.value) };
	const wanted = length.valueAsNumber;
	return manifest.longest === undefined || !Number.isFinite(wanted)
		? offered
		: { ...offered, frames: framesOf(wanted, manifest) };
}

/**
 * Fills the fields with what the model offers; what was asked for stays chosen as long as it is offered. Returns the
 * chosen clip and, where another was asked for, what it will be instead.
 */
export function offerSizes(
	{ size, length }: Fields,
	manifest: ModelManifest,
	attribute: string | null,
): { chosen: string; refused: string | undefined } {
	const { fps, longest, frameStep } = manifest;
	const pictures = (each: ClipSize, index: number, all: ClipSize[]) =>
		all.findIndex(({ width, height }) => width === each.width && height === each.height) === index;
	// The length has a field of its own where it can be any.
	const sizes = longest === undefined ? manifest.sizes : manifest.sizes.filter(pictures);
	const several = new Set(sizes.map(({ frames }) => frames)).size > 1;
	const name = ({ width, height, frames }: ClipSize) =>
		several && longest === undefined
			? `${width} × ${height}, ${seconds((frames / fps) * 1000)}`
			: `${width} × ${height}`;
	const asked = sizeOf(attribute);
	const anyLength = (frames: number) =>
		longest !== undefined && frames <= longest && frames % frameStep === 1 % frameStep;
	const fits = (offered: ClipSize) => {
		const { width = offered.width, height = offered.height, frames = offered.frames } = asked;
		const same = width === offered.width && height === offered.height;
		return same && (frames === offered.frames || anyLength(frames));
	};
	const found = sizes.findIndex(fits);
	size.replaceChildren(...sizes.map((each) => new Option(name(each), written(each))));
	size.selectedIndex = Math.max(found, 0);
	const offered = sizes[Math.max(found, 0)] ?? manifest.sizes[0];
	const chosen = { ...offered, frames: (found < 0 ? undefined : asked.frames) ?? offered.frames };
	length.min = (1 / fps).toFixed(2);
	length.max = ((longest ?? chosen.frames) / fps).toFixed(2);
	length.value = (chosen.frames / fps).toFixed(2);
	return {
		chosen: written(chosen),
		refused: asked.width !== undefined && found < 0 ? name(manifest.sizes[0]) : undefined,
	};
}
