/** One file over the network: progress, retries, and refusal of bytes that cannot be the file that was asked for. */
import { KinoraError, aborted } from './errors.js';

/** Waits in milliseconds before the second, third and fourth try. */
const BACKOFF = [400, 1200, 3000];
const LONGEST_WAIT = 10_000;

export interface DownloadOptions {
	/** Exact length in bytes, when the manifest gives it. */
	bytes?: number;
	/** Past the browser's HTTP cache, because what it held was wrong. */
	fresh?: boolean;
	signal?: AbortSignal;
	/** Bytes of this file so far; falls back to 0 when a try is repeated. */
	onProgress?: (received: number) => void;
}

/** A failure that another try may cure, with the wait the server asked for. */
class Transient extends Error {
	readonly wait: number | undefined;

	constructor(message: string, options: { wait?: number | undefined; cause?: unknown } = {}) {
		super(message, { cause: options.cause });
		this.wait = options.wait;
	}
}

function fileName(url: string): string {
	return new URL(url).pathname.split('/').pop() ?? url;
}

function retryAfter(response: Response): number | undefined {
	const seconds = Number(response.headers.get('retry-after') ?? Number.NaN);
	return Number.isFinite(seconds) ? Math.min(seconds * 1000, LONGEST_WAIT) : undefined;
}

/** Asks for the file and checks everything that can be known before its body. */
export async function request(
	url: string,
	options: { fresh?: boolean; signal?: AbortSignal; revalidate?: boolean } = {},
): Promise<Response> {
	const name = fileName(url);
	const init: RequestInit = { credentials: 'same-origin' };
	if (options.fresh || options.revalidate) {
		init.cache = options.fresh ? 'reload' : 'no-cache';
	}
	if (options.signal) {
		init.signal = options.signal;
	}
	const response = await fetch(url, init).catch((cause: unknown) => {
		if (options.signal?.aborted) {
			throw aborted();
		}
		throw new Transient(`${name} could not be reached.`, { cause });
	});
	if (response.status === 408 || response.status === 429 || response.status >= 500) {
		throw new Transient(`The server answered ${response.status} for ${name}.`, { wait: retryAfter(response) });
	}
	if (!response.ok) {
		throw new KinoraError('network', `The server answered ${response.status} for ${name}.`, { retryable: true });
	}
	// Hosts with a catch-all page answer 200 for a file they do not have.
	if (/^\s*text\/html/i.test(response.headers.get('content-type') ?? '')) {
		throw new KinoraError('integrity', `The server sent a web page in place of ${name}.`, { retryable: true });
	}
	return response;
}

async function read(response: Response, name: string, options: DownloadOptions): Promise<Uint8Array> {
	const expected = options.bytes;
	const chunks: Uint8Array[] = [];
	// The whole file is reserved once when its length is known; a growing copy would hold it twice.
	const whole = expected === undefined ? undefined : new Uint8Array(expected);
	let received = 0;
	const reader = response.body?.getReader();
	if (reader === undefined) {
		throw new Transient(`${name} arrived without content.`);
	}
	for (;;) {
		const { done, value } = await reader.read().catch((cause: unknown) => {
			if (options.signal?.aborted) {
				throw aborted();
			}
			throw new Transient(`The connection broke while ${name} was arriving.`, { cause });
		});
		if (done) {
			break;
		}
		if (expected !== undefined && received + value.length > expected) {
			void reader.cancel().catch(() => undefined);
			throw new KinoraError('integrity', `${name} is longer than the ${expected} bytes it should have.`, {
				retryable: true,
			});
		}
		if (whole) {
			whole.set(value, received);
		} else {
			chunks.push(value);
		}
		received += value.length;
		options.onProgress?.(received);
	}
	if (expected !== undefined && received < expected) {
		throw new KinoraError('integrity', `${name} ended after ${received} of ${expected} bytes.`, { retryable: true });
	}
	return whole ?? new Uint8Array(await new Blob(chunks as BlobPart[]).arrayBuffer());
}

function pause(milliseconds: number, signal: AbortSignal | undefined): Promise<void> {
	return new Promise((resolve, reject) => {
		const stop = () => {
			clearTimeout(timer);
			reject(aborted());
		};
		const timer = setTimeout(() => {
			signal?.removeEventListener('abort', stop);
			resolve();
		}, milliseconds);
		signal?.addEventListener('abort', stop, { once: true });
	});
}

/** Repeats `attempt` while it fails transiently; the last failure becomes a `network` error. */
export async function withRetries<Value>(attempt: () => Promise<Value>, signal?: AbortSignal): Promise<Value> {
	for (let failures = 0; ; failures++) {
		if (signal?.aborted) {
			throw aborted();
		}
		try {
			return await attempt();
		} catch (error) {
			if (!(error instanceof Transient)) {
				throw error;
			}
			const wait = BACKOFF[failures];
			if (wait === undefined) {
				throw new KinoraError('network', error.message, { retryable: true, cause: error.cause });
			}
			// Half fixed, half random, so that many visitors do not come back in the same moment.
			await pause(error.wait ?? wait * (0.5 + Math.random() / 2), signal);
		}
	}
}

export async function download(url: string, options: DownloadOptions = {}): Promise<Uint8Array> {
	return withRetries(async () => {
		options.onProgress?.(0);
		return read(await request(url, options), fileName(url), options);
	}, options.signal);
}

/** A small text file; `revalidate` asks the server whether the cached copy is still the present one. */
export async function downloadText(
	url: string,
	options: { signal?: AbortSignal; revalidate?: boolean } = {},
): Promise<string> {
	return withRetries(async () => {
		const response = await request(url, options);
		return new TextDecoder().decode(await read(response, fileName(url), options));
	}, options.signal);
}
