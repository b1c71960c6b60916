/** Numbers as a person reads them. */

export function megabytes(bytes: number): string {
	const value = bytes / 1e6;
	return `${value.toLocaleString(undefined, { maximumFractionDigits: value < 10 ? 1 : 0 })} MB`;
}

/** An amount of memory that is only estimated: two digits. */
export function aboutMegabytes(bytes: number): string {
	const value = bytes / 1e6;
	const [number, unit] = value < 1000 ? [value, 'MB'] : [value / 1000, 'GB'];
	return `about ${Number(number.toPrecision(2)).toLocaleString()} ${unit}`;
}

/** A duration that has been measured. */
export function seconds(milliseconds: number): string {
	const value = milliseconds / 1000;
	return `${value.toLocaleString(undefined, { maximumFractionDigits: value < 10 ? 1 : 0 })} s`;
}

/** A duration that is only estimated: never more precise than it can be. */
export function roughly(value: number): string {
	if (value < 60) {
		return `about ${Math.max(1, Math.round(value))} s`;
	}
	const minutes = Math.round(value / 60);
	return `about ${minutes} ${minutes === 1 ? 'minute' : 'minutes'}`;
}

export function quoted(words: readonly string[]): string {
	const marked = words.map((word) => `“${word}”`);
	const last = marked.pop() ?? '';
	return marked.length === 0 ? last : `${marked.join(', ')} and ${last}`;
}
