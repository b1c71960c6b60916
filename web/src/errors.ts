/**
 * The one error type of the page. Its code is stable and never translated; `messages.ts` turns it into a sentence.
 * Codes up to `internal` come from the engine, the rest from the web side.
 */
export const ERROR_CODES = [
	'manifest',
	'integrity',
	'tensor',
	'lora',
	'tokenizer',
	'empty-prompt',
	'prompt-too-long',
	'prompt-pack',
	'unknown-prompt',
	'pruned-prompt',
	'unsupported-size',
	'too-large',
	'invalid-request',
	'unsupported-webgpu',
	'no-adapter',
	'adapter-timeout',
	'unsupported-feature',
	'device-lost',
	'out-of-memory',
	'numeric',
	'aborted',
	'internal',
	'network',
	'wasm',
	'encode',
	'busy',
	'storage',
] as const;

export type ErrorCode = (typeof ERROR_CODES)[number];

/** An error as it crosses the worker boundary: structured clone would drop the code of an Error subclass. */
export interface WireError {
	code: ErrorCode;
	message: string;
	retryable: boolean;
	cause?: string;
}

export class KinoraError extends Error {
	readonly code: ErrorCode;
	/** Whether the very same request may succeed when it is made again. */
	readonly retryable: boolean;

	constructor(code: ErrorCode, message: string, options: { retryable?: boolean; cause?: unknown } = {}) {
		super(message, options.cause === undefined ? undefined : { cause: options.cause });
		this.name = 'KinoraError';
		this.code = code;
		this.retryable = options.retryable ?? false;
	}
}

export function aborted(): KinoraError {
	return new KinoraError('aborted', 'The work was cancelled.', { retryable: true });
}

/** The answer to something that cannot be stopped itself, unless it is no longer wanted. */
export function unlessAborted<Value>(work: Promise<Value>, signal: AbortSignal): Promise<Value> {
	return new Promise((resolve, reject) => {
		const stop = () => reject(aborted());
		if (signal.aborted) {
			stop();
		}
		signal.addEventListener('abort', stop, { once: true });
		work.then(resolve, reject).finally(() => signal.removeEventListener('abort', stop));
	});
}

function isErrorCode(value: unknown): value is ErrorCode {
	return (ERROR_CODES as readonly unknown[]).includes(value);
}

/** Gives any thrown value a code: the engine's errors carry one, an `AbortError` means cancelled, the rest is ours. */
export function toKinoraError(thrown: unknown): KinoraError {
	if (thrown instanceof KinoraError) {
		return thrown;
	}
	if (thrown instanceof DOMException && thrown.name === 'AbortError') {
		return aborted();
	}
	if (thrown instanceof Error) {
		const { code, retryable } = thrown as { code?: unknown; retryable?: unknown };
		return new KinoraError(isErrorCode(code) ? code : 'internal', thrown.message, {
			retryable: retryable === true,
			cause: thrown,
		});
	}
	return new KinoraError('internal', String(thrown));
}

export function toWire(thrown: unknown): WireError {
	const error = toKinoraError(thrown);
	const wire: WireError = { code: error.code, message: error.message, retryable: error.retryable };
	if (error.cause !== undefined) {
		wire.cause = String(error.cause);
	}
	return wire;
}

export function fromWire(wire: WireError): KinoraError {
	return new KinoraError(wire.code, wire.message, { retryable: wire.retryable, cause: wire.cause });
}
