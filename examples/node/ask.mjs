// Asks an lrkit bundle a question about a PNG, with ONNX Runtime and nothing of Python.
//
//     npm install
//     node ask.mjs BUNDLE rooms.png "Take 4 hops. Which room are you in? Start in room 3" [latent|cot|direct]
//
// The answer goes to standard output, what it took to standard error: the same as `lrkit ask` prints.

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { PNG } from "pngjs";
import { openBundle, Reasoner } from "lrkit-js";

process.env.ORT_DISABLE_TELEMETRY ??= "1"; // ONNX Runtime from 1.29 on reports every session; it asks when it is loaded
const { default: ort } = await import("onnxruntime-node");

async function main([folder, path, question, mode = "latent"]) {
  if (!question) throw new Error("usage: node ask.mjs BUNDLE PICTURE.png QUESTION [latent|cot|direct]");
  const bundle = await openBundle((name) => readFile(join(folder, name)));
  const picture = PNG.sync.read(await readFile(path));
  const answer = await Reasoner.load(ort, bundle).ask(picture, question, { mode });
  console.log(answer.text);
  const { arSteps, latentSteps, spokenTokens, milliseconds } = answer;
  console.error(
    `${arSteps} autoregressive steps (${latentSteps} latent, ${spokenTokens} tokens spoken), ${milliseconds.toFixed(1)} ms`,
  );
}

await main(process.argv.slice(2)).catch((error) => {
  console.error(`error: ${error.message}`);
  process.exit(2);
});
