/**
 * What the page itself needs of `manifest.json`: names, sizes, addresses. The engine checks the whole file; this
 * refuses only what the page could not show or download.
 */
import type { ClipNeeds } from './clip.js';
import { KinoraError } from './errors.js';

export interface FileEntry {
	path: string;
	bytes: number;
	/** Lower-case hexadecimal. */
	sha256: string;
}

/** A clip the model can make: pixels and number of frames. */
export interface ClipSize {
	width: number;
	height: number;
	frames: number;
}

export interface ModelManifest {
	name: string;
	title: string;
	description: string;
	license: string;
	tokenizer: FileEntry;
	/** Whether tokenizer and text encoder are offered beside the manifest; if not, only packed prompts can be made. */
	encoderHosted: boolean;
	/** Bytes of the text encoder. */
	encoderBytes: number;
	/** Prompts that need no text encoder. */
	promptPack: FileEntry | undefined;
	shards: FileEntry[];
	steps: number;
	fps: number;
	/** Every clip that is offered, the default first. */
	sizes: [ClipSize, ...ClipSize[]];
	/**
	 * The most frames of a clip, where it may have any number of them that is a multiple of `frameStep`, plus 1; undefined
	 * where only the offered numbers are made.
	 */
	longest: number | undefined;
	/** Frames that one latent frame stands for. */
	frameStep: number;
	vocabulary: string[];
	examples: string[];
	/** WebGPU features the adapter must offer. */
	features: string[];
	/** Bytes of memory that clips need; what is not listed is told by the engine. */
	needs: ClipNeeds[];
	/** Bytes of memory that the most demanding clip needs on a GPU; 0 where that is not said. */
	memoryBytes: number;
	/** The shards that are fetched before the first clip: all, or without the text encoder's where there is a prompt pack. */
	firstShards: FileEntry[];
	/** Bytes to fetch before the first clip: those shards, the tokenizer, the prompt pack. */
	totalBytes: number;
}

type Json = { [key: string]: unknown };

function broken(what: string): KinoraError {
	return new KinoraError('manifest', `The model description is not usable: ${what}.`);
}

function object(parent: Json, key: string): Json {
	const value = parent[key];
	if (typeof value !== 'object' || value === null || Array.isArray(value)) {
		throw broken(`"${key}" is not an object`);
	}
	return value as Json;
}

function list(parent: Json, key: string): unknown[] {
	const value = parent[key];
	if (!Array.isArray(value)) {
		throw broken(`"${key}" is not a list`);
	}
	return value;
}

function text(parent: Json, key: string, fallback?: string): string {
	const value = parent[key] ?? fallback;
	if (typeof value !== 'string') {
		throw broken(`"${key}" is not a text`);
	}
	return value;
}

function count(value: unknown, what: string): number {
	if (typeof value !== 'number' || !Number.isSafeInteger(value) || value <= 0) {
		throw broken(`${what} is not a positive whole number`);
	}
	return value;
}

/** A path inside the model's folder: no scheme, no query, no way up. */
function fileEntry(value: unknown, what: string): FileEntry {
	if (typeof value !== 'object' || value === null) {
		throw broken(`${what} is not an object`);
	}
	const entry = value as Json;
	const path = text(entry, 'path');
	if (!/^[\w.-]+(\/[\w.-]+)*$/.test(path) || path.split('/').includes('..')) {
		throw broken(`${what} has the path ${JSON.stringify(path)}`);
	}
	const sha256 = text(entry, 'sha256');
	if (!/^[0-9a-f]{64}$/.test(sha256)) {
		throw broken(`${what} has no SHA-256`);
	}
	return { path, bytes: count(entry['bytes'], `the size of ${what}`), sha256 };
}

function strings(values: unknown[]): string[] {
	return values.filter((value): value is string => typeof value === 'string');
}

function clipSizes(video: Json): [ClipSize, ...ClipSize[]] {
	const [first, ...rest] = list(video, 'sizes').flatMap((value) => {
		if (typeof value !== 'object' || value === null) {
			throw broken('a video size is not an object');
		}
		const size = value as Json;
		const width = count(size['width'], 'a width');
		const height = count(size['height'], 'a height');
		return list(size, 'frames').map((frames) => ({ width, height, frames: count(frames, 'a number of frames') }));
	});
	if (first === undefined) {
		throw broken('it offers no video size');
	}
	return [first, ...rest];
}

/** Models that make a clip chunk by chunk make it as long as they are asked to, up to the end of their positions. */
function lengths(manifest: Json): Pick<ModelManifest, 'longest' | 'frameStep'> {
	const upscales = 'autoencoder' in manifest ? object(manifest, 'autoencoder')['decoder_time_upscale'] : [];
	const frameStep = 2 ** (Array.isArray(upscales) ? upscales : []).filter(Boolean).length;
	const positions = 'transformer' in manifest ? object(manifest, 'transformer')['rope_max_seq_len'] : undefined;
	const causal = object(manifest, 'sampler')['causal'] ?? undefined;
	return {
		longest:
			causal !== undefined && Number.isSafeInteger(positions) ? (Number(positions) - 1) * frameStep + 1 : undefined,
		frameStep,
	};
}

/** Entries that cannot be read are left out: the figures are only shown, and the engine has its own. */
function clipNeeds(requires: Json): ClipNeeds[] {
	return ('clips' in requires ? list(requires, 'clips') : []).flatMap((value) => {
		const entry = (value ?? {}) as Json;
		const numbers = ['width', 'height', 'frames', 'cpu_bytes', 'webgpu_bytes'].map((key) => entry[key]);
		if (!numbers.every((number): number is number => Number.isSafeInteger(number) && Number(number) > 0)) {
			return [];
		}
		const [width = 0, height = 0, frames = 0, cpu = 0, webgpu = 0] = numbers;
		return [{ width, height, frames, cpu, webgpu }];
	});
}

/** Indices of the shards that hold tensors other than the text encoder's, and the bytes of the text encoder's tensors. */
function withoutEncoder(tensors: Json): { shards: Set<number>; encoderBytes: number } {
	const shards = new Set<number>();
	let encoderBytes = 0;
	for (const name of Object.keys(tensors)) {
		for (const part of list(object(tensors, name), 'parts')) {
			const { shard, bytes } = (part ?? {}) as Json;
			if (!name.startsWith('text_encoder.')) {
				shards.add(Number(shard));
			} else {
				encoderBytes += Number(bytes);
			}
		}
	}
	return { shards, encoderBytes };
}

export function parseManifest(json: string): ModelManifest {
	let root: unknown;
	try {
		root = JSON.parse(json);
	} catch (cause) {
		throw new KinoraError('manifest', 'The model description is not valid JSON.', { cause });
	}
	if (typeof root !== 'object' || root === null || Array.isArray(root)) {
		throw broken('it is not an object');
	}
	const manifest = root as Json;
	if (manifest['schema_version'] !== 1) {
		throw broken(`schema version ${String(manifest['schema_version'])} is not 1`);
	}
	const video = object(manifest, 'video');
	const name = text(manifest, 'name');
	const tokenizer = fileEntry(object(manifest, 'text_encoder')['tokenizer'], 'the tokenizer');
	const shards = list(manifest, 'shards').map((shard, index) => fileEntry(shard, `shard ${index + 1}`));
	if (shards.length === 0) {
		throw broken('it lists no shards');
	}
	const encoderHosted = object(manifest, 'text_encoder')['hosted'] !== false;
	const promptPack = 'prompt_pack' in manifest ? fileEntry(manifest['prompt_pack'], 'the prompt pack') : undefined;
	const rest = withoutEncoder('tensors' in manifest ? object(manifest, 'tensors') : {});
	const firstShards = encoderHosted && !promptPack ? shards : shards.filter((_, index) => rest.shards.has(index));
	const requires = 'requires' in manifest ? object(manifest, 'requires') : {};
	return {
		name,
		title: text(manifest, 'title', name),
		description: text(manifest, 'description', ''),
		license: text(manifest, 'license', ''),
		tokenizer,
		encoderHosted,
		encoderBytes: rest.encoderBytes,
		promptPack,
		shards,
		firstShards,
		steps: list(object(manifest, 'sampler'), 'sigmas').length,
		fps: count(video['fps'], 'the frame rate'),
		sizes: clipSizes(video),
		...lengths(manifest),
		vocabulary: strings('vocabulary' in manifest ? list(manifest, 'vocabulary') : []),
		examples: strings('examples' in manifest ? list(manifest, 'examples') : []),
		features: strings('features' in requires ? list(requires, 'features') : []),
		needs: clipNeeds(requires),
		memoryBytes: Number.isSafeInteger(requires['memory_bytes']) ? Number(requires['memory_bytes']) : 0,
		totalBytes: firstShards.reduce(
			(sum, shard) => sum + shard.bytes,
			(encoderHosted ? tokenizer.bytes : 0) + (promptPack?.bytes ?? 0),
		),
	};
}
