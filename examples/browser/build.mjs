// Puts the page together from what is here, the page of `lrkit serve`, lrkit-js, ONNX Runtime and a bundle.
//
//     lrkit export tiny --int4 -o tiny-int4
//     npm install && node build.mjs tiny-int4 dist
//     python -m http.server --directory dist        # or any file server
//
// No bundler: the browser loads modules itself. Nothing is fetched from elsewhere when the page runs.

import { createHash } from "node:crypto";
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";

const MOST_BYTES = 25e6;
// A file server sends no headers of its own, so the page holds its policy; frame-ancestors needs a header.
const POLICY =
  "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; img-src 'self' data: blob:; connect-src 'self' data:; " +
  "object-src 'none'; base-uri 'none'; form-action 'none'";

const here = dirname(fileURLToPath(import.meta.url));
const [bundle, out] = process.argv.slice(2);
if (!out || !existsSync(join(bundle, "bundle.json"))) {
  console.error("error: give a bundle of `lrkit export` and a folder to write: node build.mjs BUNDLE DIST");
  process.exit(2);
}
if (existsSync(out) && readdirSync(out).length && !existsSync(join(out, "offline.js"))) {
  console.error(`error: ${out} holds something else; give a new folder`);
  process.exit(2);
}
rmSync(out, { recursive: true, force: true });
mkdirSync(out, { recursive: true });

const page = join(here, "../../lrkit/serve/page");
const copy = (from, to) => cpSync(from, join(out, to), { recursive: true });
for (const name of ["page.css", "page.js"]) copy(join(page, name), name);
for (const name of ["model.js", "pad.js", "worker.js"]) copy(join(here, name), name);
const html = readFileSync(join(page, "index.html"), "utf8");
const meta = `<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" content="${POLICY}">`;
writeFileSync(join(out, "index.html"), html.replace('<meta charset="utf-8">', meta));

const js = join(here, "../../packages/lrkit-js");
for (const name of readdirSync(js).filter((one) => one.endsWith(".js"))) copy(join(js, name), `lrkit-js/${name}`);
const ort = join(here, "node_modules/onnxruntime-web/dist");
for (const name of ["ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"]) copy(join(ort, name), `ort/${name}`);

const manifest = JSON.parse(readFileSync(join(bundle, "bundle.json"), "utf8"));
const programs = Object.values(manifest.programs).map((program) => program.file);
for (const name of ["bundle.json", "prompt.json", "preprocessor_config.json", "tokenizer.json", ...new Set(programs)]) {
  copy(join(bundle, name), `bundle/${name}`);
}
copy(join(here, "boards"), "boards");

const files = readdirSync(out, { recursive: true }).filter((name) => statSync(join(out, name)).isFile()).sort();
const digest = createHash("sha256");
let bytes = 0;
for (const name of files) {
  const content = readFileSync(join(out, name));
  digest.update(name).update(content);
  bytes += content.length;
}
const offline = readFileSync(join(here, "offline.js"), "utf8")
  .replace("{{version}}", digest.digest("hex").slice(0, 16))
  .replace('["{{files}}"]', JSON.stringify(["./", ...files.filter((name) => name !== "index.html")], null, 1));
writeFileSync(join(out, "offline.js"), offline);
if (bytes > MOST_BYTES) {
  console.error(`error: the page has ${(bytes / 1e6).toFixed(1)} MB, above ${MOST_BYTES / 1e6}; take a smaller bundle`);
  process.exit(2);
}
console.log(`${relative(process.cwd(), out) || out}: ${files.length + 1} files, ${(bytes / 1e6).toFixed(1)} MB`);
