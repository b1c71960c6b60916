// Times the stages of a clip in the browser on each device and prints the ratios. Clips are made alternately after one to
// warm up, so that a machine that slows down slows both. `node scripts/bench.mjs [--clips N] [--device webgpu|cpu]...`
import { parseArgs } from 'node:util';
import { serve } from './serve.mjs';
import { generate, run, visit } from './visit.mjs';

const PROMPT = 'a red ball bounces on green grass';

const middle = (values) => values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)];

function stages({ timings }) {
	return {
		text: timings.text,
		step: middle(timings.steps),
		decoding: timings.decode,
		encoding: timings.encode,
		clip: timings.total,
	};
}

async function main() {
	const { values } = parseArgs({ options: { clips: { type: 'string' }, device: { type: 'string', multiple: true } } });
	const clips = Number(values.clips ?? 3);
	const server = await serve();
	const visits = [];
	try {
		for (const device of values.device ?? ['cpu', 'webgpu']) {
			const opened = await visit(server.url, device);
			const first = await generate(opened, PROMPT, 7);
			const { adapter, software } = first.engine;
			visits.push({ device, opened, times: [] });
			const on =
				device === 'cpu' ? '' : `: ${adapter}${software ? ' (emulated on the CPU: says nothing about GPUs)' : ''}`;
			console.log(`browser ${device}${on}, first clip ${(first.timings.total / 1000).toFixed(2)} s with loading`);
		}
		for (let clip = 0; clip < clips; clip++) {
			for (const { opened, times } of visits) {
				times.push(stages(await generate(opened, PROMPT, 7)));
			}
		}
		const medians = visits.map(({ times }) =>
			Object.fromEntries(Object.keys(times[0]).map((stage) => [stage, middle(times.map((time) => time[stage]))])),
		);
		for (const [index, { device }] of visits.entries()) {
			console.log(
				`browser ${device}, median of ${clips}: ${Object.entries(medians[index])
					.map(([stage, time]) => `${stage} ${time.toFixed(0)} ms`)
					.join(', ')}`,
			);
		}
		const [one, other] = medians;
		if (other) {
			const [first, second] = visits.map(({ device }) => device);
			for (const stage of Object.keys(one)) {
				console.log(`ratio browser ${first}/${second}, ${stage}: ${(one[stage] / other[stage]).toFixed(2)}`);
			}
		}
	} finally {
		await Promise.all(visits.map(({ opened }) => opened.browser.close()));
		await server.close();
	}
}

run('bench', main);
