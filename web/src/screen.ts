/**
 * The canvas on which a clip appears while it is made: estimates at once, finished frames at the clip's own pace. A model
 * that works chunk by chunk finishes several at a time and then none for a while; shown as they arrive they would flash
 * by.
 */
import type { FrameDetail } from './events.js';

/** Frames that wait at the most: the oldest are skipped where a model is faster than its clip, or memory would fill up. */
const WAITING = 64;

/** A timer that comes later than this was held up: a hidden tab, a busy page. The clip goes on from where it is. */
const HELD_UP = 1000;

export class Screen {
	readonly canvas = document.createElement('canvas');
	#waiting: FrameDetail[] = [];
	#timer: ReturnType<typeof setTimeout> | undefined;
	/** When the next frame is due, by `performance.now()`. */
	#due = 0;
	#playing = false;

	constructor() {
		this.canvas.setAttribute('part', 'canvas');
		this.canvas.setAttribute('aria-hidden', 'true');
	}

	/** An estimate of the unfinished clip. Once finished frames are playing they are not interrupted by guesses. */
	preview(frame: FrameDetail): void {
		if (!this.#playing) {
			this.#paint(frame);
		}
	}

	/** The next finished frame. Where the visitor wants no motion the latest is simply shown. */
	play(frame: FrameDetail, fps: number): void {
		this.#playing = true;
		if (matchMedia('(prefers-reduced-motion: reduce)').matches) {
			this.#paint(frame);
			return;
		}
		this.#waiting.push(frame);
		if (this.#waiting.length > WAITING) {
			this.#waiting.shift();
		}
		if (this.#timer === undefined) {
			this.#due = Math.max(this.#due, performance.now());
			this.#next(1000 / fps);
		}
	}

	/** Forgets what has not been shown; the picture stays until the next one. */
	stop(): void {
		clearTimeout(this.#timer);
		this.#timer = undefined;
		this.#waiting = [];
		this.#due = 0;
		this.#playing = false;
	}

	#next(pace: number): void {
		const now = performance.now();
		if (now - this.#due > HELD_UP) {
			this.#due = now;
		}
		const frame = this.#due <= now ? this.#waiting.shift() : undefined;
		if (frame) {
			this.#paint(frame);
			this.#due += pace;
		} else if (this.#waiting.length === 0) {
			this.#timer = undefined;
			return;
		}
		this.#timer = setTimeout(() => this.#next(pace), Math.max(0, this.#due - performance.now()));
	}

	#paint({ width, height, rgba }: FrameDetail): void {
		this.canvas.width = width;
		this.canvas.height = height;
		this.canvas.getContext('2d')?.putImageData(new ImageData(new Uint8ClampedArray(rgba), width, height), 0, 0);
	}
}
