"""A word-level tokenizer for small vocabularies: that of the shipped model, and those of tests. Needs `tokenizers`
only.

Place in the pipeline: a data set's word list -> `build_word_tokenizer` -> `Processor.save` -> a checkpoint folder that
transformers' AutoTokenizer opens too. A word is one token. So is a run of punctuation, and so is a number of any
length.
"""

from collections.abc import Iterable, Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

UNKNOWN = "<|unk|>"
SPECIAL_TOKENS = (
    "<|pad|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|latent|>",
    UNKNOWN,
)
"""In the order of their ids, from 0."""
ANSWER_MARKER = "Answer:"
"""One token (after the special ones), so that the mode `direct` forces one id."""


def build_word_tokenizer(
    words: Iterable[str], answer_marker: str = ANSWER_MARKER, markers: Sequence[str] = ()
) -> Tokenizer:
    """A tokenizer that knows `words` (in this order, repeats dropped), the special tokens and the answer marker,
    and after all those the `markers` that a family puts between image tokens (`Geometry.markers`).

    Decoding puts a space between words and none before . , ; : ! ? so that text comes back readable.

    Raises:
        ValueError: a word that the splitting rule takes apart, and which could therefore never be seen.
    """
    splitter = pre_tokenizers.Whitespace()
    known = dict.fromkeys(words)
    for word in known:
        if len(splitter.pre_tokenize_str(word)) != 1 or word != word.strip():
            raise ValueError(f"the word {word!r} is split by the tokenizer; give its parts")
    fixed = (*SPECIAL_TOKENS, answer_marker)
    vocabulary = {word: index for index, word in enumerate((*fixed, *(word for word in known if word not in fixed)))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = splitter  # pyright: ignore[reportAttributeAccessIssue]
    # The first decoder sets spaces between words; the others see one word each and take it off before punctuation.
    closing = decoders.Replace(Regex(r"^ (?=[.,;:!?]+$)"), "")
    tokenizer.decoder = decoders.Sequence([decoders.WordPiece(prefix="##", cleanup=False), closing])  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in markers])
    tokenizer.add_tokens([AddedToken(answer_marker, special=False, normalized=False)])
    return tokenizer
