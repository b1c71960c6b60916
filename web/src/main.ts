/** The page around `<kinora-video>`: the form, the progress, the player's buttons and the facts below. */
import { memoryOf, newSeed, sizeOf, type ClipPlan } from './clip.js';
import {
	KinoraVideo,
	type Availability,
	type KinoraVideoEvents,
	type ProgressDetail,
	type VideoResult,
} from './element.js';
import type { Device } from './engine.js';
import { KinoraError, toKinoraError, unlessAborted } from './errors.js';
import { megabytes, quoted, roughly, seconds } from './format.js';
import type { ModelManifest } from './manifest.js';
import { ACTIONS, RESTARTED, STAGES, consent, deviceNotice, explain, needs, type Action } from './messages.js';
import { chosenSize, offerSizes } from './sizes.js';

declare const __ENGINE_BYTES__: number;

customElements.define('kinora-video', KinoraVideo);

const EXAMPLES_SHOWN = 5;
const TITLE = document.title;

function element<Type extends HTMLElement>(id: string, type: abstract new () => Type): Type {
	const found = document.getElementById(id);
	if (!(found instanceof type)) {
		throw new Error(`The page has no ${type.name} called ${id}.`);
	}
	return found;
}

const video = element('video', KinoraVideo);
const form = element('form', HTMLFormElement);
const prompt = element('prompt', HTMLTextAreaElement);
const seed = element('seed', HTMLInputElement);
const size = element('size', HTMLSelectElement);
const length = element('length', HTMLInputElement);
const device = element('device', HTMLSelectElement);
const generate = element('generate', HTMLButtonElement);
const running = element('running', HTMLElement);
const player = element('player', HTMLElement);
const failure = element('failure', HTMLElement);
const cancel = element('cancel', HTMLButtonElement);
const play = element('play', HTMLButtonElement);
const loop = element('loop', HTMLButtonElement);
const save = element('save', HTMLAnchorElement);
const words = element('words', HTMLElement);

let action: Action = 'retry';
let announced = '';
/** Ends the present run; undefined when there is none. */
let run: AbortController | undefined;
let looks = 0;

/** Where prompt and seed wait while the page is loaded anew. Not in the address: that goes to the server. */
const DRAFT = 'kinora-draft';

function on<Name extends keyof KinoraVideoEvents>(
	name: Name,
	listener: (detail: KinoraVideoEvents[Name]['detail']) => void,
): void {
	video.addEventListener(name, (event: Event) => listener((event as KinoraVideoEvents[Name]).detail));
}

function say(text: string): void {
	if (text !== announced) {
		announced = text;
		element('status', HTMLElement).textContent = text;
	}
}

function put(id: string, text: string | undefined): void {
	const target = element(id, HTMLElement);
	target.textContent = text ?? '';
	target.hidden = text === undefined;
}

/** Shows one of the panels below the picture. */
function panel(shown: HTMLElement | undefined): void {
	for (const each of [running, player, failure]) {
		each.hidden = each !== shown;
	}
	const busy = shown === running;
	document.body.classList.toggle('busy', busy);
	generate.disabled = busy;
	device.disabled = busy;
	size.disabled = busy;
	length.disabled = busy;
	if (!busy) {
		document.title = TITLE;
	}
}

/** Changes the panel and takes the focus along, unless the visitor has moved it to something else meanwhile. */
function hand(shown: HTMLElement | undefined, next: HTMLElement): void {
	const idle = document.activeElement === cancel || document.activeElement === document.body;
	panel(shown);
	if (idle) {
		next.focus({ preventScroll: true });
	}
}

function showFailure(error: KinoraError): void {
	const explanation = explain(error, video.device ?? 'cpu');
	action = explanation.action;
	element('failure-text', HTMLElement).textContent = explanation.text;
	const button = element('failure-action', HTMLButtonElement);
	button.textContent = ACTIONS[action];
	failure.dataset['code'] = error.code;
	// The exact words help whoever is asked for help; the visitor gets the sentence.
	console.warn(`[kinora] ${error.code}: ${error.message}`, error.cause ?? '');
	hand(failure, button);
}

function showAvailability(available: Availability): void {
	const { manifest, probe, device: used, stored } = available;
	const forced = device.value === 'cpu';
	element('description', HTMLElement).textContent =
		manifest.description || element('description', HTMLElement).textContent;
	const clips = manifest.sizes.map(
		({ width, height, frames }) => `${width} × ${height} for ${seconds((frames / manifest.fps) * 1000)}`,
	);
	element('fact-model', HTMLElement).textContent =
		`${manifest.title}: ${clips.join(', ')} at ${manifest.fps} frames per second`;
	showSizes(manifest);
	element('fact-download', HTMLElement).textContent = stored
		? `${megabytes(manifest.totalBytes)}, kept on this device`
		: `${megabytes(manifest.totalBytes)}, once`;
	const adapter = probe?.adapter ? ` (${probe.adapter}${probe.software ? ', emulated' : ''})` : '';
	element('fact-device', HTMLElement).textContent =
		used === 'webgpu'
			? `GPU${adapter}`
			: `CPU${probe?.problem === undefined && adapter ? `; the GPU${adapter} is slower` : ''}`;
	put('consent', consent(manifest.totalBytes, __ENGINE_BYTES__, stored));
	showNeeds(available);
	put('device-notice', deviceNotice(probe, used, forced));
	element('delete', HTMLElement).hidden = !stored;

	const examples = element('examples', HTMLElement);
	examples.replaceChildren(
		...manifest.examples.slice(0, EXAMPLES_SHOWN).map((text) => {
			const chip = document.createElement('button');
			chip.type = 'button';
			chip.className = 'chip';
			chip.textContent = text;
			chip.addEventListener('click', () => {
				prompt.value = text;
				prompt.focus();
			});
			return chip;
		}),
	);
	examples.hidden = manifest.examples.length === 0;
	prompt.placeholder = manifest.examples[0] ?? '';
	element('vocabulary', HTMLElement).hidden = manifest.vocabulary.length === 0;
	element('vocabulary-words', HTMLElement).textContent = manifest.vocabulary.join(', ');
}

/** What the engine said last, and of which device. */
let told: { plan: ClipPlan; used: Device } | undefined;

/** What the chosen clip needs: as the engine said, if it was of this clip, or else as the manifest says. */
function showNeeds({ manifest, device: used, stored }: Availability): void {
	const chosen = { ...manifest.sizes[0], ...sizeOf(video.getAttribute('size')) };
	const same = ({ width, height, frames }: ClipPlan) =>
		width === chosen.width && height === chosen.height && frames === chosen.frames;
	const plan = told?.used === used && same(told.plan) ? told.plan : undefined;
	put(
		'needs',
		needs(
			stored || video.loaded ? 0 : manifest.totalBytes,
			plan?.memory ?? memoryOf(manifest, chosen, used),
			plan?.residency === 'turns',
		),
	);
}

/** A choice where there is one; what was chosen stays chosen as long as the model offers it. */
function showSizes(manifest: ModelManifest): void {
	const { chosen, refused } = offerSizes({ size, length }, manifest, video.getAttribute('size'));
	element('size-field', HTMLElement).hidden = size.options.length < 2;
	element('length-field', HTMLElement).hidden = manifest.longest === undefined;
	put('size-notice', refused && `This model does not make ${video.getAttribute('size')}; it will be ${refused}.`);
	video.setAttribute('size', chosen);
}

/** Takes over what the fields say. */
function chooseSize(manifest: ModelManifest): void {
	if (size.options.length > 0) {
		const { width, height, frames } = chosenSize({ size, length }, manifest);
		video.setAttribute('size', `${width}x${height}x${frames}`);
	}
}

/** Shows what can be done here; an answer that another look has overtaken is dropped. */
async function look(): Promise<void> {
	const mine = ++looks;
	try {
		const available = await video.availability();
		if (mine === looks) {
			showAvailability(available);
			if (!failure.hidden) {
				panel(video.result ? player : undefined);
			}
		}
	} catch (error) {
		if (mine === looks) {
			showFailure(toKinoraError(error));
		}
	}
}

async function start(): Promise<void> {
	if (run) {
		return;
	}
	run = new AbortController();
	const { signal } = run;
	words.hidden = true;
	video.setAttribute('prompt', prompt.value);
	video.setAttribute('seed', seed.value);
	showProgress({
		value: 0,
		stage: video.loaded ? 'text' : 'engine',
		text: video.loaded ? STAGES.text : STAGES.engine,
		remaining: undefined,
	});
	panel(running);
	cancel.focus({ preventScroll: true });
	const calm = matchMedia('(prefers-reduced-motion: reduce)').matches;
	element('stage', HTMLElement).scrollIntoView({ block: 'nearest', behavior: calm ? 'auto' : 'smooth' });
	try {
		// The size that is asked for is known to be offered once the manifest is there.
		const { manifest } = await unlessAborted(video.availability(), signal);
		chooseSize(manifest);
		showSizes(manifest);
		showResult(await video.generate({ signal }));
	} catch (thrown) {
		const error = toKinoraError(thrown);
		if (error.code === 'aborted') {
			hand(video.result ? player : undefined, generate);
			say('Cancelled.');
			return;
		}
		showFailure(error);
	} finally {
		run = undefined;
	}
}

function showProgress({ value, stage, text, remaining }: ProgressDetail): void {
	// Rounded down: 100 % is shown when it is done.
	const percent = Math.floor(value * 100);
	const line = remaining !== undefined && remaining > 2 ? `${text}, ${roughly(remaining)} left` : text;
	element('progress-text', HTMLElement).textContent = line;
	element('progress-figure', HTMLElement).textContent = `${percent} %`;
	element('bar-fill', HTMLElement).style.transform = `scaleX(${value})`;
	const bar = element('bar', HTMLElement);
	bar.setAttribute('aria-valuenow', String(percent));
	bar.setAttribute('aria-valuetext', `${line}, ${percent} %`);
	document.title = `${percent} % · Kinora`;
	// Every stage is announced once; the figure can be read from the bar.
	say(STAGES[stage]);
}

function showResult(result: VideoResult): void {
	const { timings } = result;
	URL.revokeObjectURL(save.href);
	save.href = URL.createObjectURL(result.blob);
	save.download = `kinora-${result.seed}${result.extension}`;
	const lasts = (result.frameCount / result.fps) * 1000;
	element('caption', HTMLElement).textContent =
		`AI-generated · ${seconds(lasts)} · ${result.width} × ${result.height} · seed ${result.seed}`;
	loop.setAttribute('aria-pressed', String(video.video.loop));
	const parts: [string, number][] = [
		['engine', timings.engine],
		['download', timings.download],
		['warm-up', timings.warmup],
		['text', timings.text],
		...timings.steps.map((step, index): [string, number] => [`step ${index + 1}`, step]),
		['previews', timings.preview],
		['frames', timings.decode],
		['encoding', timings.encode],
	];
	const shown = parts.filter(([, time]) => time >= 1).map(([name, time]) => `${name} ${seconds(time)}`);
	put('fact-times', `${seconds(timings.total)} in all: ${shown.join(', ')}`);
	element('fact-times-row', HTMLElement).hidden = false;
	if (!result.stored) {
		put('consent', 'This browser did not keep the model, so the next visit downloads it again.');
	} else {
		void showKept();
	}
	const { device: used, adapter, software } = result.engine;
	element('fact-device', HTMLElement).textContent =
		used === 'webgpu' ? `GPU (${adapter}${software ? ', emulated' : ''})` : 'CPU';
	labelPlay();
	hand(player, play);
	say(`The video is ready: ${seconds(lasts)}, seed ${result.seed}.`);
}

function labelPlay(): void {
	play.textContent = video.video.paused ? 'Play' : 'Pause';
}

async function showKept(): Promise<void> {
	const available = await video.availability();
	const { manifest } = available;
	put('consent', consent(manifest.totalBytes, __ENGINE_BYTES__, true));
	showNeeds({ ...available, stored: true });
	element('fact-download', HTMLElement).textContent = `${megabytes(manifest.totalBytes)}, kept on this device`;
	element('delete', HTMLElement).hidden = false;
}

function listen(): void {
	form.addEventListener('submit', (event) => {
		event.preventDefault();
		void start();
	});
	prompt.addEventListener('keydown', (event) => {
		if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
			event.preventDefault();
			form.requestSubmit();
		}
	});
	element('new-seed', HTMLButtonElement).addEventListener('click', () => {
		seed.value = String(newSeed());
	});
	for (const field of [size, length]) {
		field.addEventListener('change', () => {
			void video.availability().then(
				(available) => {
					chooseSize(available.manifest);
					showNeeds(available);
				},
				() => undefined,
			);
		});
	}
	device.addEventListener('change', () => {
		video.setAttribute('device', device.value);
		void look();
	});
	cancel.addEventListener('click', () => {
		element('progress-text', HTMLElement).textContent = 'Stopping';
		run?.abort();
	});
	document.addEventListener('keydown', (event) => {
		if (event.key === 'Escape') {
			run?.abort();
		}
	});
	element('failure-action', HTMLButtonElement).addEventListener('click', () => {
		if (action === 'reload') {
			keepDraft();
			location.reload();
		} else if (action === 'edit') {
			panel(video.result ? player : undefined);
			prompt.focus();
		} else if (action === 'size') {
			panel(video.result ? player : undefined);
			(size.options.length > 1 ? size : prompt).focus();
		} else {
			if (action === 'cpu') {
				device.value = 'cpu';
				video.setAttribute('device', 'cpu');
			}
			// Before the first prompt there is nothing to repeat but the look at what is here.
			void look().then(() => (prompt.value.trim() === '' ? undefined : start()));
		}
	});
	play.addEventListener('click', () => {
		if (video.video.paused) {
			void video.video.play().catch(() => undefined);
		} else {
			video.video.pause();
		}
	});
	for (const kind of ['play', 'pause', 'ended']) {
		video.video.addEventListener(kind, labelPlay);
	}
	loop.addEventListener('click', () => {
		video.video.loop = !video.video.loop;
		loop.setAttribute('aria-pressed', String(video.video.loop));
	});
	element('again', HTMLButtonElement).addEventListener('click', () => {
		seed.value = String(newSeed());
		void start();
	});
	element('delete', HTMLButtonElement).addEventListener('click', () => {
		void video.deleteModel().then(look);
	});
	on('progress', showProgress);
	on('notice', (detail) => {
		if ('unknownWords' in detail) {
			put(
				'words',
				`The model has never seen ${quoted(detail.unknownWords)} and may draw something else there. The words it knows are listed at the end of the page.`,
			);
			say(words.textContent ?? '');
		} else if ('plan' in detail) {
			void video.availability().then(
				(available) => {
					told = { plan: detail.plan, used: available.device };
					showNeeds(available);
				},
				() => undefined,
			);
		} else {
			put('words', RESTARTED[detail.restarted]);
		}
	});
}

/**
 * `?model=`, `?device=`, `?limits=default`, `?size=`, `?prompts=`, `?text-encoder=`, `?residency=`, `?prompt=` and
 * `?seed=` set what the visitor could set, and the model.
 */
function applyAddress(): void {
	const query = new URLSearchParams(location.search);
	const model = query.get('model');
	video.setAttribute(
		'src',
		model === null
			? 'model/manifest.json'
			: model.endsWith('.json')
				? model
				: `${model.replace(/\/$/, '')}/manifest.json`,
	);
	device.value = ['webgpu', 'cpu'].includes(query.get('device') ?? '') ? (query.get('device') as string) : 'auto';
	video.setAttribute('device', device.value);
	if (query.get('limits') === 'default') {
		video.setAttribute('limits', 'default');
	}
	for (const name of ['size', 'prompts', 'text-encoder', 'residency']) {
		const asked = query.get(name);
		if (asked !== null) {
			video.setAttribute(name, asked);
		}
	}
	const draft = takeDraft();
	prompt.value = draft?.prompt ?? query.get('prompt') ?? '';
	seed.value = draft?.seed ?? query.get('seed') ?? String(newSeed());
}

function keepDraft(): void {
	try {
		sessionStorage.setItem(DRAFT, JSON.stringify({ prompt: prompt.value, seed: seed.value }));
	} catch {
		// No storage here; the words have to be typed again.
	}
}

function takeDraft(): { prompt: string; seed: string } | undefined {
	try {
		const kept = sessionStorage.getItem(DRAFT);
		sessionStorage.removeItem(DRAFT);
		return kept === null ? undefined : (JSON.parse(kept) as { prompt: string; seed: string });
	} catch {
		return undefined;
	}
}

/** The leaves of a Kinora reel: the flip-book wheel that the page is named after. */
function drawReel(): void {
	const leaves = document.getElementById('leaves');
	for (let index = 0; index < 60; index++) {
		const line = document.createElementNS('http://www.w3.org/2000/svg', 'path');
		line.setAttribute('d', 'M16 0C26 1 34 5 40 12');
		line.setAttribute('transform', `rotate(${index * 6})`);
		leaves?.append(line);
	}
}

drawReel();
applyAddress();
listen();
void look();
