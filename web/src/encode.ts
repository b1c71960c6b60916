/** Frames to a video file, with whatever codec this browser really has. Loaded on demand: it carries the muxer. */
import {
	BufferTarget,
	Mp4OutputFormat,
	Output,
	Quality,
	VideoSample,
	VideoSampleSource,
	WebMOutputFormat,
	type VideoCodec,
} from 'mediabunny';
import { KinoraError, aborted } from './errors.js';

/** IPTC term for media made by a trained model, the value Content Credentials use as well. */
export const DIGITAL_SOURCE_TYPE = 'http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia';

/** Milliseconds without a packet: a browser may accept a codec it cannot run and then neither fail nor deliver. */
export const PATIENCE = 20_000;

/** A codec in its container. */
export interface Rung {
	codec: VideoCodec;
	container: 'mp4' | 'webm';
	hardwareAcceleration: 'no-preference' | 'prefer-software';
}

/** Most widely playable first. Hardware H.264 encoders may refuse small pictures, so the software one gets a turn. */
const LADDER: readonly Rung[] = [
	{ codec: 'avc', container: 'mp4', hardwareAcceleration: 'no-preference' },
	{ codec: 'avc', container: 'mp4', hardwareAcceleration: 'prefer-software' },
	{ codec: 'vp9', container: 'mp4', hardwareAcceleration: 'no-preference' },
	{ codec: 'av1', container: 'mp4', hardwareAcceleration: 'no-preference' },
	{ codec: 'vp8', container: 'webm', hardwareAcceleration: 'no-preference' },
];

export interface ClipShape {
	width: number;
	height: number;
	fps: number;
}

export interface Clip extends ClipShape {
	/** RGBA of each frame, width * height * 4 bytes. */
	frames: readonly Uint8Array[];
}

export interface Marking {
	/** Name of the model that made the clip. */
	model: string;
	/** Name and version of the software. */
	software: string;
	seed: number;
}

export interface EncodedClip {
	blob: Blob;
	mimeType: string;
	codec: VideoCodec;
	extension: string;
	/** Codecs that were tried before and why each did not do. */
	refused: string[];
}

export interface EncodeOptions {
	signal?: AbortSignal;
	onProgress?: (fraction: number) => void;
}

/** What the file says about its own making. Never the prompt: that is the visitor's. */
function tags(marking: Marking, container: Rung['container']) {
	const comment = `AI-generated video. Digital source type: ${DIGITAL_SOURCE_TYPE}. Model: ${marking.model}. Seed: ${marking.seed}.`;
	return {
		comment,
		raw: container === 'mp4' ? { '©too': marking.software } : { ENCODED_BY: marking.software, DIGITAL_SOURCE_TYPE },
	};
}

/** One video file in the making, with one codec. */
export class Writer {
	readonly #rung: Rung;
	readonly #shape: ClipShape;
	readonly #target = new BufferTarget();
	readonly #format: Mp4OutputFormat | WebMOutputFormat;
	readonly #output: Output;
	readonly #source: VideoSampleSource;
	#frames = 0;
	#packets = 0;

	/** `onPacket` hears of every frame that comes out of the encoder, with their number so far. */
	constructor(rung: Rung, shape: ClipShape, marking: Marking, onPacket: (packets: number) => void = () => undefined) {
		this.#rung = rung;
		this.#shape = shape;
		this.#format = rung.container === 'mp4' ? new Mp4OutputFormat({ fastStart: 'in-memory' }) : new WebMOutputFormat();
		this.#output = new Output({ format: this.#format, target: this.#target });
		this.#source = new VideoSampleSource({
			codec: rung.codec,
			quality: new Quality('very-high'),
			hardwareAcceleration: rung.hardwareAcceleration,
			onEncodedPacket: () => onPacket(++this.#packets),
		});
		this.#output.addVideoTrack(this.#source, { frameRate: shape.fps });
		this.#output.setMetadataTags(tags(marking, rung.container));
	}

	start(): Promise<void> {
		return this.#output.start();
	}

	/** Takes the next frame; done when the encoder can take another. */
	async add(rgba: Uint8Array): Promise<void> {
		const { width, height, fps } = this.#shape;
		const sample = new VideoSample(rgba, {
			// The fourth byte is always opaque; saying so keeps encoders from looking for transparency.
			format: 'RGBX',
			codedWidth: width,
			codedHeight: height,
			timestamp: this.#frames++ / fps,
			duration: 1 / fps,
		});
		try {
			await this.#source.add(sample);
		} finally {
			sample.close();
		}
	}

	/** The file, once every frame has come out. */
	async finish(): Promise<Omit<EncodedClip, 'refused'>> {
		await this.#output.finalize();
		if (this.#packets !== this.#frames || this.#target.buffer === null) {
			throw new Error(`${this.#packets} of ${this.#frames} frames came out`);
		}
		const mimeType = await this.#output.getMimeType();
		return {
			blob: new Blob([this.#target.buffer], { type: mimeType }),
			mimeType,
			codec: this.#rung.codec,
			extension: this.#format.fileExtension,
		};
	}

	/** Ends it without a file, also where the encoder has failed. */
	async cancel(): Promise<void> {
		await this.#output.cancel().catch(() => undefined);
	}
}

async function encodeWith(
	rung: Rung,
	clip: Clip,
	marking: Marking,
	options: EncodeOptions,
): Promise<Omit<EncodedClip, 'refused'>> {
	const writer = new Writer(rung, clip, marking, (packets) => options.onProgress?.(packets / clip.frames.length));
	const stop = () => void writer.cancel();
	options.signal?.addEventListener('abort', stop, { once: true });
	try {
		await writer.start();
		for (const rgba of clip.frames) {
			if (options.signal?.aborted) {
				throw aborted();
			}
			await writer.add(rgba);
		}
		return await writer.finish();
	} catch (error) {
		await writer.cancel();
		throw error;
	} finally {
		options.signal?.removeEventListener('abort', stop);
	}
}

/** One attempt, ended when it falls silent or is no longer wanted, even where the encoder itself never answers. */
async function attempt(
	rung: Rung,
	clip: Clip,
	marking: Marking,
	{ signal, onProgress }: EncodeOptions,
): Promise<Omit<EncodedClip, 'refused'>> {
	if (signal?.aborted) {
		throw aborted();
	}
	const stop = new AbortController();
	return new Promise((resolve, reject) => {
		let timer: ReturnType<typeof setTimeout> | undefined;
		const giveUp = (reason: Error) => {
			clearTimeout(timer);
			reject(reason);
			stop.abort();
		};
		const heard = () => {
			clearTimeout(timer);
			timer = setTimeout(() => giveUp(new Error('it did not answer')), PATIENCE);
		};
		const cancel = () => giveUp(aborted());
		signal?.addEventListener('abort', cancel, { once: true });
		heard();
		encodeWith(rung, clip, marking, {
			signal: stop.signal,
			onProgress(fraction) {
				if (!stop.signal.aborted) {
					heard();
					onProgress?.(fraction);
				}
			},
		})
			.then(resolve, reject)
			.finally(() => {
				clearTimeout(timer);
				signal?.removeEventListener('abort', cancel);
			});
	});
}

/**
 * Encodes with the first codec that delivers every frame. The attempt is the probe: `isConfigSupported` answers yes
 * in browsers that then fail, and throws in others.
 */
export async function encodeClip(clip: Clip, marking: Marking, options: EncodeOptions = {}): Promise<EncodedClip> {
	const { encoded, refused } = await firstThatEncodes(clip, marking, options);
	return { ...encoded, refused };
}

/** As `encodeClip`, and which codec it was. */
export async function firstThatEncodes(
	clip: Clip,
	marking: Marking,
	options: EncodeOptions = {},
): Promise<{ rung: Rung; encoded: Omit<EncodedClip, 'refused'>; refused: string[] }> {
	const refused: string[] = [];
	for (const rung of LADDER) {
		try {
			return { rung, encoded: await attempt(rung, clip, marking, options), refused };
		} catch (error) {
			if (options.signal?.aborted) {
				throw aborted();
			}
			refused.push(
				`${rung.codec} (${rung.hardwareAcceleration}): ${error instanceof Error ? error.message : String(error)}`,
			);
		}
	}
	throw new KinoraError('encode', `No video encoder of this browser delivered the clip. ${refused.join('; ')}`);
}
