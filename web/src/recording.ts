/**
 * Frames to a video file while the clip is still being made, for clips that are too long to be kept as pictures: a minute
 * of 416x240 takes 0.4 GB that way. Loaded on demand, with the encoder.
 */
import { PATIENCE, Writer, firstThatEncodes, type ClipShape, type EncodedClip, type Marking } from './encode.js';
import { KinoraError, aborted } from './errors.js';

export { encodeClip } from './encode.js';

/** Frames of a clip are kept as pictures while they take no more than this; the engine's memory plan has the same number. */
export const KEPT_BYTES = 128 << 20;

/** So many first frames are encoded once to see which codec delivers, and then again as the start of the file. */
const TRIAL = 8;

/** Takes frames as they come; `finish` gives the file. */
export class Recording {
	readonly #shape: ClipShape;
	readonly #marking: Marking;
	readonly #stop = new AbortController();
	/** Frames that no codec has been chosen for. */
	#first: Uint8Array[] = [];
	#writer: Writer | undefined;
	#refused: string[] = [];
	#frames = 0;
	/** What has been handed over so far, one thing after the other. */
	#work: Promise<void> = Promise.resolve();
	#fail: (error: KinoraError) => void = () => undefined;

	/** Rejects as soon as a frame cannot be encoded, so that nobody waits for the rest of a clip that will not be. */
	readonly failure: Promise<never>;

	constructor(shape: ClipShape, marking: Marking) {
		this.#shape = shape;
		this.#marking = marking;
		this.failure = new Promise((_, reject) => {
			this.#fail = reject;
		});
		this.failure.catch(() => undefined);
	}

	add(rgba: Uint8Array): void {
		this.#frames++;
		this.#then(async () => {
			if (this.#writer) {
				await this.#writer.add(rgba);
				return;
			}
			this.#first.push(rgba);
			if (this.#first.length === TRIAL) {
				await this.#begin();
			}
		});
	}

	/** The file with all frames. Rejects with `encode`, or with `aborted` after `cancel`. */
	async finish(): Promise<EncodedClip> {
		const done: { file?: Omit<EncodedClip, 'refused'> } = {};
		this.#then(async () => {
			if (!this.#writer) {
				await this.#begin();
			}
			if (this.#writer) {
				done.file = await this.#writer.finish();
			}
		});
		// A failure first: work that follows one is skipped, and ends as if all were well.
		await Promise.race([this.failure, this.#work]);
		if (done.file === undefined) {
			throw new KinoraError('encode', 'The video has no frames.');
		}
		return { ...done.file, refused: this.#refused };
	}

	/** Ends it without a file. */
	cancel(): void {
		this.#stop.abort();
		this.#fail(aborted());
		void this.#writer?.cancel();
	}

	/** The trial file is thrown away: an encoder that has been flushed may not be willing to go on. */
	async #begin(): Promise<void> {
		const { signal } = this.#stop;
		const { rung, refused } = await firstThatEncodes({ ...this.#shape, frames: this.#first }, this.#marking, {
			signal,
		});
		this.#refused = refused;
		this.#writer = new Writer(rung, this.#shape, this.#marking);
		await this.#writer.start();
		for (const rgba of this.#first.splice(0)) {
			await this.#writer.add(rgba);
		}
	}

	#then(work: () => Promise<void>): void {
		this.#work = this.#work.then(async () => {
			if (this.#stop.signal.aborted) {
				return;
			}
			try {
				await inTime(work());
			} catch (cause) {
				this.#stop.abort();
				void this.#writer?.cancel();
				const reason = cause instanceof Error ? cause.message : String(cause);
				this.#fail(
					cause instanceof KinoraError
						? cause
						: new KinoraError('encode', `The video encoder failed at frame ${this.#frames}: ${reason}`, { cause }),
				);
			}
		});
	}
}

/** A codec that took the first frames may still fall silent later. Long enough for a trial in which every codec does. */
async function inTime(work: Promise<void>): Promise<void> {
	let timer: ReturnType<typeof setTimeout> | undefined;
	const late = new Promise<never>((_, reject) => {
		timer = setTimeout(() => reject(new Error('it did not answer')), 6 * PATIENCE);
	});
	try {
		await Promise.race([work, late]);
	} finally {
		clearTimeout(timer);
	}
}
