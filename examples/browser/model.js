// The model of page.js in the browser itself: a worker runs it, so that the page never freezes.

import { offerPad } from "./pad.js";

const worker = new Worker("worker.js", { type: "module" });
const waiting = new Map();
let next = 0;

worker.onmessage = ({ data: { id, step, found, error } }) => {
  const { done, failed, look } = waiting.get(id);
  if (step !== undefined) return look?.(step);
  waiting.delete(id);
  if (error === undefined) done(found);
  else failed(new Error(error));
};
worker.onerror = (event) => {
  for (const { failed } of waiting.values()) failed(new Error(event.message || "the worker could not be started"));
  waiting.clear();
};

const call = (what, given = {}, look = null) =>
  new Promise((done, failed) => {
    waiting.set(++next, { done, failed, look });
    worker.postMessage({ id: next, what, ...given });
  });

/** Who answers: name, modes, boards to try. */
export async function meet() {
  if ("serviceWorker" in navigator) navigator.serviceWorker.register("offline.js").catch(() => {}); // works without, but online
  const { modes, megabytes } = await call("load");
  const questions = await (await fetch("boards/questions.json")).json();
  const boards = questions.map((question, index) => ({
    name: `board ${index + 1}`, url: `boards/${index}.png`, question,
  }));
  return { name: "tiny", told: `in your browser, ${megabytes} MB; nothing leaves this page`, modes, boards, converses: false };
}

/** Asks about the first picture; tells each latent step as it happens, the answer when it is whole, and how it came about. */
export async function ask({ pictures, question, mode, most }, signal, say, look) {
  if (pictures.length > 1) throw new Error("this page asks about one picture; take one");
  const picture = pictures.length ? await (await fetch(pictures[0])).blob() : null;
  signal.throwIfAborted();
  const answer = await call("ask", { picture, question, options: { mode, maxLatentSteps: most } }, (step) => !signal.aborted && look(step));
  signal.throwIfAborted();
  say(answer.text);
  return {
    mode, latent_steps: answer.latentSteps, spoken_tokens: answer.spokenTokens, regions: answer.regions,
    timings: { total: answer.milliseconds / 1000 },
  };
}

/** More ways to a picture than boards and files: signs drawn by hand. */
export function offer(row, take) {
  offerPad(row, { url: "boards/3.png", question: "Take 4 hops. Which room are you in? Start in room 7" }, take);
}
