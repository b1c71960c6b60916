/** What `<kinora-video>` takes, tells and gives: its options, events and results. */
import type { ClipPlan } from './clip.js';
import type { EncodedClip } from './encode.js';
import type { Device, EngineInfo, SelfCheck } from './engine.js';
import type { KinoraError } from './errors.js';
import type { Lora } from './loras.js';
import type { ModelManifest } from './manifest.js';
import type { ProbeReport } from './probe.js';
import type { Stage } from './progress.js';

export type State = 'idle' | 'loading' | 'generating' | 'encoding' | 'done' | 'error';

/** What can be known before the first download. */
export interface Availability {
	manifest: ModelManifest;
	/** Undefined when the CPU was demanded, because then the GPU is left alone. */
	probe: ProbeReport | undefined;
	device: Device;
	/** The model is stored on this device. */
	stored: boolean;
}

export interface ProgressDetail {
	/** 0 to 1 over the whole run; never falls. */
	value: number;
	stage: Stage;
	/** For people, without the figure. */
	text: string;
	/** Seconds until this stage ends, once that can be told. */
	remaining: number | undefined;
}

export interface FrameDetail {
	/** Number of the frame, or undefined for a preview of the unfinished clip. */
	index: number | undefined;
	frames: number;
	width: number;
	height: number;
	rgba: Uint8Array;
}

/** Milliseconds of each stage of one run; zero for what did not have to be done again. */
export interface Timings {
	engine: number;
	download: number;
	warmup: number;
	text: number;
	steps: number[];
	preview: number;
	decode: number;
	encode: number;
	total: number;
}

export interface VideoResult extends Omit<EncodedClip, 'refused'> {
	width: number;
	height: number;
	fps: number;
	seed: number;
	/** RGBA of every frame, as decoded, before the video codec; empty where they were not kept, see `keep-frames`. */
	frames: Uint8Array[];
	frameCount: number;
	model: string;
	engine: EngineInfo;
	unknownWords: string[];
	/** Self-test of this run; empty when the model was loaded before. */
	checks: SelfCheck[];
	bytesDownloaded: number;
	bytesFromCache: number;
	/** False when the browser would not keep the model for the next visit. */
	stored: boolean;
	refusedCodecs: string[];
	timings: Timings;
}

export interface GenerateOptions {
	prompt?: string;
	seed?: number;
	/** Other than the attribute `size`, in pixels and frames; see `longest` of the manifest for other numbers of frames. */
	width?: number;
	height?: number;
	frames?: number;
	/** Other than the attribute `loras`; an empty list is none. Those of the last run need not be fetched again. */
	loras?: Lora[];
	signal?: AbortSignal;
}

export interface KinoraVideoEvents {
	statechange: CustomEvent<State>;
	progress: CustomEvent<ProgressDetail>;
	frame: CustomEvent<FrameDetail>;
	notice: CustomEvent<{ unknownWords: string[] } | { plan: ClipPlan } | { restarted: 'device-lost' | 'out-of-memory' }>;
	result: CustomEvent<VideoResult>;
	error: CustomEvent<KinoraError>;
}
