/**
 * Messages between the page and its worker. Every call has an id; its answer is any number of events and then exactly
 * one `done` or `error` with the same id. `cancel` is answered by the call it ends.
 */
import type { WireError } from './errors.js';
import type { Device, EngineInfo, FrameBatch, PromptCheck, Residency, SelfCheck, VideoRequest } from './engine.js';
import type { WeightedLora } from './loras.js';
import type { ProbeReport } from './probe.js';

export interface OpenArguments {
	/** Absolute address of the manifest; shards and tokenizer lie beside it. */
	manifestUrl: string;
	/** The manifest as the page already fetched it. */
	manifest: string;
	device: Device;
	strictLimits: boolean;
	/** Absolute address of a prompt pack, in place of the one that the manifest may name. */
	promptPackUrl: string | undefined;
	/** `auto` streams a text encoder that is large, or that the prompt pack makes unnecessary most of the time. */
	textEncoder: 'auto' | 'resident' | 'streamed';
	/** Bytes of memory beyond which text encoder, denoiser and decoder take turns; undefined where nothing is known of it. */
	comfortableMemory: number | undefined;
}

export interface OpenResult {
	info: EngineInfo;
	/** Bytes that came over the network, not from a cache of ours. */
	bytes: number;
	/** Milliseconds. */
	timings: { engine: number; create: number };
}

export interface LoadArguments {
	/** Whether the text encoder is needed; packed prompts do without. */
	encoder: boolean;
	/** How the clip will be made: in turns the parts of the model are stored, not loaded. */
	residency: Residency;
}

export interface LoadResult {
	checks: SelfCheck[];
	bytes: number;
	bytesFromCache: number;
	/** False when the browser refused to keep the model (quota, private window). */
	stored: boolean;
	/** Whether prompts can be made that are in no pack. */
	encoder: boolean;
	/** Whether clips can be made with parts that take turns: all of the model is known to be stored. */
	turns: boolean;
	timings: { download: number; warmup: number };
}

export interface GenerateResult {
	width: number;
	height: number;
	frames: number;
	fps: number;
	timings: { text: number; steps: number[]; preview: number; decode: number };
}

export type DownloadEvent = { kind: 'download'; loaded: number; total: number };

export type LoadEvent = DownloadEvent | { kind: 'warmup'; done: number; total: number };

export type LorasEvent = { kind: 'lora'; done: number; total: number };

export type GenerateEvent =
	| { kind: 'text'; width: number; height: number; frames: number; fps: number; steps: number }
	| { kind: 'step'; index: number; steps: number; sigma: number }
	| { kind: 'preview'; width: number; height: number; rgba: Uint8Array }
	| ({ kind: 'frames'; width: number; height: number; frames: number } & FrameBatch);

/** Every call: what it takes, what it reports on the way, what it gives. */
export interface Calls {
	probe: { arguments: { features: string[] }; event: never; result: ProbeReport };
	open: { arguments: OpenArguments; event: DownloadEvent; result: OpenResult };
	check: { arguments: VideoRequest; event: never; result: PromptCheck };
	load: { arguments: LoadArguments; event: LoadEvent; result: LoadResult };
	/** Which LoRAs the next generations use: those named and no others. The result counts bytes from the network. */
	loras: { arguments: { loras: WeightedLora[] }; event: LorasEvent; result: { bytes: number } };
	generate: { arguments: VideoRequest; event: GenerateEvent; result: GenerateResult };
}

export type CallName = keyof Calls;

export type ToWorker =
	| { [Name in CallName]: { id: number; call: Name; arguments: Calls[Name]['arguments'] } }[CallName]
	| { call: 'cancel' };

export type FromWorker =
	/** First message of a worker: its script has run. */
	| { type: 'ready' }
	| { id: number; type: 'event'; event: Calls[CallName]['event'] }
	| { id: number; type: 'done'; result: Calls[CallName]['result'] }
	| { id: number; type: 'error'; error: WireError }
	/** The engine trapped or an exception escaped: nothing this worker says later can be trusted. */
	| { type: 'crash'; message: string };
