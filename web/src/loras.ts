/**
 * The LoRAs that the engine holds. A run names all it wants: what is new is fetched, what is no longer wanted is freed,
 * and another strength costs neither.
 */
import { download } from './download.js';
import type { Engine } from './engine.js';
import { KinoraError, aborted } from './errors.js';

/** A safetensors file, by its address or as it is. */
export type LoraSource = { url: string } | { bytes: Uint8Array };

/** A LoRA and its factor; 1, which it has if it is left out, is what it was trained for. */
export type Lora = LoraSource & { strength?: number };
export type WeightedLora = LoraSource & { strength: number };

/** `ink.safetensors fog.safetensors=0.6`; what follows the last equals sign is a strength only if it is a number. */
export function lorasOf(value: string | null): Lora[] {
	const items = (value ?? '').split(/\s+/).filter((item) => item !== '');
	return items.map((item) => {
		const [, url = item, strength = '1'] = /^(.+)=([+-]?(?:\d+\.?\d*|\.\d+))$/.exec(item) ?? [];
		return { url, strength: Number(strength) };
	});
}

/** Fills in what is left out, and makes addresses whole. */
export function weighted(loras: readonly Lora[], base: string): WeightedLora[] {
	return loras.map((lora) => {
		const { strength = 1 } = lora;
		if (!Number.isFinite(strength)) {
			throw new KinoraError('invalid-request', `The strength ${strength} of a LoRA is not a number.`);
		}
		if ('url' in lora && !URL.canParse(lora.url, base)) {
			throw new KinoraError('invalid-request', `There can be no LoRA at the address ${lora.url}.`);
		}
		return 'url' in lora ? { url: new URL(lora.url, base).href, strength } : { bytes: lora.bytes, strength };
	});
}

/** What tells one file from another; undefined where that cannot be found out. */
async function identity(lora: LoraSource): Promise<string | undefined> {
	if ('url' in lora) {
		return lora.url;
	}
	// Absent outside secure contexts; such bytes are taken for new ones every time.
	const subtle = (globalThis.crypto as { subtle?: SubtleCrypto }).subtle;
	const digest = await subtle?.digest('SHA-256', lora.bytes as Uint8Array<ArrayBuffer>);
	return digest && Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, '0')).join('');
}

export class Loras {
	readonly #engine: Engine;
	/** Identity to the engine's number. */
	readonly #numbers = new Map<string, number>();
	#unnamed = 0;

	constructor(engine: Engine) {
		this.#engine = engine;
	}

	/** Makes the engine use exactly these; returns the bytes that came over the network. */
	async use(wanted: readonly WeightedLora[], signal: AbortSignal, onProgress: (done: number) => void): Promise<number> {
		const keys = await Promise.all(wanted.map(async (lora) => (await identity(lora)) ?? `unnamed ${this.#unnamed++}`));
		const unwanted = [...this.#numbers].filter(([key]) => !keys.includes(key));
		if (unwanted.length > 0) {
			// Before the new ones arrive, so that both need not fit into memory.
			this.#engine.useLoras(new Uint32Array(), new Float32Array());
			for (const [key, number] of unwanted) {
				this.#engine.removeLora(number);
				this.#numbers.delete(key);
			}
		}
		let fetched = 0;
		const numbers: number[] = [];
		for (const [index, lora] of wanted.entries()) {
			const key = keys[index] ?? '';
			let number = this.#numbers.get(key);
			if (number === undefined) {
				const bytes = 'url' in lora ? await download(lora.url, { signal }) : lora.bytes;
				if (signal.aborted) {
					throw aborted();
				}
				number = this.#engine.addLora('url' in lora ? lora.url : 'given as bytes', bytes);
				this.#numbers.set(key, number);
				fetched += 'url' in lora ? bytes.length : 0;
			}
			numbers.push(number);
			onProgress(index + 1);
		}
		this.#engine.useLoras(
			Uint32Array.from(numbers),
			Float32Array.from(wanted, ({ strength }) => strength),
		);
		return fetched;
	}
}
