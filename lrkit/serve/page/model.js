// The model of page.js behind the server that the page came from: /v1/models and /v1/chat/completions, as any client.

let key = "";
let name = null;

const headers = () => ({ "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) });

async function failure(response) {
  const body = await response.json().catch(() => null);
  const error = new Error(body?.error?.message ?? `the server answered ${response.status}`);
  return Object.assign(error, { needsKey: response.status === 401 });
}

/** Who answers: name, modes, whether it goes on with a conversation. `given` is the API key. */
export async function meet(given) {
  key = given;
  const response = await fetch("v1/models", { headers: headers() });
  if (!response.ok) throw await failure(response);
  const [model] = (await response.json()).data;
  name = model.id;
  return { name, told: `lrkit ${model.lrkit.version}`, modes: model.lrkit.modes, boards: [], converses: true };
}

/** Asks; says each piece of the answer, and returns how it came about. */
export async function ask({ pictures, earlier, question, mode, most }, signal, say) {
  const own = { mode, trace: true, ...(most !== undefined && { max_latent_steps: most }) };
  const response = await fetch("v1/chat/completions", {
    method: "POST", headers: headers(), signal,
    body: JSON.stringify({ model: name, messages: messages(pictures, earlier, question), stream: true, lrkit: own }),
  });
  if (!response.ok) throw await failure(response);
  let told = null;
  for await (const event of events(response)) {
    if (event.error) throw new Error(event.error.message);
    const { content, lrkit } = event.choices[0]?.delta ?? {};
    if (content) say(content);
    told = lrkit ?? told;
  }
  return told;
}

function messages(pictures, earlier, question) {
  const content = pictures.map((url) => ({ type: "image_url", image_url: { url } }));
  const said = [...earlier.flatMap(([q, a]) => [["user", q], ["assistant", a]]), ["user", question]];
  return said.map(([role, text], index) =>
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
