// Reads what `lrkit export` wrote. A file is held against its SHA-256 when it is read, as in Python. A browser has that
// function on https and localhost alone; elsewhere a page trusts what it was served, as it trusts this very code.

const SCHEMA = 3;
const text = new TextDecoder();

/**
 * Opens a bundle.
 * @param {(name: string) => Promise<Uint8Array>} fetchFile gives the bytes of a file of the bundle by its name.
 * @returns manifest, prompt, image, tokenizer (the JSON of these files), and `read`, which gives checked bytes.
 * @throws Error where it is no such bundle, or a file was altered.
 */
export async function openBundle(fetchFile) {
  const json = (bytes) => JSON.parse(text.decode(bytes));
  const manifest = json(await fetchFile("bundle.json"));
  if (manifest.schema_version !== SCHEMA) {
    throw new Error(`the bundle has schema ${manifest.schema_version}; lrkit-js reads ${SCHEMA}`);
  }
  if (manifest.family !== "qwen2_vl") {
    throw new Error(`the bundle is of the family ${manifest.family}; lrkit-js cuts pictures as qwen2_vl does`);
  }
  const read = async (name) => {
    const bytes = await fetchFile(name);
    const wanted = manifest.files[name]?.sha256;
    if (wanted === undefined) throw new Error(`${name} is not listed in bundle.json`);
    if (globalThis.crypto?.subtle && (await sha256(bytes)) !== wanted) {
      throw new Error(`${name} was altered; copy the bundle again`);
    }
    return bytes;
  };
  const [prompt, image, tokenizer] = await Promise.all(
    ["prompt.json", "preprocessor_config.json", "tokenizer.json"].map(async (name) => json(await read(name))),
  );
  return { manifest, prompt, image, tokenizer, read };
}

async function sha256(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
