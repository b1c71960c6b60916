// Serves the built page on this machine only. As a program:
// `node scripts/serve.mjs [--port N] [--base /path/] [--dir DIR] [--model DIR]`.
import { existsSync } from 'node:fs';
import { createServer } from 'node:http';
import { basename, join, resolve } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';
import sirv from 'sirv';

const DIST = fileURLToPath(new URL('../dist', import.meta.url));

/**
 * @param {{directory?: string, base?: string, port?: number, mounts?: Record<string, string>}} options
 *   `base` is the path the page lives under; `mounts` gives further folders by their path, relative to the base.
 * @returns {Promise<{url: string, close: () => Promise<void>}>}
 */
export async function serve({ directory = DIST, base = '/', port = 0, mounts = {} } = {}) {
	const root = `/${base}/`.replace(/\/+/g, '/');
	// The file list is read once, so no request can name anything that was not in the folder then.
	const routes = Object.entries({ ...mounts, '': directory }).map(([path, folder]) => ({
		prefix: `${root}${path}`,
		files: sirv(folder, { etag: true }),
	}));
	const server = createServer((request, response) => {
		const missing = () => {
			response.writeHead(404, { 'content-type': 'text/plain' });
			response.end('not found');
		};
		const route = routes.find(({ prefix }) => request.url?.startsWith(prefix));
		if (!route) {
			missing();
			return;
		}
		request.url = `/${request.url.slice(route.prefix.length).replace(/^\//, '')}`;
		route.files(request, response, missing);
	});
	await new Promise((resolve, reject) => {
		server.once('error', reject);
		server.listen(port, '127.0.0.1', resolve);
	});
	return {
		url: `http://127.0.0.1:${server.address().port}${root}`,
		close: () =>
			new Promise((resolve) => {
				server.close(() => resolve());
				server.closeAllConnections();
			}),
	};
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
	try {
		console.log(await program());
	} catch (error) {
		console.error(`serve: ${error.message.split('\n', 1)[0]}`);
		process.exit(1);
	}
}

/** Serves as the command line says; gives the address to open. */
async function program() {
	const { values } = parseArgs({
		options: {
			port: { type: 'string', default: '0' },
			base: { type: 'string', default: '/' },
			dir: { type: 'string', default: DIST },
			model: { type: 'string' },
		},
	});
	const { port, base, dir, model } = values;
	if (!/^\d{1,5}$/.test(port) || Number(port) > 65_535) {
		throw new Error(`--port ${port} is no port; give a number up to 65535.`);
	}
	const options = { port: Number(port), base, directory: dir };
	if (model === undefined) {
		return (await serve(options)).url;
	}
	if (!existsSync(join(model, 'manifest.json'))) {
		throw new Error(`${model} has no manifest.json; pack a model into it first.`);
	}
	const path = `models/${encodeURIComponent(basename(resolve(model)))}`;
	const { url } = await serve({ ...options, mounts: { [path]: resolve(model) } });
	return `${url}?model=${path}`;
}
