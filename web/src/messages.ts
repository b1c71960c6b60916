/** Every sentence a visitor reads about the course of a run, its stages and its failures. */
import type { Device } from './engine.js';
import type { ErrorCode, KinoraError } from './errors.js';
import { aboutMegabytes, megabytes } from './format.js';
import type { ProbeReport } from './probe.js';
import type { Stage } from './progress.js';

export const STAGES: Readonly<Record<Stage, string>> = {
	engine: 'Starting the engine',
	download: 'Downloading the model',
	warmup: 'Warming up and checking the results',
	lora: 'Loading the LoRA',
	text: 'Reading your words',
	denoise: 'Drawing',
	decode: 'Developing the frames',
	encode: 'Writing the video',
};

/** What a click can do about an error. */
export type Action = 'retry' | 'cpu' | 'edit' | 'size' | 'reload';

export const ACTIONS: Readonly<Record<Action, string>> = {
	retry: 'Try again',
	cpu: 'Use the CPU instead',
	edit: 'Change the prompt',
	size: 'Change the size',
	reload: 'Reload the page',
};

export interface Explanation {
	text: string;
	action: Action;
}

/** What computing on the CPU means, said wherever it is offered. */
export const CPU_COST = 'The video is as good, but it takes more time: from a few seconds to a minute.';

const FIXED: Readonly<Partial<Record<ErrorCode, Explanation>>> = {
	'empty-prompt': { text: 'There is nothing to draw yet. Describe a scene in a few words.', action: 'edit' },
	'prompt-too-long': {
		text: 'That is more than the model can read. Shorten the prompt to a sentence or two.',
		action: 'edit',
	},
	'unsupported-size': {
		text: 'The model cannot make a video of this size. Reload the page to go back to its own size.',
		action: 'reload',
	},
	'unsupported-webgpu': {
		text: `This browser does not offer WebGPU. The CPU can do the work. ${CPU_COST}`,
		action: 'cpu',
	},
	'no-adapter': { text: `No usable graphics adapter was found. The CPU can do the work. ${CPU_COST}`, action: 'cpu' },
	'adapter-timeout': {
		text: `The graphics driver did not answer within five seconds. The CPU can do the work. ${CPU_COST}`,
		action: 'cpu',
	},
	'unsupported-feature': {
		text: `This graphics adapter lacks something the engine needs. The CPU can do the work. ${CPU_COST}`,
		action: 'cpu',
	},
	'device-lost': {
		text: `The graphics device was reset while working. Use the CPU to be safe from that. ${CPU_COST}`,
		action: 'cpu',
	},
	'out-of-memory': {
		text: `The graphics device ran out of memory. Close other tabs and reload, or use the CPU. ${CPU_COST}`,
		action: 'cpu',
	},
	'prompt-pack': {
		text: 'The prepared prompts do not belong to this model. Try again; if it stays so, the site has to repair it.',
		action: 'retry',
	},
	storage: {
		text: 'The browser does not keep the model on this device, and it is too large to be held in memory as a whole. Free some space, or leave the private window, and try again.',
		action: 'retry',
	},
	network: {
		text: 'The model could not be downloaded. Check the connection and try again; what has arrived is kept.',
		action: 'retry',
	},
	integrity: {
		text: 'A file of the model arrived damaged and was thrown away. Try again to fetch it anew.',
		action: 'retry',
	},
	manifest: {
		text: 'The description of the model is damaged. Try again; if it stays so, the site has to repair it.',
		action: 'retry',
	},
	tensor: {
		text: 'The model does not fit this version of the engine. Reload the page to fetch both anew.',
		action: 'reload',
	},
	tokenizer: {
		text: 'The word list of the model is damaged. Try again; if it stays so, the site has to repair it.',
		action: 'retry',
	},
	lora: {
		text: 'A LoRA chosen for this page does not fit its model. Try again; if it stays so, the site has to repair it.',
		action: 'retry',
	},
	wasm: {
		text: 'A part of the page could not be started in this browser. Reload the page, or use a current version of the browser.',
		action: 'reload',
	},
	encode: {
		text: 'This browser has no working video encoder, so there is no video. Update it or use another one.',
		action: 'retry',
	},
	busy: { text: 'A video is being made already. Wait for it, or cancel it first.', action: 'retry' },
	internal: { text: 'The engine stopped unexpectedly and has been restarted. Try again.', action: 'retry' },
	'invalid-request': { text: 'The seed has to be a whole number from 0 up. Change it and try again.', action: 'retry' },
};

export function explain(error: KinoraError, device: Device): Explanation {
	if (error.code === 'numeric') {
		return device === 'webgpu'
			? {
					text: `This graphics device computes wrong results, so its pictures would be wrong too. Use the CPU. ${CPU_COST}`,
					action: 'cpu',
				}
			: {
					text: 'A check of the results failed, so no video was made. Reload the page and try again.',
					action: 'reload',
				};
	}
	if (error.code === 'unknown-prompt' || error.code === 'pruned-prompt') {
		// The engine's sentence names the prompts there are, or the words that are not there.
		return { text: error.message, action: 'edit' };
	}
	if (error.code === 'too-large') {
		// The engine's sentence says what is needed, what there is, and which clip would do.
		return {
			text: error.message,
			action: error.message.includes('No other clip') && device === 'webgpu' ? 'cpu' : 'size',
		};
	}
	const fixed = FIXED[error.code];
	if (fixed === undefined) {
		return { text: `${error.message} Try again.`, action: 'retry' };
	}
	return fixed.action === 'cpu' && device === 'cpu' ? { text: `${error.message} Try again.`, action: 'retry' } : fixed;
}

/** One line on what the video will be made with, before anything is downloaded. */
export function deviceNotice(report: ProbeReport | undefined, device: Device, forced: boolean): string | undefined {
	if (device === 'webgpu' || report === undefined) {
		return undefined;
	}
	if (forced) {
		return `Using the CPU. ${CPU_COST}`;
	}
	switch (report.problem) {
		case 'unsupported-webgpu':
			return globalThis.isSecureContext
				? `This browser does not offer WebGPU, so the CPU will do the work. ${CPU_COST}`
				: `WebGPU needs an https address; here the CPU will do the work. ${CPU_COST}`;
		case 'no-adapter':
			return `No usable graphics adapter was found, so the CPU will do the work. ${CPU_COST}`;
		case 'adapter-timeout':
			return `The graphics driver did not answer, so the CPU will do the work. ${CPU_COST}`;
		case 'unsupported-feature':
			return `The graphics adapter lacks ${report.missing.join(', ')}, so the CPU will do the work. ${CPU_COST}`;
		case undefined:
			return `The graphics adapter here is only emulated, so the CPU will do the work. ${CPU_COST}`;
	}
}

/**
 * What a clip needs, before anything is downloaded.
 *
 * @param download bytes of the model that are not on this device
 * @param memory bytes, undefined where they are not known yet
 * @param turns memory is short, so that the parts of the model take turns
 */
export function needs(download: number, memory: number | undefined, turns: boolean): string | undefined {
	const parts = [
		...(download > 0 ? [`${megabytes(download)} to download`] : []),
		...(memory === undefined ? [] : [`${aboutMegabytes(memory)} of memory`]),
	];
	const short = turns
		? ' Memory is short here, so the parts of the model are loaded one after the other: there is no preview, and it takes a little longer.'
		: '';
	return parts.length === 0 ? undefined : `This clip needs ${parts.join(' and ')}.${short}`;
}

/** Why a video was begun again by itself. */
export const RESTARTED = {
	'device-lost': 'The graphics device was reset. Starting this video again.',
	'out-of-memory':
		'The memory ran out. Starting this video again, with the parts of the model loaded one after the other.',
};

/** @param engine bytes of the engine at most; the browser's own cache decides how long it is kept */
export function consent(bytes: number, engine: number, stored: boolean): string {
	return stored
		? 'The model is on this device already. It does not have to be downloaded again.'
		: `The first video downloads the model, ${megabytes(bytes)}, once, and the engine, ${megabytes(engine)} at most. After that everything stays on this device.`;
}
