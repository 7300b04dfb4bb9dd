// The page at / of `lrkit serve`: asks the server that it came from, and shows what each latent step looked at again.
// It speaks /v1/models and /v1/chat/completions as any client does. Nothing is fetched from elsewhere.

const NAMES = { latent: "behind latent steps", cot: "in words", direct: "at once" };
const STEP_MS = 700;
const at = (id) => document.getElementById(id);
const still = matchMedia("(prefers-reduced-motion: reduce)");

let model = null;
let pictures = []; // data URLs
let turns = []; // [question, answer] of the conversation about them
let running = null; // AbortController
let showing = 0; // the timer of the steps that are shown one after the other

const headers = () => {
  const key = at("key").value;
  return { "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) };
};

const failure = async (response) => {
  const body = await response.json().catch(() => null);
  if (response.status === 401) at("key-label").hidden = false;
  return new Error(body?.error?.message ?? `the server answered ${response.status}`);
};

async function meet() {
  const response = await fetch("v1/models", { headers: headers() });
  if (!response.ok) throw await failure(response);
  model = (await response.json()).data[0];
  const { modes, version } = model.lrkit;
  at("name").textContent = model.id;
  at("state").textContent = `lrkit ${version}`;
  at("mode").replaceChildren(...modes.map((mode) => new Option(NAMES[mode], mode)));
  at("compare-label").hidden = !modes.includes("cot");
  fit();
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
  at("drop").hidden = true;
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
  at("drop").hidden = false;
  at("clear").hidden = true;
}

// Answers

function messages(question) {
  const content = pictures.map((url) => ({ type: "image_url", image_url: { url } }));
  const earlier = at("goes-on").checked ? turns : []; // off: few models have learned what "here" means in a second question
  const asked = [...earlier.flatMap(([q, a]) => [["user", q], ["assistant", a]]), ["user", question]];
  return asked.map(([role, text], index) =>
    index === 0 ? { role, content: [...content, { type: "text", text }] } : { role, content: text },
  );
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let left = ""; ; ) {
    const { value, done } = await reader.read();
    if (done) return;
    const pieces = (left + value).split("\n\n");
    left = pieces.pop();
    for (const piece of pieces) if (piece !== "data: [DONE]") yield JSON.parse(piece.slice("data: ".length));
  }
}

async function answer(question, mode, list) {
  const item = list.appendChild(document.createElement("div"));
  const said = item.appendChild(document.createElement("p"));
  const facts = item.appendChild(document.createElement("p"));
  said.className = "said";
  facts.className = "facts";
  facts.textContent = `${NAMES[mode]}: thinking`;
  const most = at("most").value;
  const own = { mode, trace: true, ...(mode === "latent" && most !== "" && { max_latent_steps: Number(most) }) };
  try {
    const response = await fetch("v1/chat/completions", {
      method: "POST", headers: headers(), signal: running.signal,
      body: JSON.stringify({ model: model.id, messages: messages(question), stream: true, lrkit: own }),
    });
    if (!response.ok) throw await failure(response);
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      const { content, lrkit } = event.choices[0]?.delta ?? {};
      if (content) said.textContent += content;
      if (lrkit) tell(lrkit, facts, item);
    }
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
  document.querySelectorAll(".region").forEach((one) => one.remove());
  buttons.forEach((one, i) => one.setAttribute("aria-pressed", String(i === index)));
  const boxes = at("pictures").children;
  for (const { image, box: [left, top, right, bottom], weight } of regions) {
    const picture = boxes[image]?.firstChild;
    if (!picture?.naturalWidth) continue;
    const mark = document.createElement("div");
    const part = (value, whole) => `${(100 * value) / whole}%`;
    mark.className = "region";
    mark.title = `${Math.round(100 * weight)}% of the step's attention to what it looked at again`;
    mark.style.left = part(left, picture.naturalWidth);
    mark.style.top = part(top, picture.naturalHeight);
    mark.style.width = part(right - left, picture.naturalWidth);
    mark.style.height = part(bottom - top, picture.naturalHeight);
    boxes[image].append(mark);
  }
}

async function ask(event) {
  event.preventDefault();
  const question = at("question").value.trim();
  if (!question || running) return;
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
      at("goes-on-label").hidden = false;
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
at("key").onchange = () => meet().catch((error) => (at("state").textContent = error.message));
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.body.addEventListener(kind, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") take(event.dataTransfer.files);
  });
}
meet().catch((error) => (at("state").textContent = error.message));
