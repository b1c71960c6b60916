/**
 * The page's side of the worker: typed calls, cancellation that always works, and a fresh worker after one has died.
 */
import { KinoraError, aborted, fromWire, unlessAborted, type ErrorCode } from './errors.js';
import { ADAPTER_TIMEOUT, withoutGpu, type ProbeReport } from './probe.js';
import type { CallName, Calls, FromWorker, LoadArguments, OpenArguments, OpenResult, ToWorker } from './protocol.js';

declare const __BUILD__: string;

/** Milliseconds a cancelled call may take to end by itself; a CPU denoising step cannot be interrupted from inside. */
const CANCEL_PATIENCE = 1500;

/** After these the engine is gone, full, half built or suspect. A failed module import would also be remembered. */
const FATAL: readonly ErrorCode[] = [
	'device-lost',
	'out-of-memory',
	'unsupported-feature',
	'tensor',
	'numeric',
	'wasm',
	'internal',
];

interface Pending {
	resolve: (value: never) => void;
	reject: (error: KinoraError) => void;
	onEvent: (event: never) => void;
}

export interface CallOptions<Name extends CallName> {
	signal?: AbortSignal;
	onEvent?: (event: Calls[Name]['event']) => void;
}

export class Client {
	#worker: Worker | undefined;
	#ready: Promise<void> = Promise.resolve();
	#rejectReady: (error: KinoraError) => void = () => undefined;
	#pending = new Map<number, Pending>();
	#nextId = 1;
	/** The last probe. The worker takes one call at a time, so everything else waits for it. */
	#probing: Promise<unknown> = Promise.resolve();
	#opened: { key: string; result: OpenResult; loaded: boolean; encoder: boolean; turns: boolean } | undefined;

	/** Whether the model is on the device already, so that a generation needs no download. */
	get loaded(): boolean {
		return this.#opened?.loaded ?? false;
	}

	/** Whether prompts that are in no pack can be made without a download. */
	get encoderLoaded(): boolean {
		return this.#opened?.encoder ?? false;
	}

	/** Whether the model is stored as it has to be where its parts take turns. */
	get turnsReady(): boolean {
		return this.#opened?.turns ?? false;
	}

	/** Asks the GPU who it is. A GPU that says nothing for five seconds costs the worker, not the page. */
	probe(features: string[]): Promise<ProbeReport> {
		const report = this.#probing.then(() => this.#probe(features));
		this.#probing = report.catch(() => undefined);
		return report;
	}

	async #probe(features: string[]): Promise<ProbeReport> {
		if (!globalThis.isSecureContext) {
			return withoutGpu('unsupported-webgpu');
		}
		this.#start();
		await this.#ready;
		let timer: ReturnType<typeof setTimeout> | undefined;
		const silence = new Promise<ProbeReport>((resolve) => {
			timer = setTimeout(() => resolve(withoutGpu('adapter-timeout')), ADAPTER_TIMEOUT);
		});
		const answer = this.call('probe', { features });
		answer.catch(() => undefined);
		const report = await Promise.race([answer, silence]);
		clearTimeout(timer);
		if (report.problem === 'adapter-timeout') {
			this.#end(new KinoraError('adapter-timeout', 'The GPU did not answer.'));
		}
		return report;
	}

	/** Starts the engine for a model and a device, or gives the engine that already runs for them. */
	async open(input: OpenArguments, options: CallOptions<'open'> = {}): Promise<OpenResult> {
		const { signal } = options;
		await (signal ? unlessAborted(this.#probing, signal) : this.#probing);
		const key = JSON.stringify(input);
		if (this.#opened && this.#opened.key === key) {
			return { ...this.#opened.result, bytes: 0, timings: { engine: 0, create: 0 } };
		}
		if (this.#opened) {
			// The memory of a WebAssembly instance never shrinks; another device or model gets an instance of its own.
			this.#end(aborted());
		}
		const result = await this.call('open', input, options);
		this.#opened = { key, result, loaded: false, encoder: false, turns: false };
		return result;
	}

	async load(input: LoadArguments, options: CallOptions<'load'> = {}): Promise<Calls['load']['result']> {
		const opened = this.#opened;
		const result = await this.call('load', input, options);
		if (opened) {
			opened.loaded = true;
			opened.encoder = result.encoder;
			opened.turns = result.turns;
		}
		return result;
	}

	async call<Name extends CallName>(
		name: Name,
		input: Calls[Name]['arguments'],
		options: CallOptions<Name> = {},
	): Promise<Calls[Name]['result']> {
		const { signal, onEvent } = options;
		if (signal?.aborted) {
			throw aborted();
		}
		const worker = this.#start();
		const id = this.#nextId++;
		let timer: ReturnType<typeof setTimeout> | undefined;
		const cancel = () => {
			worker.postMessage({ call: 'cancel' } satisfies ToWorker);
			timer = setTimeout(() => this.#end(aborted()), CANCEL_PATIENCE);
		};
		try {
			return await new Promise<Calls[Name]['result']>((resolve, reject) => {
				this.#pending.set(id, {
					resolve: resolve as (value: never) => void,
					reject,
					onEvent: (onEvent ?? (() => undefined)) as (event: never) => void,
				});
				signal?.addEventListener('abort', cancel, { once: true });
				worker.postMessage({ id, call: name, arguments: input } as ToWorker);
			});
		} catch (error) {
			if (error instanceof KinoraError && FATAL.includes(error.code)) {
				this.#end(error);
			} else if (error instanceof KinoraError && error.code === 'storage' && this.#opened) {
				// What was stored is gone; the next run fetches it again.
				this.#opened.encoder = false;
				this.#opened.turns = false;
			}
			throw error;
		} finally {
			clearTimeout(timer);
			signal?.removeEventListener('abort', cancel);
			this.#pending.delete(id);
		}
	}

	/** Ends the worker and with it all memory of the engine; the next call starts another. */
	close(): void {
		this.#end(aborted());
	}

	#start(): Worker {
		if (this.#worker) {
			return this.#worker;
		}
		const worker = new Worker(new URL(`worker.js?v=${__BUILD__}`, import.meta.url), { type: 'module', name: 'kinora' });
		this.#worker = worker;
		this.#ready = new Promise((resolve, reject) => {
			this.#rejectReady = reject;
			worker.addEventListener('message', ({ data }: MessageEvent<FromWorker>) => {
				if (this.#worker !== worker) {
					// Sent before it was terminated.
				} else if ('id' in data) {
					this.#answer(data);
				} else if (data.type === 'ready') {
					resolve();
				} else {
					this.#end(
						new KinoraError('internal', `The engine stopped unexpectedly: ${data.message}`, { retryable: true }),
					);
				}
			});
			worker.addEventListener('error', (event) => {
				// Without a message the script itself could not be fetched.
				const error = event.message
					? new KinoraError('internal', `The engine stopped unexpectedly: ${event.message}`, { retryable: true })
					: new KinoraError('network', 'The page could not load its worker script.', { retryable: true });
				if (this.#worker === worker) {
					this.#end(error);
				}
			});
		});
		this.#ready.catch(() => undefined);
		return worker;
	}

	#answer(message: Extract<FromWorker, { id: number }>): void {
		const pending = this.#pending.get(message.id);
		if (message.type === 'event') {
			pending?.onEvent(message.event as never);
		} else if (message.type === 'done') {
			pending?.resolve(message.result as never);
		} else {
			pending?.reject(fromWire(message.error));
		}
	}

	#end(error: KinoraError): void {
		this.#worker?.terminate();
		this.#worker = undefined;
		this.#opened = undefined;
		this.#rejectReady(error);
		const pending = [...this.#pending.values()];
		this.#pending.clear();
		for (const { reject } of pending) {
			reject(error);
		}
	}
}
