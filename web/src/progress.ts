/** One figure from 0 to 1 for a whole run. It never falls, also when a stage is repeated or takes a cached path. */

export type Stage = 'engine' | 'download' | 'warmup' | 'lora' | 'text' | 'denoise' | 'decode' | 'encode';

/** Relative time each stage is expected to take; a run leaves out the stages it does not need. */
const WEIGHTS: Readonly<Record<Stage, number>> = {
	engine: 10,
	download: 30,
	warmup: 8,
	lora: 6,
	text: 2,
	denoise: 32,
	decode: 14,
	encode: 4,
};

export class Progress {
	#stages: readonly Stage[] = [];
	#total = 1;
	#value = 0;

	/** Begins a run of these stages, or begins it again: the figure then waits until the run has caught up with it. */
	begin(stages: readonly Stage[]): void {
		this.#stages = stages;
		this.#total = stages.reduce((sum, stage) => sum + WEIGHTS[stage], 0);
	}

	get value(): number {
		return this.#value;
	}

	/** Reports that `fraction` (0 to 1) of a stage is done, and with it every stage before. Returns the new figure. */
	update(stage: Stage, fraction: number): number {
		const index = this.#stages.indexOf(stage);
		if (index >= 0) {
			const before = this.#stages.slice(0, index).reduce((sum, earlier) => sum + WEIGHTS[earlier], 0);
			const inside = WEIGHTS[stage] * Math.min(1, Math.max(0, fraction));
			this.#value = Math.max(this.#value, Math.min(1, (before + inside) / this.#total));
		}
		return this.#value;
	}
}

/** Seconds until a stage ends at the pace it has had; undefined while that would be a guess. */
export class Pace {
	readonly #start: number;
	readonly #settle: number;

	/** @param settle milliseconds before the pace is believed */
	constructor(settle: number, now = performance.now()) {
		this.#start = now;
		this.#settle = settle;
	}

	remaining(fraction: number, now = performance.now()): number | undefined {
		const elapsed = now - this.#start;
		if (elapsed < this.#settle || fraction < 0.02 || fraction >= 1) {
			return undefined;
		}
		return (elapsed * (1 - fraction)) / fraction / 1000;
	}
}
