"""A word-level tokenizer for small vocabularies: that of the shipped model, and those of tests. Needs `tokenizers`
only.

Place in the pipeline: a data set's word list -> `build_word_tokenizer` -> `Processor.save` -> a checkpoint folder that
transformers' AutoTokenizer opens too. A word is one token. So is a run of punctuation, and so is a number of any
length.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from lrkit.errors import UserError

UNKNOWN = "<|unk|>"
LATENT = "<|latent|>"
SPECIAL_TOKENS = (
    "<|pad|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    LATENT,
    UNKNOWN,
)
"""In the order of their ids, from 0."""
ANSWER_MARKER = "Answer:"
"""One token (after the special ones), so that the mode `direct` forces one id."""


def build_word_tokenizer(
    words: Iterable[str],
    answer_marker: str = ANSWER_MARKER,
    markers: Sequence[str] = (),
    ids: Mapping[str, int] | None = None,
    rows: int | None = None,
) -> Tokenizer:
    """A tokenizer that knows `words` (in this order, repeats dropped), the special tokens and the answer marker,
    and after all those the `markers` that a family puts between image tokens (`Geometry.markers`), but for mere space,
    of which it makes no token.

    `ids` are special tokens that have an id already, those of a published model. All others get the first free ids. The
    latent token comes behind `ids`, where a model of so many `rows` has room for it.

    Decoding puts a space between words and none before . , ; : ! ? so that text comes back readable.

    Raises:
        ValueError: a word that the splitting rule takes apart, and which could therefore never be seen.
        UserError: more tokens than `rows`.
    """
    splitter = pre_tokenizers.Whitespace()
    known = dict.fromkeys(words)
    for word in known:
        if len(splitter.pre_tokenize_str(word)) != 1 or word != word.strip():
            raise ValueError(f"the word {word!r} is split by the tokenizer; give its parts")
    ids = {} if ids is None else ids
    special = list(dict.fromkeys([*SPECIAL_TOKENS, *ids, *filter(str.strip, markers)]))
    first = [name for name in special if name not in markers or name in SPECIAL_TOKENS]
    vocabulary = _numbered([*first, answer_marker, *known, *special], ids, rows)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = splitter  # pyright: ignore[reportAttributeAccessIssue]
    # The first decoder sets spaces between words; the others see one word each and take it off before punctuation.
    closing = decoders.Replace(Regex(r"^ (?=[.,;:!?]+$)"), "")
    tokenizer.decoder = decoders.Sequence([decoders.WordPiece(prefix="##", cleanup=False), closing])  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(answer_marker, special=False, normalized=False)])
    return tokenizer


def _numbered(names: Iterable[str], ids: Mapping[str, int], rows: int | None) -> dict[str, int]:
    """An id for each name: its own in `ids`, or the first that is free."""
    names, given = list(dict.fromkeys(names)), dict(ids)
    behind = max(given.values(), default=-1) + 1
    if given and LATENT not in given and (rows is None or behind < rows):
        given[LATENT] = behind
    taken = set(given.values())
    free = (index for index in itertools.count() if index not in taken)
    numbered = {name: given[name] if name in given else next(free) for name in names}
    if rows is not None and (last := max(numbered.values())) >= rows:
        raise UserError(
            f"the model has a vocabulary of {rows}, and the words of its prompt take ids up to {last}; make it larger"
        )
    return numbered
