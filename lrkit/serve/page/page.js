// A page that asks a model and shows what each latent step looked at again. Which model is model.js: that of the server
// that the page came from (lrkit/serve/page), or one that runs in the browser itself (examples/browser).

import * as asked from "./model.js";

const NAMES = { latent: "behind latent steps", cot: "in words", direct: "at once" };
const STEP_MS = 700;
const at = (id) => document.getElementById(id);
const still = matchMedia("(prefers-reduced-motion: reduce)");

let model = null;
let pictures = []; // data URLs
let turns = []; // [question, answer] of the conversation about them
let running = null; // AbortController
let showing = 0; // the timer of the steps that are shown one after the other

async function meet() {
  model = await asked.meet(at("key").value);
  at("name").textContent = model.name;
  at("state").textContent = model.told;
  at("mode").replaceChildren(...model.modes.map((mode) => new Option(NAMES[mode], mode)));
  at("compare-label").hidden = !model.modes.includes("cot");
  at("boards").hidden = !model.boards.length;
  at("boards").replaceChildren(...model.boards.map(boardButton));
  asked.offer?.(at("boards"), takeWith);
  fit();
}

// A picture that the model knows how to read, with a question.
function boardButton({ name, url, question }) {
  const button = document.createElement("button");
  const image = Object.assign(new Image(), { src: url, alt: "" });
  button.type = "button";
  button.className = "board";
  button.append(image, name);
  button.onclick = async () => {
    const found = await fetch(url);
    await takeWith(new File([await found.blob()], name, { type: "image/png" }), question);
  };
  return button;
}

async function takeWith(file, question) {
  await take([file]);
  at("question").value = question;
}

function cannotMeet(error) {
  at("state").textContent = error.message;
  if (error.needsKey) at("key-label").hidden = false;
}

function fit() {
  at("most-label").hidden = at("mode").value !== "latent";
  at("compare").disabled = at("mode").value === "cot";
}

// Pictures

const asUrl = (file) =>
  new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(new Error(`${file.name} cannot be read`));
    reader.readAsDataURL(file);
  });

async function take(files) {
  const chosen = [...files].filter((file) => file.type.startsWith("image/"));
  if (!chosen.length) return;
  pictures = await Promise.all(chosen.map(asUrl));
  forget();
  at("pictures").replaceChildren(
    ...pictures.map((url, index) => {
      const box = document.createElement("div");
      const image = new Image();
      box.className = "picture";
      image.alt = chosen[index].name;
      image.onload = () => box.classList.toggle("small", image.naturalWidth < 300);
      image.src = url;
      box.append(image);
      return box;
    }),
  );
  at("choose").hidden = true;
  at("clear").hidden = false;
  at("question").focus();
}

function forget() {
  stopShowing();
  turns = [];
  at("goes-on").checked = false;
  at("goes-on-label").hidden = true;
  at("answers").replaceChildren();
}

function clear() {
  forget();
  pictures = [];
  at("pictures").replaceChildren();
  at("files").value = "";
  at("choose").hidden = false;
  at("clear").hidden = true;
}

// Answers

async function answer(question, mode, list) {
  const item = list.appendChild(document.createElement("div"));
  const said = item.appendChild(document.createElement("p"));
  const facts = item.appendChild(document.createElement("p"));
  said.className = "said";
  facts.className = "facts";
  facts.textContent = `${NAMES[mode]}: thinking`;
  const most = mode === "latent" && at("most").value !== "" ? Number(at("most").value) : undefined;
  const earlier = at("goes-on").checked ? turns : []; // off: few models have learned what "here" means in a second question
  try {
    let steps = 0;
    const say = (text) => (said.textContent += text);
    const look = (regions) => {
      facts.textContent = `${NAMES[mode]}: step ${++steps}`;
      mark(regions);
    };
    const told = await asked.ask({ pictures, earlier, question, mode, most }, running.signal, say, look);
    tell(told, facts, item);
    return said.textContent;
  } catch (error) {
    facts.textContent = error.name === "AbortError" ? "stopped" : error.message;
    facts.classList.add("failed");
    return null;
  }
}

function tell(own, facts, item) {
  const counts = [[own.latent_steps, "latent step"], [own.spoken_tokens, "generated token"]];
  const shown = counts.filter(([n]) => n > 0).map(([n, what]) => `${n} ${what}${n === 1 ? "" : "s"}`);
  const milliseconds = (1000 * own.timings.total).toFixed(own.timings.total < 0.1 ? 1 : 0);
  facts.textContent = `${NAMES[own.mode]}: ${[...shown, `${milliseconds} ms`].join(", ")}`;
  if (own.regions?.some((step) => step.length)) item.append(stepButtons(own.regions));
}

// What each latent step looked at again

function stepButtons(steps) {
  const row = document.createElement("div");
  row.className = "row";
  row.setAttribute("role", "group");
  row.setAttribute("aria-label", "What each latent step looked at again");
  const buttons = steps.map((regions, index) => {
    const button = row.appendChild(document.createElement("button"));
    button.type = "button";
    button.textContent = `step ${index + 1}`;
    button.onclick = () => {
      stopShowing();
      show(buttons, index, regions);
    };
    return button;
  });
  stopShowing();
  show(buttons, 0, steps[0]);
  let next = 1;
  if (!still.matches && steps.length > 1) {
    showing = setInterval(() => {
      show(buttons, next, steps[next]);
      if (++next === steps.length) stopShowing();
    }, STEP_MS);
  }
  return row;
}

function stopShowing() {
  clearInterval(showing);
}

function show(buttons, index, regions) {
  document.querySelectorAll("#answers [aria-pressed]").forEach((one) => one.setAttribute("aria-pressed", "false"));
  buttons.forEach((one, i) => one.setAttribute("aria-pressed", String(i === index)));
  mark(regions);
}

function mark(regions) {
  document.querySelectorAll(".region").forEach((one) => one.remove());
  const boxes = at("pictures").children;
  for (const { image, box: [left, top, right, bottom], weight } of regions) {
    const picture = boxes[image]?.firstChild;
    if (!picture?.naturalWidth) continue;
    const frame = document.createElement("div");
    const part = (value, whole) => `${(100 * value) / whole}%`;
    frame.className = "region";
    frame.title = `${Math.round(100 * weight)}% of the step's attention to what it looked at again`;
    frame.style.left = part(left, picture.naturalWidth);
    frame.style.top = part(top, picture.naturalHeight);
    frame.style.width = part(right - left, picture.naturalWidth);
    frame.style.height = part(bottom - top, picture.naturalHeight);
    boxes[image].append(frame);
  }
}

async function ask(event) {
  event.preventDefault();
  const question = at("question").value.trim();
  if (!question || running) return;
  stopShowing();
  running = new AbortController();
  at("ask").disabled = true;
  at("stop").hidden = false;
  const item = at("answers").appendChild(document.createElement("li"));
  const asked = item.appendChild(document.createElement("p"));
  asked.className = "asked";
  asked.textContent = question;
  try {
    if (model === null) await meet();
    const mode = at("mode").value;
    const said = await answer(question, mode, item);
    if (at("compare").checked && mode !== "cot" && said !== null) await answer(question, "cot", item);
    if (said !== null) {
      turns = [...(at("goes-on").checked ? turns : []), [question, said]];
      at("goes-on-label").hidden = !model.converses;
      at("question").value = "";
    }
  } catch (error) {
    asked.after(Object.assign(document.createElement("p"), { className: "failed", textContent: error.message }));
  } finally {
    running = null;
    at("ask").disabled = false;
    at("stop").hidden = true;
    at("question").focus();
  }
}

at("files").onchange = (event) => take(event.target.files);
at("clear").onclick = clear;
at("stop").onclick = () => running?.abort();
at("form").onsubmit = ask;
at("mode").onchange = fit;
at("key").onchange = () => meet().catch(cannotMeet);
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.body.addEventListener(kind, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") take(event.dataTransfer.files);
  });
}
meet().catch(cannotMeet);
