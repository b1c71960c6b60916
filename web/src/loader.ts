/**
 * Brings the shards of a model to the engine: from this device's storage when they are there, else over the network.
 * A shard is stored only after the engine has verified it, under its SHA-256, so an interrupted download or a wrong
 * body can never be taken for the model later.
 */
import { KinoraError, aborted } from './errors.js';
import { download } from './download.js';
import type { FileEntry } from './manifest.js';

const CACHE = 'kinora-shards-v1';
/** Shards on their way at once: enough to hide latency, few enough to bound memory. */
const PARALLEL = 3;

/** Shards kept by the browser. Every method tolerates a browser that refuses to store. */
export class ShardStore {
	readonly #cache: Cache | undefined;

	private constructor(cache: Cache | undefined) {
		this.#cache = cache;
	}

	static async open(): Promise<ShardStore> {
		// Absent outside secure contexts; opening throws in some private windows.
		const storage = (globalThis as { caches?: CacheStorage }).caches;
		return new ShardStore(await storage?.open(CACHE).catch(() => undefined));
	}

	/** The Cache API is keyed by address; this one is never requested. */
	#key(sha256: string): string {
		return new URL(`kinora-shard/${sha256}`, globalThis.location.origin).href;
	}

	async get(shard: FileEntry): Promise<Uint8Array | undefined> {
		try {
			const kept = await this.#cache?.match(this.#key(shard.sha256));
			return kept && new Uint8Array(await kept.arrayBuffer());
		} catch {
			return undefined;
		}
	}

	/** Whether the browser stores at all; it may still run out of space. */
	get usable(): boolean {
		return this.#cache !== undefined;
	}

	/** Returns whether the shard is now kept. */
	async put(shard: FileEntry, bytes: Uint8Array): Promise<boolean> {
		try {
			await this.#cache?.put(this.#key(shard.sha256), new Response(bytes as Uint8Array<ArrayBuffer>));
			return this.#cache !== undefined;
		} catch {
			return false;
		}
	}

	async delete(shard: FileEntry): Promise<void> {
		await this.#cache?.delete(this.#key(shard.sha256)).catch(() => false);
	}

	/** Drops what earlier versions of the model left behind. */
	async keepOnly(shards: readonly FileEntry[]): Promise<void> {
		const wanted = new Set(shards.map((shard) => this.#key(shard.sha256)));
		const kept = (await this.#cache?.keys().catch(() => [])) ?? [];
		await Promise.all(
			kept.filter(({ url }) => !wanted.has(url)).map((request) => this.#cache?.delete(request).catch(() => false)),
		);
	}

	async has(shards: readonly FileEntry[]): Promise<boolean> {
		const found = await Promise.all(
			shards.map((shard) => this.#cache?.match(this.#key(shard.sha256)).catch(() => undefined)),
		);
		return found.every((response) => response !== undefined);
	}
}

/** Removes every model this page has stored. */
export async function deleteStoredModels(): Promise<void> {
	await (globalThis as { caches?: CacheStorage }).caches?.delete(CACHE).catch(() => false);
}

export interface LoadOptions {
	/** Address the shard paths are relative to. */
	base: string;
	shards: readonly FileEntry[];
	/** Indices to load, in order of first use. */
	missing: readonly number[];
	signal: AbortSignal;
	onProgress: (loaded: number, total: number) => void;
	/**
	 * Indices that are only stored, to be read later; those that are stored already are left alone. Where the browser
	 * stores nothing, the first of them ends with `storage`, before anything is fetched if that is known.
	 */
	keep?: ReadonlySet<number>;
	/** Hands a shard to the engine, which throws `integrity` when the bytes are not the shard's. */
	add: (index: number, bytes: Uint8Array) => Promise<void>;
}

export interface LoadReport {
	bytes: number;
	bytesFromCache: number;
	stored: boolean;
}

interface Arrival {
	bytes: Uint8Array;
	cached: boolean;
}

function isIntegrity(error: unknown): boolean {
	return (error as { code?: unknown } | null)?.code === 'integrity';
}

export async function loadShards(options: LoadOptions): Promise<LoadReport> {
	const { shards, missing, onProgress, add } = options;
	const store = await ShardStore.open();
	const report: LoadReport = { bytes: 0, bytesFromCache: 0, stored: true };
	const refused = () =>
		new KinoraError('storage', 'The browser refuses to store the model, which is too large for the memory.');
	if (options.keep?.size && !store.usable) {
		throw refused();
	}
	// One failure stops the other downloads, as does the visitor.
	const stop = new AbortController();
	const signal = AbortSignal.any([options.signal, stop.signal]);

	const wanted: { index: number; shard: FileEntry; url: string }[] = [];
	for (const index of missing) {
		const shard = shards[index];
		if (shard === undefined) {
			throw new KinoraError('internal', `The engine asks for shard ${index} of ${shards.length}.`);
		}
		if (!options.keep?.has(index) || !(await store.has([shard]))) {
			wanted.push({ index, shard, url: new URL(shard.path, options.base).href });
		}
	}
	const total = wanted.reduce((sum, { shard }) => sum + shard.bytes, 0);
	const received = wanted.map(() => 0);
	const progress = (position: number, bytes: number) => {
		received[position] = bytes;
		onProgress(
			received.reduce((sum, part) => sum + part, 0),
			total,
		);
	};

	const fetchFresh = async (position: number, fresh: boolean): Promise<Uint8Array> => {
		const { shard, url } = wanted[position]!;
		const bytes = await download(url, {
			bytes: shard.bytes,
			fresh,
			signal,
			onProgress: (part) => progress(position, part),
		});
		report.bytes += bytes.length;
		return bytes;
	};
	const obtain = async (position: number): Promise<Arrival> => {
		const { shard } = wanted[position]!;
		const kept = await store.get(shard);
		if (kept) {
			progress(position, shard.bytes);
			return { bytes: kept, cached: true };
		}
		try {
			return { bytes: await fetchFresh(position, false), cached: false };
		} catch (error) {
			if (!isIntegrity(error) || signal.aborted) {
				throw error;
			}
			// A short or over-long body may be a poisoned HTTP cache; ask the server itself, once.
			return { bytes: await fetchFresh(position, true), cached: false };
		}
	};

	const arrivals: Promise<Arrival>[] = [];
	const begin = (position: number) => {
		if (position < wanted.length) {
			arrivals[position] = obtain(position);
			// Awaited in order below; until then its failure must not count as unhandled.
			arrivals[position]!.catch(() => undefined);
		}
	};
	try {
		for (let position = 0; position < PARALLEL; position++) {
			begin(position);
		}
		for (let position = 0; position < wanted.length; position++) {
			const { index, shard } = wanted[position]!;
			let { bytes, cached } = await arrivals[position]!;
			if (signal.aborted) {
				throw aborted();
			}
			try {
				await add(index, bytes);
			} catch (error) {
				if (!isIntegrity(error)) {
					throw error;
				}
				await store.delete(shard);
				bytes = await fetchFresh(position, true);
				cached = false;
				await add(index, bytes);
			}
			if (cached) {
				report.bytesFromCache += bytes.length;
			} else if (!(await store.put(shard, bytes))) {
				if (options.keep?.has(index)) {
					throw refused();
				}
				report.stored = false;
			}
			// The next one starts only now, so that at most PARALLEL shards are held.
			delete arrivals[position];
			begin(position + PARALLEL);
		}
	} finally {
		stop.abort();
	}
	await store.keepOnly(shards);
	return report;
}
