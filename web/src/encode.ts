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
const PATIENCE = 20_000;

interface Rung {
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

export interface Clip {
	/** RGBA of each frame, width * height * 4 bytes. */
	frames: readonly Uint8Array[];
	width: number;
	height: number;
	fps: number;
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

async function encodeWith(
	rung: Rung,
	clip: Clip,
	marking: Marking,
	options: EncodeOptions,
): Promise<Omit<EncodedClip, 'refused'>> {
	const target = new BufferTarget();
	const format = rung.container === 'mp4' ? new Mp4OutputFormat({ fastStart: 'in-memory' }) : new WebMOutputFormat();
	const output = new Output({ format, target });
	let packets = 0;
	const source = new VideoSampleSource({
		codec: rung.codec,
		quality: new Quality('very-high'),
		hardwareAcceleration: rung.hardwareAcceleration,
		onEncodedPacket: () => {
			packets++;
			options.onProgress?.(packets / clip.frames.length);
		},
	});
	const stop = () => void output.cancel().catch(() => undefined);
	options.signal?.addEventListener('abort', stop, { once: true });
	output.addVideoTrack(source, { frameRate: clip.fps });
	output.setMetadataTags(tags(marking, rung.container));
	try {
		await output.start();
		for (const [index, rgba] of clip.frames.entries()) {
			if (options.signal?.aborted) {
				throw aborted();
			}
			const sample = new VideoSample(rgba, {
				// The fourth byte is always opaque; saying so keeps encoders from looking for transparency.
				format: 'RGBX',
				codedWidth: clip.width,
				codedHeight: clip.height,
				timestamp: index / clip.fps,
				duration: 1 / clip.fps,
			});
			try {
				await source.add(sample);
			} finally {
				sample.close();
			}
		}
		await output.finalize();
	} catch (error) {
		await output.cancel().catch(() => undefined);
		throw error;
	} finally {
		options.signal?.removeEventListener('abort', stop);
	}
	if (packets !== clip.frames.length || target.buffer === null) {
		throw new Error(`${packets} of ${clip.frames.length} frames came out`);
	}
	const mimeType = await output.getMimeType();
	return {
		blob: new Blob([target.buffer], { type: mimeType }),
		mimeType,
		codec: rung.codec,
		extension: format.fileExtension,
	};
}

/** One attempt, ended when it falls silent or is no longer wanted, even where the encoder itself never answers. */
function attempt(
	rung: Rung,
	clip: Clip,
	marking: Marking,
	{ signal, onProgress }: EncodeOptions,
): Promise<Omit<EncodedClip, 'refused'>> {
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
	const refused: string[] = [];
	for (const rung of LADDER) {
		try {
			const encoded = await attempt(rung, clip, marking, options);
			return { ...encoded, refused };
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
