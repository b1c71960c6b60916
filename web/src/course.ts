/** What is said of a clip in the making: its stage, how much of that is done, and a line for people. */
import { STAGES } from './messages.js';
import type { Stage } from './progress.js';
import type { GenerateEvent } from './protocol.js';

export interface Report {
	stage: Stage;
	/** 0 to 1. */
	fraction: number;
	text: string;
}

/**
 * Follows one clip. Most models denoise all of it and decode it then. Causal ones give the frames of a chunk before they
 * begin the next; until the last step those frames belong to the drawing, or the figure would run ahead and wait.
 */
export class Course {
	#steps = 0;
	#done = 0;
	#shown = '';

	/** Undefined where there is nothing new to say. */
	report(event: GenerateEvent): Report | undefined {
		switch (event.kind) {
			case 'text':
				this.#steps = event.steps;
				return this.#drawing();
			case 'step':
				this.#done = event.index + 1;
				return this.#drawing();
			case 'preview':
				return undefined;
			case 'frames': {
				const shown = event.first + event.count;
				if (this.#done >= this.#steps) {
					return { stage: 'decode', fraction: shown / event.frames, text: STAGES.decode };
				}
				this.#shown = `; ${shown} of ${event.frames} frames are finished`;
				return this.#drawing();
			}
		}
	}

	#drawing(): Report {
		const step = `${STAGES.denoise}, step ${this.#done + 1} of ${this.#steps}${this.#shown}`;
		return {
			stage: 'denoise',
			fraction: this.#done / this.#steps,
			text: this.#done < this.#steps ? step : STAGES.decode,
		};
	}
}
