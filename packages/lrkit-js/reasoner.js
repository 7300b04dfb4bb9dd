// Asks a bundle. One run of its program does all the work: reading, latent steps, replay, words. What is left is
// arithmetic on integers and a lookup. What the program reads and writes is said in bundle.json, programs.*.spec.

import { patchify, regionOf } from "./picture.js";
import { wholeWords } from "./words.js";

const MODES = ["latent", "cot", "direct"];
const HALTING = ["off", "decided", "limit", "fixed"];

export class Reasoner {
  #sessions = new Map();

  constructor(ort, bundle, tokenizer, sessionOptions) {
    Object.assign(this, { ort, bundle, tokenizer, sessionOptions });
  }

  /**
   * @param ort onnxruntime-node or onnxruntime-web.
   * @param bundle of `openBundle`.
   * @param options `tokenizer` with encode and decode (default: whole words), `session` options of ONNX Runtime.
   */
  static load(ort, bundle, { tokenizer = wholeWords(bundle.tokenizer), session = {} } = {}) {
    return new Reasoner(ort, bundle, tokenizer, { logSeverityLevel: 3, ...session });
  }

  /** Which of latent, cot and direct it answers in. */
  get modes() {
    const { programs } = this.bundle.manifest;
    return MODES.filter((mode) => programs[mode] ?? (programs.latent && mode !== "latent"));
  }

  /**
   * Answers a question about one picture, or about none (null).
   * @param options mode, maxLatentSteps, maxNewTokens; `onStep` is told the regions of each latent step before the next
   *   is computed. That runs the program once more for each step, which `milliseconds` leaves out.
   * @returns text, latentSteps, spokenTokens, arSteps, halting, milliseconds, and regions: for each latent step the boxes
   *   that it looked at again, [{ box, weight }], in pixels of the picture.
   * @throws Error where the bundle cannot answer that.
   */
  async ask(picture, question, { mode = "latent", maxLatentSteps, maxNewTokens, onStep } = {}) {
    if (!this.modes.includes(mode)) throw new Error(`there is no mode ${mode}; ask in ${this.modes.join(" or ")}`);
    const role = this.bundle.manifest.programs[mode] ? mode : "latent";
    const program = this.bundle.manifest.programs[role];
    if (program.settings.replay.source !== "prompt") throw new Error("the bundle looks closer, which lrkit-js cannot");
    const session = await this.#session(program.file);
    const started = performance.now();
    const patches = picture && patchify(picture, this.bundle.image);
    const feed = this.#feed(patches, question, mode, program.settings, maxLatentSteps, maxNewTokens);
    const showing = performance.now();
    if (picture && onStep && mode === "latent") await this.#show(session, feed, patches, picture, onStep);
    const shown = performance.now() - showing;
    const out = await session.run(feed);
    const count = (name) => Number(out[name].data[0]);
    const [spokenTokens, latentSteps] = [count("num_tokens"), count("latent_steps")];
    return {
      text: this.tokenizer.decode([...out.token_ids.data].slice(0, spokenTokens).map(Number)),
      mode, latentSteps, spokenTokens, arSteps: count("ar_steps"), halting: HALTING[count("halting")],
      regions: picture ? regionsOf(out, latentSteps, patches, picture) : [],
      milliseconds: performance.now() - started - shown,
    };
  }

  // A program hands out its steps with its answer. So that each is seen before the next is computed, it is run with one
  // step, with two, and so on, and one word; what it computes in a step does not depend on how many may follow.
  async #show(session, feed, patches, picture, onStep) {
    const int64 = (value) => new this.ort.Tensor("int64", BigInt64Array.of(BigInt(value)), []);
    for (let steps = 1; steps <= Number(feed.max_latent_steps.data[0]); steps++) {
      const out = await session.run({ ...feed, max_latent_steps: int64(steps), max_new_tokens: int64(1) });
      if (Number(out.latent_steps.data[0]) < steps) return; // the model has decided to answer
      onStep(regionsOf(out, steps, patches, picture).at(-1) ?? []);
    }
  }

  #session(file) {
    if (!this.#sessions.has(file)) {
      const made = this.bundle.read(file).then((bytes) => this.ort.InferenceSession.create(bytes, this.sessionOptions));
      made.catch(() => this.#sessions.delete(file));
      this.#sessions.set(file, made);
    }
    return this.#sessions.get(file);
  }

  #feed(patches, question, mode, settings, maxLatentSteps = settings.think.max_latent_steps, maxNewTokens = Infinity) {
    const { Tensor } = this.ort;
    const { manifest, prompt, image } = this.bundle;
    const { limits, tokens } = manifest;
    const int64 = (values, shape) => new Tensor("int64", BigInt64Array.from(values, BigInt), shape);
    const bool = (value) => new Tensor("bool", Uint8Array.of(value ? 1 : 0), []);
    const text = prompt.template
      .replace("{images}", () => (patches ? prompt.image : ""))
      .replace("{question}", () => question);
    const visual = patches ? patches.rows * patches.columns : 0;
    const asked = this.tokenizer.encode(text);
    if (asked.filter((id) => id === tokens.image).length !== (patches ? 1 : 0)) {
      throw new Error("the question holds the token of a picture; leave it out");
    }
    const ids = asked.flatMap((id) => (id === tokens.image ? Array(visual).fill(id) : [id]));
    if (mode === "direct") ids.push(...this.tokenizer.encode(prompt.answer.split("{answer}")[0].trim()));
    if (ids.length > limits.max_prompt_tokens) {
      throw new Error(`the prompt has ${ids.length} tokens, and the bundle takes ${limits.max_prompt_tokens}; shorten it`);
    }
    const square = image.merge_size ** 2; // without a picture the program reads one square of zeros
    const bytes = 3 * image.patch_size ** 2;
    const { values, positions, count } = patches ?? {
      values: new Uint8Array(square * bytes), positions: Array(2 * square).fill(0), count: square,
    };
    if (count > limits.max_patches) throw new Error(`the picture has ${count} patches, and the bundle takes ${limits.max_patches}`);
    return {
      input_ids: int64(ids, [ids.length]),
      position_ids: int64(positionIds(ids, tokens.image, patches, image.visual_positions), [3, ids.length]),
      pixel_values: new Tensor("uint8", values, [count, bytes]),
      patch_positions: int64(positions, [count, 2]),
      patch_picture: int64(Array(count).fill(0), [count]),
      think: bool(mode === "latent"),
      fixed_latents: bool(settings.think.halting === "fixed"),
      max_latent_steps: int64([Math.min(maxLatentSteps, limits.max_latent_steps)], []),
      max_new_tokens: int64([Math.max(1, Math.min(maxNewTokens, limits.max_new_tokens))], []),
    };
  }
}

// Text counts on in all three sections; an image's tokens share the first and spread over rows and columns in the others,
// unless the checkpoint says that they count on like text.
function positionIds(ids, imageId, patches, places = "grid") {
  if (places === "sequence" || !patches) return Array(3).fill([...ids.keys()]).flat();
  const { rows, columns } = patches;
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

function regionsOf(out, latentSteps, patches, { width, height }) {
  if (!out.replayed) return [];
  const slots = out.replayed.dims[1];
  return Array.from({ length: latentSteps }, (_, step) => {
    const places = [...out.replayed.data.slice(step * slots, (step + 1) * slots)].map(Number);
    const weights = [...out.replay_weights.data.slice(step * slots, (step + 1) * slots)];
    const total = places.reduce((sum, place, i) => (place < 0 ? sum : sum + weights[i]), 0) || 1;
    return places.flatMap((place, i) =>
      place < 0 ? [] : [{ image: 0, box: regionOf(place, patches, width, height), weight: weights[i] / total }],
    );
  });
}
