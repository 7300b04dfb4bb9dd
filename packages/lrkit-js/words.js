// A tokenizer of whole words, which is what the embedded models have. For a subword tokenizer give
// Reasoner.load another object with the same three functions, made of a package that reads tokenizer.json.

/**
 * @param tokenizer the JSON of tokenizer.json.
 * @returns `encode` (text to ids), `decode` (ids to text, special tokens left out).
 * @throws Error where the tokenizer is another, or a word is unknown.
 */
export function wholeWords(tokenizer) {
  if (tokenizer.model.type !== "WordLevel") {
    throw new Error(`the tokenizer is ${tokenizer.model.type}, and lrkit-js looks up whole words; give a tokenizer of your own`);
  }
  const ids = new Map(Object.entries(tokenizer.model.vocab));
  for (const token of tokenizer.added_tokens) ids.set(token.content, token.id);
  const special = new Set(tokenizer.added_tokens.filter((token) => token.special).map((token) => token.id));
  const words = new Map([...ids].map(([word, id]) => [id, word]));
  const escaped = tokenizer.added_tokens.map(({ content }) => content.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  const added = `(?:${escaped.join("|")})`; // such a token is cut out wherever it stands, also behind punctuation
  const pattern = new RegExp(`${added}|(?:(?!${added})[\\p{L}\\p{N}_])+|(?:(?!${added})[^\\p{L}\\p{N}_\\s])+`, "gu");
  const idOf = (word) => {
    const id = ids.get(word);
    if (id === undefined) throw new Error(`the model does not know the word ${JSON.stringify(word)}; use its words`);
    return id;
  };
  return {
    encode: (text) => (text.match(pattern) ?? []).map(idOf),
    decode: (found) => {
      const spoken = found.filter((id) => words.has(id) && !special.has(id)).map((id) => words.get(id));
      return spoken.map((word) => (/^[.,;:!?]+$/.test(word) ? word : ` ${word}`)).join("").trim();
    },
  };
}
