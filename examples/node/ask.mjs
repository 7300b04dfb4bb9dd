// Asks an lrkit bundle a question about a PNG, with ONNX Runtime and nothing of lrkit.
//
//     npm install
//     node ask.mjs BUNDLE rooms.png "Take 4 hops. Which room are you in? Start in room 3" [latent|cot|direct]
//
// The answer goes to standard output, what it took to standard error: the same as `lrkit ask` prints. One run of the
// program file does all the work; what is left here is arithmetic on integers and a table lookup. Kept simple:
//   - the tokenizer is a lookup of whole words, which is enough for the tiny model; a bundle with a subword tokenizer is
//     refused (tokenizer.json is the standard format of Hugging Face: their JavaScript package reads it);
//   - one picture, which is not resized: its sides must be multiples of the side of a visual token, as those of the
//     trail data are.

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { performance } from "node:perf_hooks";
import ort from "onnxruntime-node";
import { PNG } from "pngjs";

const SCHEMA = 3;
const MODES = ["latent", "cot", "direct"];

function fail(message) {
  console.error(`error: ${message}`);
  process.exit(2);
}

// ---- bundle

function openBundle(folder) {
  const read = (name) => JSON.parse(readFileSync(join(folder, name), "utf8"));
  const manifest = read("bundle.json");
  if (manifest.schema_version !== SCHEMA) fail(`${folder}: schema ${manifest.schema_version}; this example reads ${SCHEMA}`);
  for (const [name, entry] of Object.entries(manifest.files)) {
    const sha256 = createHash("sha256").update(readFileSync(join(folder, name))).digest("hex");
    if (sha256 !== entry.sha256) fail(`${join(folder, name)} was altered; copy the bundle again`);
  }
  return { folder, manifest, prompt: read("prompt.json"), image: read("preprocessor_config.json"), tokenizer: read("tokenizer.json") };
}

// ---- words to ids and back

function wordTokenizer(tokenizer) {
  if (tokenizer.model.type !== "WordLevel") fail(`the tokenizer is ${tokenizer.model.type}; this example looks up whole words`);
  const ids = new Map(Object.entries(tokenizer.model.vocab));
  const added = tokenizer.added_tokens.map((token) => token.content);
  for (const token of tokenizer.added_tokens) ids.set(token.content, token.id);
  const special = new Set(tokenizer.added_tokens.filter((token) => token.special).map((token) => token.id));
  const words = new Map([...ids].map(([word, id]) => [id, word]));
  const escaped = added.map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  const pattern = new RegExp(`${escaped.join("|")}|[\\p{L}\\p{N}_]+|[^\\p{L}\\p{N}_\\s]+`, "gu");
  const idOf = (word) => ids.get(word) ?? fail(`the model does not know the word ${JSON.stringify(word)}`);
  return {
    id: idOf,
    encode: (text) => (text.match(pattern) ?? []).map(idOf),
    decode: (found) => {
      const spoken = found.filter((id) => words.has(id) && !special.has(id)).map((id) => words.get(id));
      return spoken.map((word) => (/^[.,;:!?]+$/.test(word) ? word : ` ${word}`)).join("").trim();
    },
  };
}

// ---- picture to patches

// Patches in the order of the spatial merge: squares of merge x merge patches, row by row; each holds the
// bytes of the picture by channel, row, column.
function patchify(path, config) {
  const picture = PNG.sync.read(readFileSync(path));
  const { patch_size: patch, merge_size: merge } = config;
  const [rows, columns] = [picture.height / patch, picture.width / patch];
  if (rows % merge || columns % merge) {
    fail(`${path}: has ${picture.width} x ${picture.height} pixels; this example needs multiples of ${patch * merge}`);
  }
  const area = picture.width * picture.height;
  const { shortest_edge: least, longest_edge: most } = config.size;
  if (area < least || area > most) fail(`${path}: has ${area} pixels, and the model reads ${least} to ${most}; resize it`);
  const values = new Uint8Array(rows * columns * 3 * patch * patch);
  const positions = [];
  let next = 0;
  for (let i = 0; i < rows * columns; i++) {
    const square = Math.floor(i / (merge * merge));
    const row = Math.floor(square / (columns / merge)) * merge + Math.floor((i % (merge * merge)) / merge);
    const column = (square % (columns / merge)) * merge + (i % merge);
    positions.push(row, column);
    for (let channel = 0; channel < 3; channel++) {
      for (let y = 0; y < patch; y++) {
        for (let x = 0; x < patch; x++) {
          const pixel = 4 * ((row * patch + y) * picture.width + column * patch + x);
          if (picture.data[pixel + 3] !== 255) fail(`${path}: is transparent in places; lay it on white first`);
          values[next++] = picture.data[pixel + channel];
        }
      }
    }
  }
  return { values, positions, rows, columns, count: rows * columns };
}

// ---- what the program reads: names and meaning are in bundle.json, programs.*.spec

// Text counts on in all three sections; an image's tokens share the first and spread over rows and columns in the others,
// unless the checkpoint says that they count on like text.
function positionIds(ids, imageId, rows, columns, places = "grid") {
  if (places === "sequence") return Array(3).fill([...ids.keys()]).flat();
  const sections = [[], [], []];
  const start = ids.indexOf(imageId);
  const end = start + rows * columns;
  ids.forEach((_, i) => {
    const behind = start + Math.max(rows, columns) + (i - end);
    const inside = [0, Math.floor((i - start) / columns), (i - start) % columns];
    sections.forEach((section, s) => section.push(i < start ? i : i < end ? start + inside[s] : behind));
  });
  return sections.flat();
}

const int64 = (values, shape) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), shape);
const bool = (value) => new ort.Tensor("bool", Uint8Array.of(value ? 1 : 0), []);

function buildFeed(bundle, words, picture, question, mode, settings) {
  const { manifest, prompt, image } = bundle;
  const { limits, tokens } = manifest;
  const text = prompt.template.replace("{images}", () => prompt.image).replace("{question}", () => question);
  const [rows, columns] = [picture.rows / image.merge_size, picture.columns / image.merge_size];
  const ids = words.encode(text).flatMap((id) => (id === tokens.image ? Array(rows * columns).fill(id) : [id]));
  if (mode === "direct") ids.push(...words.encode(prompt.answer.split("{answer}")[0].trim()));
  if (ids.length > limits.max_prompt_tokens) fail(`${ids.length} prompt tokens, above the limit of ${limits.max_prompt_tokens}`);
  if (picture.count > limits.max_patches) fail(`${picture.count} patches, above the limit of ${limits.max_patches}`);
  return {
    input_ids: int64(ids, [ids.length]),
    position_ids: int64(positionIds(ids, tokens.image, rows, columns, image.visual_positions), [3, ids.length]),
    pixel_values: new ort.Tensor("uint8", picture.values, [picture.count, picture.values.length / picture.count]),
    patch_positions: int64(picture.positions, [picture.count, 2]),
    patch_picture: int64(Array(picture.count).fill(0), [picture.count]),
    think: bool(mode === "latent"),
    fixed_latents: bool(settings.think.halting === "fixed"),
    max_latent_steps: int64([Math.min(settings.think.max_latent_steps, limits.max_latent_steps)], []),
    max_new_tokens: int64([limits.max_new_tokens], []),
  };
}

// ---- ask

async function main([folder, path, question, mode = "latent"]) {
  if (!question || !MODES.includes(mode)) fail("usage: node ask.mjs BUNDLE PICTURE.png QUESTION [latent|cot|direct]");
  const bundle = openBundle(folder);
  const program = bundle.manifest.programs[mode] ?? bundle.manifest.programs.latent;
  const words = wordTokenizer(bundle.tokenizer);
  const feed = buildFeed(bundle, words, patchify(path, bundle.image), question, mode, program.settings);
  const session = await ort.InferenceSession.create(join(folder, program.file));
  const started = performance.now();
  const out = await session.run(feed, ["token_ids", "num_tokens", "latent_steps", "ar_steps"]);
  const milliseconds = performance.now() - started;
  const count = (name) => Number(out[name].data[0]);
  console.log(words.decode([...out.token_ids.data].slice(0, count("num_tokens")).map(Number)));
  console.error(
    `${count("ar_steps")} autoregressive steps (${count("latent_steps")} latent, ${count("num_tokens")} tokens spoken), ` +
      `${milliseconds.toFixed(1)} ms`,
  );
}

await main(process.argv.slice(2));
