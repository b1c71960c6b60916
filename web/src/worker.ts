/**
 * The worker: owns the engine and everything that computes. One call at a time; `cancel` ends it at the next point
 * where the engine is not in the middle of something.
 */
import { destroyUnused, rememberBuffers } from './buffers.js';
import { KinoraError, aborted, toWire } from './errors.js';
import type { Engine, EngineModule, EngineOptions, Generation, TextEncoderPlan } from './engine.js';
import { download, request, withRetries, downloadText } from './download.js';
import { ShardStore, loadShards } from './loader.js';
import { Loras } from './loras.js';
import { parseManifest, type ModelManifest } from './manifest.js';
import { probe } from './probe.js';
import type { CallName, Calls, FromWorker, OpenArguments, ToWorker } from './protocol.js';

declare const __BUILD__: string;

/** The part of DedicatedWorkerGlobalScope used here; TypeScript's DOM and WebWorker libraries exclude each other. */
interface WorkerScope {
	postMessage(message: FromWorker, transfer?: Transferable[]): void;
	addEventListener(type: 'message', listener: (event: MessageEvent<ToWorker>) => void): void;
	addEventListener(type: 'error', listener: (event: ErrorEvent) => void): void;
	addEventListener(type: 'unhandledrejection', listener: (event: PromiseRejectionEvent) => void): void;
}

const scope = self as unknown as WorkerScope;

/** Text encoders from this size on are read layer by layer: they would not fit beside the rest of a model. */
const STREAMED_FROM = 512 << 20;

/** The engine's module and the exports of its instance. */
interface StartedEngine {
	Engine: EngineModule['Engine'];
	exports: object;
}

interface Opened {
	engine: Engine;
	loras: Loras;
	manifest: ModelManifest;
	base: string;
	ready: boolean;
	textEncoder: TextEncoderPlan;
	/** The stored shards of a streamed text encoder are complete. */
	encoderStored: boolean;
	/** So are those of denoiser and decoder, which may take turns. */
	partsStored: boolean;
	/** Why a shard could not be read during the present call. */
	failure: KinoraError | undefined;
}

let module: Promise<StartedEngine> | undefined;
let opened: Opened | undefined;
let running: AbortController | undefined;

type Emit<Name extends CallName> = (event: Calls[Name]['event'], transfer?: Transferable[]) => void;
type Handlers = {
	[Name in CallName]: (
		input: Calls[Name]['arguments'],
		emit: Emit<Name>,
		signal: AbortSignal,
	) => Promise<Calls[Name]['result']>;
};

/** Lets queued messages in, `cancel` among them. A message, unlike a timer, is not slowed down in a hidden tab. */
function macrotask(): Promise<void> {
	return new Promise((resolve) => {
		const { port1, port2 } = new MessageChannel();
		port1.onmessage = () => {
			port1.close();
			resolve();
		};
		port2.postMessage(undefined);
	});
}

async function checkpoint(signal: AbortSignal): Promise<void> {
	await macrotask();
	if (signal.aborted) {
		throw aborted();
	}
}

/** Counts the bytes of a body on their way to the compiler. */
function counted(response: Response, onProgress: (loaded: number, total: number) => void): Response {
	const total = Number(response.headers.get('content-length') ?? 0);
	let loaded = 0;
	const counter = new TransformStream<Uint8Array<ArrayBuffer>, Uint8Array<ArrayBuffer>>({
		transform(chunk, controller) {
			loaded += chunk.length;
			onProgress(loaded, Math.max(total, loaded));
			controller.enqueue(chunk);
		},
	});
	return new Response(response.body?.pipeThrough(counter) ?? null, { headers: { 'content-type': 'application/wasm' } });
}

/** An import that fails is remembered by some browsers, and does not say whether the network or the script failed. */
async function importAfterFetching(script: string, signal: AbortSignal): Promise<EngineModule> {
	await withRetries(async () => (await request(script, { signal })).text(), signal);
	return (await import(script)) as EngineModule;
}

async function importEngine(
	signal: AbortSignal,
	onProgress: (loaded: number, total: number) => void,
): Promise<StartedEngine> {
	const script = new URL(`engine/kinora.js?v=${__BUILD__}`, import.meta.url).href;
	const binary = new URL(`engine/kinora_bg.wasm?v=${__BUILD__}`, import.meta.url).href;
	try {
		const [imported, response] = await Promise.all([
			importAfterFetching(script, signal),
			withRetries(() => request(binary, { signal }), signal),
		]);
		const exports = await imported.default({ module_or_path: counted(response, onProgress) });
		return { Engine: imported.Engine, exports };
	} catch (cause) {
		module = undefined;
		if (signal.aborted) {
			throw aborted();
		}
		if (cause instanceof KinoraError && cause.code === 'network') {
			throw cause;
		}
		const reason = cause instanceof Error ? cause.message : String(cause);
		throw new KinoraError('wasm', `The engine could not be started: ${reason}`, { retryable: true, cause });
	}
}

function loaded(): Opened {
	const found = current();
	if (!found.ready) {
		throw new KinoraError('internal', 'The model has not been loaded.');
	}
	return found;
}

function current(): Opened {
	if (opened === undefined) {
		throw new KinoraError('internal', 'No model has been opened.');
	}
	return opened;
}

function textEncoderPlan(manifest: ModelManifest, input: OpenArguments): TextEncoderPlan {
	if (!manifest.encoderHosted) {
		return 'absent';
	}
	if (input.textEncoder !== 'auto') {
		return input.textEncoder;
	}
	const packed = input.promptPackUrl !== undefined || manifest.promptPack !== undefined;
	return packed || manifest.encoderBytes >= STREAMED_FROM ? 'streamed' : 'resident';
}

async function fetchPromptPack(
	manifest: ModelManifest,
	input: OpenArguments,
	signal: AbortSignal,
): Promise<Pick<EngineOptions, 'promptPack' | 'promptPackNamed'>> {
	if (input.promptPackUrl !== undefined) {
		return { promptPack: await download(input.promptPackUrl, { signal }) };
	}
	const named = manifest.promptPack;
	if (named === undefined) {
		return {};
	}
	const url = new URL(named.path, input.manifestUrl).href;
	return { promptPack: await download(url, { bytes: named.bytes, signal }), promptPackNamed: true };
}

/**
 * A shard of the streamed text encoder, or of a part whose turn it is, from this device's storage only: which shards of
 * the token table a prompt needs depends on its words, so asking a server for single ones would tell it about them.
 */
async function readShard(index: number): Promise<Uint8Array> {
	await macrotask();
	if (running?.signal.aborted) {
		throw Object.assign(current(), { failure: aborted() }).failure;
	}
	const { manifest } = current();
	const shard = manifest.shards[index];
	const kept = shard && (await (await ShardStore.open()).get(shard));
	if (kept === undefined) {
		const failure = new KinoraError('storage', 'A part of the model is no longer stored on this device.', {
			retryable: true,
		});
		Object.assign(current(), { failure, encoderStored: false, partsStored: false });
		throw failure;
	}
	return kept;
}

const handlers: Handlers = {
	probe: ({ features }) => probe(features),

	async open(input, emit, signal) {
		const manifest = parseManifest(input.manifest);
		const started = performance.now();
		let engineBytes = 0;
		module ??= importEngine(signal, (loaded, total) => {
			engineBytes = loaded;
			emit({ kind: 'download', loaded, total });
		});
		const { Engine, exports } = await module;
		const textEncoder = textEncoderPlan(manifest, input);
		const tokenizer =
			textEncoder === 'absent'
				? undefined
				: await downloadText(new URL(manifest.tokenizer.path, input.manifestUrl).href, { signal });
		const prompts = await fetchPromptPack(manifest, input, signal);
		const fetched = performance.now();
		opened?.engine.free();
		opened = undefined;
		const { device: wanted, strictLimits } = input;
		const engine = await Engine.create(input.manifest, tokenizer, {
			device: wanted,
			strictLimits,
			textEncoder,
			readShard,
			sweep: () => destroyUnused(exports),
			...prompts,
			...(input.comfortableMemory === undefined ? {} : { comfortableMemory: input.comfortableMemory }),
		});
		const loras = new Loras(engine);
		opened = {
			engine,
			loras,
			manifest,
			base: input.manifestUrl,
			ready: false,
			textEncoder,
			encoderStored: false,
			partsStored: false,
			failure: undefined,
		};
		const { device, adapter, software, engine: version } = engine.info;
		return {
			info: { device, adapter, software, engine: version },
			bytes: engineBytes + (tokenizer === undefined ? 0 : manifest.tokenizer.bytes) + (prompts.promptPack?.length ?? 0),
			timings: { engine: fetched - started, create: performance.now() - fetched },
		};
	},

	async check(input) {
		const { tokens, unknownWords, packed, plan } = current().engine.check(input);
		return { tokens, unknownWords: [...unknownWords], packed, plan };
	},

	async load(input, emit, signal) {
		const { engine, manifest, base, ready } = current();
		const started = performance.now();
		let adding = 0;
		const turns = input.residency === 'turns';
		if (turns) {
			engine.takeTurns();
			if (current().textEncoder === 'resident') {
				current().textEncoder = 'streamed';
			}
		}
		const { textEncoder } = current();
		const storing = input.encoder && textEncoder === 'streamed';
		// Fetched whole and kept, so that no request ever depends on the words of a prompt.
		const needed = new Set(engine.missingShards());
		const stored = [...(storing ? engine.textShards() : []), ...(turns ? engine.turnShards() : [])];
		const keep = new Set(stored.filter((index) => !needed.has(index)));
		const missing = [...needed, ...keep].sort((one, other) => one - other);
		const report = await loadShards({
			base,
			shards: manifest.shards,
			missing,
			keep,
			signal,
			onProgress: (loaded, total) => emit({ kind: 'download', loaded, total }),
			async add(index, bytes) {
				const begun = performance.now();
				try {
					await (keep.has(index) ? engine.verifyShard(index, bytes) : engine.addShard(index, bytes));
				} finally {
					adding += performance.now() - begun;
				}
			},
		});
		current().encoderStored ||= storing;
		current().partsStored ||= turns;
		const there = { encoder: textEncoder === 'resident' || current().encoderStored, turns: current().partsStored };
		const loaded = performance.now();
		if (ready) {
			return { checks: [], ...report, ...there, timings: { download: loaded - started - adding, warmup: adding } };
		}
		emit({ kind: 'warmup', done: 0, total: 1 });
		await checkpoint(signal);
		const { checks } = await engine.selfTest();
		current().ready = true;
		emit({ kind: 'warmup', done: 1, total: 1 });
		return {
			checks: checks.map(({ name, error, tolerance }) => ({ name, error, tolerance })),
			...report,
			...there,
			timings: { download: loaded - started - adding, warmup: adding + performance.now() - loaded },
		};
	},

	async loras(input, emit, signal) {
		const total = input.loras.length;
		return { bytes: await loaded().loras.use(input.loras, signal, (done) => emit({ kind: 'lora', done, total })) };
	},

	async generate(input, emit, signal) {
		const { engine } = loaded();
		const started = performance.now();
		current().failure = undefined;
		let generation: Generation | undefined;
		try {
			generation = await engine.begin(input);
			const text = performance.now() - started;
			return await run(generation, emit, signal, text);
		} catch (error) {
			throw current().failure ?? error;
		} finally {
			generation?.free();
		}
	},
};

async function run(
	generation: Generation,
	emit: Emit<'generate'>,
	signal: AbortSignal,
	text: number,
): Promise<Calls['generate']['result']> {
	const { width, height, frames, fps, steps } = generation;
	const timings = { text, steps: [] as number[], preview: 0, decode: 0 };
	const time = async <Value>(work: Promise<Value>): Promise<[Value, number]> => {
		const begun = performance.now();
		const value = await work;
		return [value, performance.now() - begun];
	};
	const previews = generation.residency === 'together';
	let previewTime = 0;
	let given = 0;
	emit({ kind: 'text', width, height, frames, fps, steps });
	const denoise = async () => {
		await checkpoint(signal);
		const [step, milliseconds] = await time(generation.step());
		if (step === undefined) {
			return false;
		}
		timings.steps.push(milliseconds);
		emit({ kind: 'step', index: step.index, steps: step.steps, sigma: step.sigma });
		// One preview where the decoder is there, and more where they are cheaper than the steps between them. The last
		// estimate is the clip itself, which is decoded next; and once finished frames can be watched nobody needs estimates.
		if (previews && step.index + 1 < steps && given === 0 && previewTime <= milliseconds) {
			await checkpoint(signal);
			const [rgba, spent] = await time(generation.preview());
			previewTime = spent;
			timings.preview += spent;
			emit({ kind: 'preview', width, height, rgba }, [rgba.buffer as ArrayBuffer]);
		}
		return true;
	};
	const decode = async () => {
		await checkpoint(signal);
		const [batch, milliseconds] = await time(generation.nextFrames());
		if (batch === undefined) {
			return false;
		}
		timings.decode += milliseconds;
		const { first, count, rgba } = batch;
		given = first + count;
		emit({ kind: 'frames', width, height, frames, first, count, rgba }, [rgba.buffer as ArrayBuffer]);
		return true;
	};
	// Most models denoise the clip as a whole; causal ones give the frames of a chunk before they begin the next.
	while (!generation.finished) {
		while (await denoise());
		while (await decode());
	}
	return { width, height, frames, fps, timings };
}

async function answer(message: Exclude<ToWorker, { call: 'cancel' }>): Promise<void> {
	const { id, call } = message;
	if (running) {
		scope.postMessage({
			id,
			type: 'error',
			error: toWire(new KinoraError('busy', 'Another call is still running.', { retryable: true })),
		});
		return;
	}
	const controller = new AbortController();
	running = controller;
	try {
		const handler = handlers[call] as (
			input: unknown,
			emit: Emit<CallName>,
			signal: AbortSignal,
		) => Promise<Calls[CallName]['result']>;
		const result = await handler(
			message.arguments,
			(event, transfer = []) => scope.postMessage({ id, type: 'event', event }, transfer),
			controller.signal,
		);
		running = undefined;
		scope.postMessage({ id, type: 'done', result });
	} catch (error) {
		running = undefined;
		if (error instanceof WebAssembly.RuntimeError) {
			scope.postMessage({ type: 'crash', message: error.message });
			return;
		}
		scope.postMessage({ id, type: 'error', error: toWire(error) });
	}
}

rememberBuffers();
scope.addEventListener('message', ({ data }) => {
	if (data.call === 'cancel') {
		running?.abort();
		return;
	}
	void answer(data);
});
// A trap inside an asynchronous engine call never settles its promise; it only shows up here.
scope.addEventListener('error', (event) => scope.postMessage({ type: 'crash', message: event.message }));
scope.addEventListener('unhandledrejection', (event) =>
	scope.postMessage({ type: 'crash', message: String(event.reason) }),
);
scope.postMessage({ type: 'ready' });
