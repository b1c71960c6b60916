// The page itself: keyboard, small screens, assistive technology, any path on any host.
import assert from 'node:assert/strict';
import { after, afterEach, before, test } from 'node:test';
import { TINY, make, outcome, start } from './support.mjs';

const REQUEST = { prompt: 'a red ball bounces on green grass', seed: 7 };
const CPU = `${TINY}&device=cpu`;

let site;

before(async () => {
	// Not at the root: every address in the page has to be relative.
	site = await start({ base: '/some/where/' });
});
after(() => site.stop());
afterEach(() => site.clear());

test('the page works from a sub-path and asks no other host', async () => {
	const page = await site.open(CPU);
	await make(page, REQUEST);
	assert.ok(site.url.endsWith('/some/where/'));
	const elsewhere = page.requests.filter(
		(url) => !url.startsWith(site.url) && !url.startsWith('blob:') && !url.startsWith('data:'),
	);
	assert.deepEqual(elsewhere, []);
	assert.deepEqual(page.errors, []);
});

test('the built-in model says what it is before it is downloaded', async () => {
	const page = await site.open();
	assert.match(
		await page.locator('#fact-model').innerText(),
		/128 × 128 for 1\.4 s, 176 × 96 for 1\.4 s at 12 frames per second/,
	);
	assert.deepEqual(await page.locator('#size option').allInnerTexts(), ['128 × 128', '176 × 96']);
	assert.match(await page.locator('#consent').innerText(), /downloads the model, \d+(\.\d)? MB, once/);
	assert.ok((await page.locator('.chip').count()) > 0);
	await page.locator('.chip').first().click();
	assert.equal(await page.inputValue('#prompt'), await page.locator('.chip').first().innerText());
});

test('everything can be done with the keyboard', async () => {
	const page = await site.open(CPU);
	const focus = () => page.evaluate(() => document.activeElement.id || document.activeElement.className);
	const order = [];
	for (let count = 0; count < 7; count++) {
		await page.keyboard.press('Tab');
		order.push(await focus());
	}
	assert.deepEqual(order, ['prompt', 'seed', 'new-seed', 'size', 'device', 'generate', 'chip']);
	const outlined = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
	assert.equal(outlined, 'solid');
	await page.focus('#prompt');
	await page.keyboard.type(REQUEST.prompt);
	const found = outcome(page);
	await page.keyboard.press('Enter');
	assert.equal((await found).error, undefined);
	await page.locator('#player').waitFor();
	assert.equal(await focus(), 'play');
	await page.keyboard.press('Space');
	await page.waitForFunction(() => document.getElementById('play').textContent === 'Play');
	await page.keyboard.press('Tab');
	assert.equal(await focus(), 'loop');
});

test('the size that is chosen is the size that is made, and one that is not offered is named', async () => {
	const page = await site.open(CPU);
	assert.deepEqual(await page.locator('#size option').allInnerTexts(), ['96 × 64, 0.8 s', '96 × 64, 0.4 s']);
	await page.selectOption('#size', { index: 1 });
	await page.fill('#prompt', REQUEST.prompt);
	const found = outcome(page);
	await page.keyboard.press('Enter');
	assert.equal((await found).error, undefined);
	assert.equal(await page.evaluate(() => document.querySelector('kinora-video').result.frames.length), 5);
	const box = await page.locator('kinora-video').boundingBox();
	assert.ok(Math.abs(box.width / box.height - 96 / 64) < 0.02, `${box.width} x ${box.height}`);

	const other = await site.open(`${CPU}&size=999x999`);
	await other.locator('#size-notice').waitFor();
	assert.match(await other.locator('#size-notice').innerText(), /does not make 999x999; it will be 96 × 64/);
	assert.equal(await other.locator('#size').inputValue(), '96x64x9');
});

test('Escape cancels', async () => {
	const page = await site.open(CPU, { prepare: (context) => context.route('**/tiny/*.bin', () => undefined) });
	await page.fill('#prompt', REQUEST.prompt);
	await page.keyboard.press('Enter');
	await page.locator('#running').waitFor();
	assert.equal(await page.evaluate(() => document.activeElement.id), 'cancel');
	await page.keyboard.press('Escape');
	await page.waitForFunction(() => document.querySelector('kinora-video').state === 'idle', undefined, {
		timeout: 2500,
	});
	assert.equal(await page.evaluate(() => document.activeElement.id), 'generate');
});

test('progress and outcome reach assistive technology', async () => {
	const page = await site.open(CPU);
	const bar = page.getByRole('progressbar');
	await page.evaluate(() => {
		window.seen = { values: [], texts: [], said: [] };
		const bar = document.getElementById('bar');
		new MutationObserver(() => {
			window.seen.values.push(Number(bar.getAttribute('aria-valuenow')));
			window.seen.texts.push(bar.getAttribute('aria-valuetext'));
		}).observe(bar, { attributes: true });
		const status = document.getElementById('status');
		new MutationObserver(() => window.seen.said.push(status.textContent)).observe(status, {
			childList: true,
			characterData: true,
			subtree: true,
		});
	});
	await make(page, REQUEST);
	await page.locator('#player').waitFor();
	const { values, texts, said } = await page.evaluate(() => window.seen);
	assert.ok(
		values.every((value, index) => value >= 0 && value <= 100 && (index === 0 || value >= values[index - 1])),
		values.join(' '),
	);
	assert.ok(
		texts.every((text) => /^.+, \d+ %$/.test(text)),
		texts[0],
	);
	assert.equal(await page.locator('#status').getAttribute('role'), 'status');
	assert.ok(said.length <= 9, `announced ${said.length} times`);
	assert.match(said.at(-1), /^The video is ready/);
	assert.equal(await bar.count(), 0, 'the bar is gone when there is nothing to wait for');
	assert.match(
		await page.evaluate(() => document.querySelector('kinora-video').video.getAttribute('aria-label')),
		/AI-generated video: a red ball/,
	);
});

for (const colorScheme of ['light', 'dark']) {
	test(`360 pixels wide, ${colorScheme}: nothing is cut off and every target is large enough`, async () => {
		const page = await site.open(CPU, { viewport: { width: 360, height: 740 }, colorScheme });
		const overflow = () =>
			page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
		assert.equal(await overflow(), 0);
		await make(page, { ...REQUEST, prompt: 'a red dog on green grass' });
		await page.locator('#player').waitFor();
		assert.match(await page.locator('#words').innerText(), /“dog”/);
		assert.equal(await overflow(), 0);
		const small = await page.evaluate(() =>
			[...document.querySelectorAll('button, select, input, a')]
				.filter(
					(target) =>
						target.checkVisibility() &&
						!target.classList.contains('link') &&
						target.getBoundingClientRect().height < 40,
				)
				.map((target) => target.id),
		);
		assert.deepEqual(small, []);
		assert.equal(
			await page.evaluate(() => getComputedStyle(document.body).backgroundColor !== 'rgba(0, 0, 0, 0)'),
			true,
		);
	});
}

/** Contrast ratio by WCAG 2 of the text of each element against the nearest opaque background. */
const CONTRAST = () => {
	const luminance = ([r, g, b]) => {
		const linear = [r, g, b].map((part) =>
			part / 255 <= 0.04045 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4,
		);
		return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
	};
	const parse = (colour) => colour.match(/[\d.]+/g).map(Number);
	const behind = (element) => {
		for (let each = element; each; each = each.parentElement) {
			const colour = parse(getComputedStyle(each).backgroundColor);
			if (colour[3] === undefined || colour[3] === 1) {
				return colour;
			}
		}
		return [255, 255, 255];
	};
	return [...document.querySelectorAll('p, h1, label, button, a, dt, dd, summary, span, input, select')]
		.filter(
			(element) => element.checkVisibility() && !element.disabled && (element.textContent.trim() || element.value),
		)
		.map((element) => {
			const [a, b] = [luminance(parse(getComputedStyle(element).color)), luminance(behind(element))];
			return {
				text: (element.textContent || element.value).trim().slice(0, 30),
				ratio: (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05),
			};
		})
		.filter(({ ratio }) => ratio < 4.5);
};
for (const colorScheme of ['light', 'dark']) {
	test(`all text is readable, ${colorScheme}`, async () => {
		const page = await site.open(CPU, { colorScheme });
		assert.deepEqual(await page.evaluate(CONTRAST), []);
	});
}

test('with reduced motion the video waits for its button', async () => {
	const page = await site.open(CPU, { reducedMotion: 'reduce' });
	await make(page, REQUEST);
	await page.locator('#player').waitFor();
	assert.equal(await page.evaluate(() => document.querySelector('kinora-video').video.paused), true);
	assert.equal(await page.locator('#play').innerText(), 'Play');
});

test('no style or script is inline, so a strict content security policy holds', async () => {
	const page = await site.open(CPU);
	const inline = await page.evaluate(() => document.querySelectorAll('script:not([src]), style, [onclick]').length);
	assert.equal(inline, 0);
	const violations = [];
	page.on('console', (message) => /Content Security Policy/.test(message.text()) && violations.push(message.text()));
	await page.reload();
	await make(page, REQUEST);
	assert.deepEqual(violations, []);
});
