// safetensors as the tests need it: f32 and i32 tensors in and out.

/** @returns {Map<string, {dtype: string, shape: number[], bytes: Uint8Array}>} */
export function readSafetensors(file) {
	const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
	const headerBytes = Number(view.getBigUint64(0, true));
	const header = JSON.parse(new TextDecoder().decode(file.subarray(8, 8 + headerBytes)));
	delete header.__metadata__;
	const start = 8 + headerBytes;
	return new Map(
		Object.entries(header).map(
			([
				name,
				{
					dtype,
					shape,
					data_offsets: [from, to],
				},
			]) => [name, { dtype, shape, bytes: file.subarray(start + from, start + to) }],
		),
	);
}

/** @param {Map<string, {dtype: string, shape: number[], bytes: Uint8Array}>} tensors */
export function writeSafetensors(tensors) {
	const header = {};
	let offset = 0;
	for (const [name, { dtype, shape, bytes }] of tensors) {
		header[name] = { dtype, shape, data_offsets: [offset, offset + bytes.length] };
		offset += bytes.length;
	}
	const text = Buffer.from(JSON.stringify(header));
	const padded = Buffer.concat([text, Buffer.alloc((8 - (text.length % 8)) % 8, ' ')]);
	const length = Buffer.alloc(8);
	length.writeBigUInt64LE(BigInt(padded.length));
	return Buffer.concat([length, padded, ...[...tensors.values()].map(({ bytes }) => bytes)]);
}

export function floats({ bytes }) {
	// A copy, because a tensor inside a file need not lie at a multiple of four.
	return new Float32Array(new Uint8Array(bytes).buffer);
}
