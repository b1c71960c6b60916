// Starts the Chromium of this machine for the demo, the benchmark and the tests.
import { existsSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { chromium } from 'playwright-core';

const NAMES = ['chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable'];
const PLACES = [
	'/Applications/Google Chrome.app/Contents/MacOS/Google Chrome',
	'C:\\Program Files\\Google\\Chrome\\Application\\chrome.exe',
];

const ARGUMENTS = [
	'--headless=new',
	'--no-sandbox',
	'--enable-unsafe-webgpu',
	'--disable-quic',
	'--no-first-run',
	'--disable-background-networking',
	'--disable-component-update',
	'--disable-sync',
	'--disable-dev-shm-usage',
];
// A real GPU is only offered to headless Chromium on Linux when Vulkan is asked for.
const HARDWARE = [
	'--enable-features=Vulkan',
	'--use-angle=vulkan',
	// Few drivers have surfaces for headless programs; Chromium gives up the whole driver where it asks for one in vain.
	'--disable-vulkan-surface',
	'--ignore-gpu-blocklist',
];
const SOFTWARE = ['--use-webgpu-adapter=swiftshader'];

export function findChromium() {
	const { CHROMIUM, PATH = '' } = process.env;
	const candidates = [
		...(CHROMIUM ? [CHROMIUM] : []),
		...PATH.split(delimiter).flatMap((folder) => NAMES.map((name) => join(folder, name))),
		...PLACES,
		chromium.executablePath(),
	];
	const found = candidates.find((path) => existsSync(path));
	if (found === undefined) {
		throw new Error('No Chromium or Chrome was found. Set CHROMIUM to the path of one.');
	}
	return found;
}

/**
 * @param {{gpu?: 'hardware' | 'software' | 'any', arguments?: string[]}} options
 *   `software` always gives SwiftShader; `any` leaves the choice to Chromium, which without a GPU also means SwiftShader.
 */
export function launch({ gpu = 'any', arguments: more = [] } = {}) {
	const choice = { hardware: HARDWARE, software: SOFTWARE, any: [] }[gpu];
	return chromium.launch({
		executablePath: findChromium(),
		// Playwright would pass the old headless mode's own switches.
		ignoreDefaultArgs: ['--headless'],
		args: [...ARGUMENTS, ...choice, ...more],
	});
}
