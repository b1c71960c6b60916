/**
 * `<kinora-video>`: prompt in, video out. The element owns the worker, shows the picture as it forms and plays the
 * result; the controls around it belong to the page. Nothing but the manifest is fetched before `generate()`.
 *
 * Attributes: `src` (address of the manifest), `prompt`, `seed`, `size` (`176x96`, or `176x96x17` with the number of
 * frames; one that the manifest offers, its first if absent), `loras` (addresses of LoRA files with spaces between, each
 * with its strength behind an equals sign unless that is 1: `ink.safetensors fog.safetensors=0.6`), `device` (`auto`,
 * `webgpu` or `cpu`), `limits` (`default` asks the GPU for the WebGPU default limits only), `prompts` (address of a prompt
 * pack, in place of the one that the manifest may name), `text-encoder` (`resident`, `streamed` or `auto`), `residency`
 * (`together`, `turns` or `auto`: whether the parts of the model are in memory at once, or one after the other as they are
 * by themselves where memory is short), `keep-frames` (`no` where the pixels of the finished clip are not wanted: they go
 * to the video encoder as they come, and `result.frames` is empty, as it is for every clip of more than 128 MiB of
 * pixels). Events: `statechange`, `progress`, `frame`, `notice`, `result`, `error`.
 */
import { deviceOf, keepsFrames, manifestUrl, openArguments, requestOf, residencyOf } from './attributes.js';
import { Client } from './client.js';
import { sizeOf } from './clip.js';
import { Course } from './course.js';
import { downloadText } from './download.js';
import type { Device, Residency, VideoRequest } from './engine.js';
import { KinoraError, aborted, toKinoraError, unlessAborted, type ErrorCode } from './errors.js';
import type { Availability, FrameDetail, GenerateOptions, KinoraVideoEvents, State, VideoResult } from './events.js';
import { ShardStore, deleteStoredModels } from './loader.js';
import { lorasOf, weighted, type WeightedLora } from './loras.js';
import { parseManifest, type ClipSize } from './manifest.js';
import { STAGES } from './messages.js';
import { Pace, Progress, type Stage } from './progress.js';
import { Screen } from './screen.js';
import type { GenerateEvent } from './protocol.js';

export type * from './events.js';

const STYLE = `
	:host { display: block; position: relative; aspect-ratio: var(--kinora-ratio, 1); overflow: hidden; background: #000; }
	:host([hidden]) { display: none; }
	canvas, video, slot { position: absolute; inset: 0; inline-size: 100%; block-size: 100%; }
	canvas, video { object-fit: contain; opacity: 0; transition: opacity 240ms ease; }
	video { display: block; }
	canvas.shown, video.shown { opacity: 1; }
	@media (prefers-reduced-motion: reduce) { canvas, video { transition: none; } }
`;

/** Failures that a newer manifest may cure: the site can have been updated since this page was opened. */
const STALE: readonly ErrorCode[] = ['network', 'integrity', 'manifest', 'tensor', 'tokenizer', 'prompt-pack'];

/** Milliseconds a player may take to its first frame before the clip is handed over all the same. */
const FIRST_FRAME_PATIENCE = 2000;

/** What a look at the model and the device found, and the manifest as it was read. */
interface Found extends Availability {
	text: string;
}

export class KinoraVideo extends HTMLElement {
	static readonly observedAttributes = ['src', 'device', 'limits', 'size', 'prompts', 'text-encoder', 'residency'];

	readonly #client = new Client();
	readonly #screen = new Screen();
	readonly #video = document.createElement('video');
	#found: Promise<Found> | undefined;
	/** An attribute is not what it was when the engine was opened. */
	#changed = false;
	/** The browser keeps the model that is loaded. */
	#stored = false;
	/** What has run out of memory. */
	#short: Device | undefined;
	/** The browser stores nothing. */
	#unstored = false;
	#device: Device | undefined;
	#state: State = 'idle';
	#run: AbortController | undefined;
	#result: VideoResult | undefined;

	constructor() {
		super();
		const root = this.attachShadow({ mode: 'open' });
		const sheet = new CSSStyleSheet();
		sheet.replaceSync(STYLE);
		root.adoptedStyleSheets = [sheet];
		this.#video.setAttribute('part', 'video');
		this.#video.muted = true;
		this.#video.playsInline = true;
		this.#video.loop = true;
		root.append(document.createElement('slot'), this.#screen.canvas, this.#video);
	}

	connectedCallback(): void {
		if (this.#result && !this.#video.src) {
			this.#video.src = URL.createObjectURL(this.#result.blob);
		}
	}

	disconnectedCallback(): void {
		// An element that is only moved is back in the document when the script that moves it has ended.
		queueMicrotask(() => {
			if (!this.isConnected) {
				this.cancel();
				this.#client.close();
				this.#forgetVideo();
			}
		});
	}

	attributeChangedCallback(name: string, before: string | null, after: string | null): void {
		if (name === 'size') {
			// A clip that is shown keeps its frame until the next one is drawn.
			if (!this.#result) {
				this.#shape(sizeOf(after));
			}
		} else if (before !== after) {
			this.#found = undefined;
			this.#changed = true;
		}
	}

	/** The frame around the picture takes the clip's proportions before there is a clip, so that nothing jumps. */
	#shape({ width, height }: Partial<Pick<ClipSize, 'width' | 'height'>>): void {
		if (width && height) {
			this.style.setProperty('--kinora-ratio', `${width} / ${height}`);
		} else {
			this.style.removeProperty('--kinora-ratio');
		}
	}

	get state(): State {
		return this.#state;
	}

	/** What is computed on, once that has been decided. */
	get device(): Device | undefined {
		return this.#device;
	}

	/** The last finished clip. */
	get result(): VideoResult | undefined {
		return this.#result;
	}

	/** The player; empty until there is a result. */
	get video(): HTMLVideoElement {
		return this.#video;
	}

	/** Whether a generation can start without loading anything. */
	get loaded(): boolean {
		return this.#client.loaded && !this.#changed;
	}

	/** Reads the manifest and asks for a GPU. Repeated calls share one answer until an attribute changes. */
	availability(): Promise<Availability> {
		return this.#find();
	}

	#find(): Promise<Found> {
		if (this.#found === undefined) {
			const asked = this.#look().then(
				(found) => {
					// An answer that comes after the attributes have changed is about something else.
					if (this.#found === asked) {
						this.#device = found.device;
					}
					return found;
				},
				(error: unknown) => {
					if (this.#found === asked) {
						this.#found = undefined;
					}
					throw toKinoraError(error);
				},
			);
			this.#found = asked;
		}
		return this.#found;
	}

	async #look(): Promise<Found> {
		const forced = deviceOf(this);
		const text = await downloadText(manifestUrl(this), { revalidate: true }).catch((error: unknown) => {
			const { code, message } = toKinoraError(error);
			throw code === 'integrity' ? new KinoraError('manifest', message, { retryable: true, cause: error }) : error;
		});
		const manifest = parseManifest(text);
		const probe = forced === 'cpu' ? undefined : await this.#client.probe(manifest.features);
		const stored = await (await ShardStore.open()).has(manifest.firstShards);
		return { manifest, probe, device: forced ?? probe?.device ?? 'cpu', stored, text };
	}

	/** Makes one video. Downloads the model first when it is not here yet. */
	async generate(options: GenerateOptions = {}): Promise<VideoResult> {
		if (this.#run) {
			throw new KinoraError('busy', 'This element is making a video already.', { retryable: true });
		}
		const run = new AbortController();
		this.#run = run;
		const signal = options.signal ? AbortSignal.any([run.signal, options.signal]) : run.signal;
		// A phone that goes to sleep would stop the work; where the browser has no such lock, it may.
		const awake = (navigator as { wakeLock?: WakeLock }).wakeLock?.request('screen').catch(() => undefined);
		try {
			const request = requestOf(this, options);
			const loras = weighted(options.loras ?? lorasOf(this.getAttribute('loras')), document.baseURI);
			const progress = new Progress();
			const result = await this.#attempt(request, loras, signal, progress).catch((error: unknown) => {
				// The seed makes the second run the same clip. A device that fails twice is not tried again.
				const { code, retryable } = toKinoraError(error);
				const auto = residencyOf(this) === 'auto';
				const short = code === 'out-of-memory' && auto && this.#short !== this.#device;
				// Memory is said to be short, and nothing can be stored: rather all of the model in memory than no clip.
				const unstored = code === 'storage' && !retryable && auto && !this.#unstored;
				if ((code !== 'device-lost' && !short && !unstored) || signal.aborted) {
					throw error;
				}
				if (unstored) {
					this.#unstored = true;
					return this.#attempt(request, loras, signal, progress);
				}
				if (short) {
					this.#short = this.#device;
				}
				this.#emit('notice', { restarted: short ? 'out-of-memory' : 'device-lost' });
				return this.#attempt(request, loras, signal, progress).catch((second: unknown) => {
					// A browser withholds the adapter after some losses; what the visitor has to hear is that it was lost.
					throw ['no-adapter', 'adapter-timeout'].includes(toKinoraError(second).code) ? error : second;
				});
			});
			this.#result = result;
			await this.#show(result, request.prompt);
			this.#setState('done');
			this.#emit('result', result);
			return result;
		} catch (thrown) {
			const error = signal.aborted ? aborted() : toKinoraError(thrown);
			this.#restore();
			if (STALE.includes(error.code)) {
				this.#found = undefined;
			}
			this.#setState(error.code === 'aborted' ? 'idle' : 'error');
			if (error.code !== 'aborted') {
				this.#emit('error', error);
			}
			throw error;
		} finally {
			this.#run = undefined;
			void awake?.then((lock) => lock?.release());
		}
	}

	/** Ends the present run; its promise rejects with `aborted` within two seconds, whatever the engine is doing. */
	cancel(): void {
		this.#run?.abort();
	}

	/** Removes the stored model from this device. */
	async deleteModel(): Promise<void> {
		this.cancel();
		this.#client.close();
		this.#found = undefined;
		await deleteStoredModels();
	}

	async #attempt(
		request: VideoRequest,
		loras: WeightedLora[],
		signal: AbortSignal,
		progress: Progress,
	): Promise<VideoResult> {
		const started = performance.now();
		const wasLoaded = this.loaded;
		this.#setState(wasLoaded ? 'generating' : 'loading');
		const stages: Stage[] =
			loras.length > 0 ? ['lora', 'text', 'denoise', 'decode', 'encode'] : ['text', 'denoise', 'decode', 'encode'];
		progress.begin(wasLoaded ? stages : ['engine', 'download', 'warmup', ...stages]);
		let pace = new Pace(3000);
		let last: Stage | undefined;
		const report = (stage: Stage, fraction: number, text: string = STAGES[stage]) => {
			if (stage !== last) {
				pace = new Pace(stage === 'download' ? 3000 : 1000);
				last = stage;
			}
			this.#emit('progress', {
				value: progress.update(stage, fraction),
				stage,
				text,
				remaining: pace.remaining(fraction),
			});
		};
		report(wasLoaded ? (stages[0] ?? 'text') : 'engine', 0);

		const { manifest, probe, device, text } = await unlessAborted(this.#find(), signal);
		if (probe?.problem && device === 'webgpu') {
			throw new KinoraError(
				probe.problem,
				`WebGPU cannot be used here (${probe.problem}${probe.missing.map((name) => `: ${name}`).join('')}).`,
			);
		}
		if (!('VideoEncoder' in globalThis)) {
			// Known now, so nobody has to wait for a clip that cannot be saved.
			throw new KinoraError('encode', 'This browser has no WebCodecs video encoder.');
		}
		// Fetched now, so that a generation later needs no network at all.
		const encoding = import('./recording.js');
		encoding.catch(() => undefined);
		const opened = await this.#client.open(
			openArguments(this, device, text, { short: this.#short === device, unstored: this.#unstored }),
			{
				signal,
				onEvent: ({ loaded, total }) => report('engine', loaded / total),
			},
		);
		this.#changed = false;
		// Before the weights as well. A browser remembers an import that failed, and a page that has been replaced meanwhile
		// names a file that is gone: only a fresh page helps.
		const { encodeClip, Recording, KEPT_BYTES } = await unlessAborted(encoding, signal).catch((cause: unknown) => {
			throw signal.aborted
				? cause
				: new KinoraError('wasm', 'The video encoder could not be downloaded.', { retryable: true, cause });
		});
		// Before the weights: a prompt the model cannot take should not cost a download, nor a clip the device cannot hold.
		const { unknownWords, packed, plan } = await this.#client.call('check', request, { signal });
		this.#emit('notice', { plan });
		if (unknownWords.length > 0) {
			this.#emit('notice', { unknownWords });
		}
		if (wasLoaded && !this.#isLoaded(!packed, plan.residency)) {
			// The first prompt that is in no pack, or the first clip for which memory is short.
			progress.begin(['download', ...stages]);
		}
		const loaded = await this.#load(!packed, plan.residency, signal, report);
		if (loras.length > 0) {
			report('lora', 0);
		}
		// Also without any: those of an earlier run are taken away.
		const adapted = await this.#client.call(
			'loras',
			{ loras },
			{ signal, onEvent: ({ done, total }) => report('lora', done / total) },
		);

		// WebGPU inside WebAssembly does not learn the adapter's name; the page does.
		const engine = { ...opened.info, adapter: (device === 'webgpu' && probe?.adapter) || opened.info.adapter };

		this.#setState('generating');
		report('text', 0);
		const frames: Uint8Array[] = [];
		const marking = { model: manifest.name, software: `Kinora ${opened.info.engine}`, seed: request.seed };
		const course = new Course();
		const failed = new AbortController();
		let recording: InstanceType<typeof Recording> | undefined;
		const take = (rgba: Uint8Array, index: number) => {
			if (recording) {
				recording.add(rgba);
			} else {
				frames[index] = rgba;
			}
		};
		this.#screen.stop();
		const onEvent = (event: GenerateEvent) => {
			if (event.kind === 'text' && (!keepsFrames(this) || 4 * event.width * event.height * event.frames > KEPT_BYTES)) {
				recording = new Recording(event, marking);
				recording.failure.catch((error: unknown) => failed.abort(error));
			}
			this.#follow(event, manifest.fps, take);
			const told = course.report(event);
			if (told) {
				report(told.stage, told.fraction, told.text);
			}
		};
		const either = AbortSignal.any([signal, failed.signal]);
		const made = await this.#client.call('generate', request, { signal: either, onEvent }).catch((error: unknown) => {
			recording?.cancel();
			throw failed.signal.aborted && !signal.aborted ? failed.signal.reason : error;
		});
		this.#setState('encoding');
		report('encode', 0);
		const encodeStarted = performance.now();
		const { width, height, fps } = made;
		const { refused, ...encoded } = recording
			? await unlessAborted(recording.finish(), signal).catch((error: unknown) => {
					recording?.cancel();
					throw error;
				})
			: await encodeClip({ frames, width, height, fps }, marking, {
					signal,
					onProgress: (fraction) => report('encode', fraction),
				});
		const ended = performance.now();
		report('encode', 1);
		return {
			...encoded,
			width,
			height,
			fps,
			seed: request.seed,
			frames,
			frameCount: made.frames,
			model: manifest.name,
			engine,
			unknownWords,
			checks: loaded.checks,
			bytesDownloaded: opened.bytes + loaded.bytes + adapted.bytes,
			bytesFromCache: loaded.bytesFromCache,
			stored: loaded.stored,
			refusedCodecs: refused,
			timings: {
				engine: opened.timings.engine + opened.timings.create,
				...loaded.timings,
				...made.timings,
				encode: ended - encodeStarted,
				total: ended - started,
			},
		};
	}

	#isLoaded(encoder: boolean, residency: Residency): boolean {
		const { loaded, encoderLoaded, turnsReady } = this.#client;
		return loaded && (!encoder || encoderLoaded) && (residency === 'together' || turnsReady);
	}

	async #load(
		encoder: boolean,
		residency: Residency,
		signal: AbortSignal,
		report: (stage: Stage, fraction: number) => void,
	) {
		if (this.#isLoaded(encoder, residency)) {
			return { checks: [], bytes: 0, bytesFromCache: 0, stored: this.#stored, timings: { download: 0, warmup: 0 } };
		}
		report('download', 0);
		const loaded = await this.#client.load(
			{ encoder, residency },
			{
				signal,
				onEvent(event) {
					if (event.kind === 'download') {
						report('download', event.loaded / event.total);
					} else {
						report('warmup', event.done / event.total);
					}
				},
			},
		);
		this.#stored = loaded.stored;
		return loaded;
	}

	#follow(event: GenerateEvent, fps: number, take: (rgba: Uint8Array, index: number) => void): void {
		if (event.kind === 'preview') {
			const { width, height, rgba } = event;
			const frame = { index: undefined, frames: 0, width, height, rgba };
			this.#screen.preview(frame);
			this.#drawn(frame);
		} else if (event.kind === 'frames') {
			const size = event.rgba.length / event.count;
			const { width, height } = event;
			for (let offset = 0; offset < event.count; offset++) {
				const rgba = event.rgba.subarray(offset * size, (offset + 1) * size);
				const frame = { index: event.first + offset, frames: event.frames, width, height, rgba };
				take(rgba, frame.index);
				this.#screen.play(frame, fps);
				this.#drawn(frame);
			}
		}
	}

	#drawn(frame: FrameDetail): void {
		this.#shape(frame);
		this.#screen.canvas.classList.add('shown');
		this.#video.classList.remove('shown');
		this.#emit('frame', frame);
	}

	async #show(result: VideoResult, prompt: string): Promise<void> {
		this.#forgetVideo();
		this.#video.src = URL.createObjectURL(result.blob);
		this.#video.setAttribute('aria-label', `AI-generated video: ${prompt}`);
		const first = new Promise<void>((resolve) => {
			this.#video.addEventListener('loadeddata', () => resolve(), { once: true });
			this.#video.addEventListener('error', () => resolve(), { once: true });
			setTimeout(resolve, FIRST_FRAME_PATIENCE);
		});
		if (!matchMedia('(prefers-reduced-motion: reduce)').matches) {
			// Before the first frame is there: some browsers fetch none until they are to play. Refused by some battery
			// savers; the play button remains.
			this.#video.play().catch(() => undefined);
		}
		await first;
		this.#screen.stop();
		this.#video.classList.add('shown');
	}

	/** After a run without a result: the last clip again, or nothing, but no half-finished picture. */
	#restore(): void {
		this.#shape(this.#result ?? sizeOf(this.getAttribute('size')));
		this.#screen.stop();
		this.#screen.canvas.classList.remove('shown');
		this.#video.classList.toggle('shown', this.#result !== undefined);
	}

	#forgetVideo(): void {
		if (this.#video.src) {
			URL.revokeObjectURL(this.#video.src);
			this.#video.removeAttribute('src');
			this.#video.load();
		}
	}

	#setState(state: State): void {
		if (this.#state !== state) {
			this.#state = state;
			this.#emit('statechange', state);
		}
	}

	#emit<Name extends keyof KinoraVideoEvents>(name: Name, detail: KinoraVideoEvents[Name]['detail']): void {
		// None of them bubbles: an `error` that reached the window would pass for a script error of the host page.
		this.dispatchEvent(new CustomEvent(name, { detail }));
	}
}
