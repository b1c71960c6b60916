/**
 * The interface of the WebAssembly engine as this page uses it. The generated declarations type most values as `any`;
 * these say what is really in them.
 */
import type { ClipPlan } from './clip.js';

export type Device = 'webgpu' | 'cpu';

export type TextEncoderPlan = 'resident' | 'streamed' | 'absent';

/**
 * Whether text encoder, denoiser and decoder are in memory together, or one after the other, each read from this
 * device's storage when its turn comes.
 */
export type Residency = 'together' | 'turns';

export interface EngineOptions {
	device: Device;
	/** Ask the GPU for the WebGPU default limits only, to prove that the model fits on every adapter. */
	strictLimits?: boolean;
	/** `streamed`: not loaded but read layer by layer for each prompt; `absent`: only packed prompts can be made. */
	textEncoder?: TextEncoderPlan;
	/** Bytes of a shard that was verified and kept; needed where the text encoder is streamed or parts take turns. */
	readShard?: (index: number) => Promise<Uint8Array>;
	promptPack?: Uint8Array;
	/** The pack is the one that the manifest names. */
	promptPackNamed?: boolean;
	/** Bytes of memory beyond which a clip is made with parts that take turns; without it, where it fits in no other way. */
	comfortableMemory?: number;
	/** Destroys the GPU buffers that the engine has let go of; called when there are some. */
	sweep?: () => void;
}

export interface EngineInfo {
	device: Device;
	adapter: string;
	/** The adapter computes on the CPU (SwiftShader, WARP, lavapipe). */
	software: boolean;
	/** Version of the engine. */
	engine: string;
}

/** One comparison of the self-test: largest relative error of a kernel against the value it must give. */
export interface SelfCheck {
	name: string;
	error: number;
	tolerance: number;
}

/** Sizes are in pixels and frames; left out, they are the manifest's first. */
export interface VideoRequest {
	prompt: string;
	seed: number;
	width?: number;
	height?: number;
	frames?: number;
}

export interface PromptCheck {
	tokens: number;
	/** Words the model was never shown, as the visitor wrote them. */
	unknownWords: string[];
	/** The prompt is in the prompt pack and needs no text encoder. */
	packed: boolean;
	/** What the clip will need. */
	plan: ClipPlan;
}

export interface StepReport {
	index: number;
	steps: number;
	/** Noise level the step started from, 1 (noise only) to 0 (clean). */
	sigma: number;
}

/** `count` frames of width * height * 4 bytes, the first of them frame number `first` of the clip. */
export interface FrameBatch {
	first: number;
	count: number;
	rgba: Uint8Array;
}

export interface Generation {
	readonly width: number;
	readonly height: number;
	readonly frames: number;
	readonly fps: number;
	readonly steps: number;
	/** Whether every frame has been given. */
	readonly finished: boolean;
	/** Runs one denoising step; undefined when there are frames to fetch. */
	step(): Promise<StepReport | undefined>;
	/** Whether the parts of the model are in memory together. */
	readonly residency: Residency;
	/** RGBA of the middle frame as the present latents would decode it; throws where the parts take turns. */
	preview(): Promise<Uint8Array>;
	/** Decodes the next latent frame; undefined when there are steps to do first, and when the clip is complete. */
	nextFrames(): Promise<FrameBatch | undefined>;
	free(): void;
}

export interface Engine {
	readonly info: EngineInfo;
	/** Indices of the shards still to be added, in order of first use. */
	missingShards(): number[];
	/** Verifies length and SHA-256, keeps the tensors on the device; throws `integrity`. */
	addShard(index: number, bytes: Uint8Array): Promise<void>;
	/** Indices of the shards that a streamed text encoder reads; those that are not missing only have to be kept. */
	textShards(): number[];
	/** No shard is to be added: parts take turns, as the plan of `check` says. Nothing where the model is loaded already. */
	takeTurns(): void;
	/** Indices of the shards that parts which take turns are read from, beside those of the text encoder. */
	turnShards(): number[];
	/** Verifies a shard without taking it; throws `integrity`. */
	verifyShard(index: number, bytes: Uint8Array): void;
	selfTest(): Promise<{ checks: SelfCheck[] }>;
	/** Throws `too-large` for a clip that the device cannot hold. */
	check(request: VideoRequest): PromptCheck;
	begin(request: VideoRequest): Promise<Generation>;
	/** Puts a safetensors file with a LoRA on the device and gives its number; throws `lora`. */
	addLora(name: string, safetensors: Uint8Array): number;
	/** Generations begun later use exactly these LoRAs, `numbers[i]` at `strengths[i]`. */
	useLoras(numbers: Uint32Array, strengths: Float32Array): void;
	/** Forgets a LoRA that is not in use. */
	removeLora(number: number): void;
	free(): void;
}

export interface EngineModule {
	/** Gives the exports of the WebAssembly instance. */
	default(input: { module_or_path: Response | Promise<Response> }): Promise<object>;
	Engine: {
		create(manifest: string, tokenizer: string | undefined, options: EngineOptions): Promise<Engine>;
	};
}
