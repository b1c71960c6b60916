/** What the attributes of a `<kinora-video>` say, and what the options of a call say in their place. */
import { comfortableMemory, newSeed, seedOf, sizeOf } from './clip.js';
import type { Device, Residency, VideoRequest } from './engine.js';
import { KinoraError } from './errors.js';
import type { GenerateOptions } from './events.js';
import type { OpenArguments } from './protocol.js';

/** The device that is asked for by name. */
export function deviceOf(element: Element): Device | undefined {
	const value = element.getAttribute('device');
	return value === 'webgpu' || value === 'cpu' ? value : undefined;
}

export function manifestUrl(element: Element): string {
	return new URL(element.getAttribute('src') ?? 'model/manifest.json', document.baseURI).href;
}

export function residencyOf(element: Element): Residency | 'auto' {
	const value = element.getAttribute('residency');
	return value === 'together' || value === 'turns' ? value : 'auto';
}

/** Whether the pixels of a finished clip are wanted beside the file. */
export function keepsFrames(element: Element): boolean {
	return element.getAttribute('keep-frames') !== 'no';
}

/** @param known whether the device has run out of memory before, and whether the browser stores nothing */
export function openArguments(
	element: Element,
	device: Device,
	manifest: string,
	known: { short: boolean; unstored: boolean },
): OpenArguments {
	const prompts = element.getAttribute('prompts');
	const textEncoder = element.getAttribute('text-encoder');
	// Beyond so many bytes the parts of a model take turns.
	const usual = known.short ? 0 : comfortableMemory();
	const comfortable = { auto: known.unstored ? undefined : usual, turns: 0, together: undefined };
	return {
		manifestUrl: manifestUrl(element),
		manifest,
		device,
		strictLimits: element.getAttribute('limits') === 'default',
		promptPackUrl: prompts === null ? undefined : new URL(prompts, document.baseURI).href,
		textEncoder: textEncoder === 'resident' || textEncoder === 'streamed' ? textEncoder : 'auto',
		comfortableMemory: comfortable[residencyOf(element)],
	};
}

export function requestOf(element: Element, options: GenerateOptions): VideoRequest {
	const prompt = (options.prompt ?? element.getAttribute('prompt') ?? '').trim();
	if (prompt === '') {
		throw new KinoraError('empty-prompt', 'The prompt is empty.');
	}
	const seed = options.seed ?? seedOf(element.getAttribute('seed')) ?? newSeed();
	if (!Number.isSafeInteger(seed) || seed < 0) {
		throw new KinoraError(
			'invalid-request',
			`The seed ${seed} is not a whole number from 0 to ${Number.MAX_SAFE_INTEGER}.`,
		);
	}
	// Sizes are offered as a whole: an option does not mix with the attribute.
	const own = options.width !== undefined || options.height !== undefined || options.frames !== undefined;
	const size = own ? {} : sizeOf(element.getAttribute('size'));
	const request: VideoRequest = { prompt, seed };
	for (const key of ['width', 'height', 'frames'] as const) {
		const value = options[key] ?? size[key];
		if (value !== undefined) {
			request[key] = value;
		}
	}
	return request;
}
