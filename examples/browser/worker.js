// Loads the bundle and answers, beside the page. WebAssembly on one thread: more need headers that a plain file server
// does not send.

import * as ort from "./ort/ort.wasm.min.mjs";
import { fit, openBundle, Reasoner } from "./lrkit-js/index.js";

ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;
ort.env.wasm.numThreads = 1;

let reasoner = null;
let bytes = 0;

async function fetchFile(name) {
  const response = await fetch(new URL(`./bundle/${name}`, import.meta.url));
  if (!response.ok) throw new Error(`${name} could not be loaded (${response.status})`);
  const found = new Uint8Array(await response.arrayBuffer());
  bytes += found.length;
  return found;
}

async function load() {
  const bundle = await openBundle(fetchFile);
  reasoner = Reasoner.load(ort, bundle, { session: { executionProviders: ["wasm"] } });
  for (const mode of reasoner.modes) await reasoner.ask(null, "Read the signs.", { mode, maxNewTokens: 1 }); // loads its program
  return { modes: reasoner.modes, megabytes: (bytes / 1e6).toFixed(1) };
}

async function pixels(blob) {
  const found = await createImageBitmap(blob, { imageOrientation: "from-image" });
  const [width, height] = fit(found.width, found.height, reasoner.bundle.image);
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white"; // below what is transparent
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  context.drawImage(found, 0, 0, width, height);
  return { picture: context.getImageData(0, 0, width, height), scale: [found.width / width, found.height / height] };
}

async function ask({ picture, question, options }, onStep) {
  if (picture === null) return reasoner.ask(null, question, options);
  const seen = await pixels(picture);
  const [x, y] = seen.scale; // regions in pixels of the picture as it was given
  const scaled = (step) => step.map((region) => ({ ...region, box: region.box.map((side, i) => side * (i % 2 ? y : x)) }));
  const answer = await reasoner.ask(seen.picture, question, { ...options, onStep: (step) => onStep(scaled(step)) });
  return { ...answer, regions: answer.regions.map(scaled) };
}

let turn = Promise.resolve(); // one after the other

self.onmessage = ({ data }) => {
  turn = turn.then(async () => {
    try {
      const step = (regions) => self.postMessage({ id: data.id, step: regions });
      self.postMessage({ id: data.id, found: await (data.what === "load" ? load() : ask(data, step)) });
    } catch (error) {
      self.postMessage({ id: data.id, error: error.message });
    }
  });
};
