"""Tiny byte-level tokenizers with a family's real number of entries, special tokens and ids.

A few hundred merges are learnt from a text; the other entries of the vocabulary are fillers that no text is split into.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2 and its successors split text before the merges."""
_TEXT = """You are a helpful assistant. Describe this image. What is shown in the picture? How many squares are there?
There are four red squares and two blue circles. The larger one is to the left of the green one. Answer: yes
system user assistant. Let us think about it step by step. First count the shapes, then add the numbers.
请描述这张图片。
The total is the sum of all values in the table. Which row has the highest price? La réponse est: où est le chat?"""


@dataclass(frozen=True)
class Added:
    """A token beside the merges."""

    content: str
    special: bool = True


@dataclass(frozen=True)
class Vocabulary:
    """A byte-level vocabulary: added tokens first or last, fillers in between."""

    entries: int
    """Entries that are no added tokens; ids 0 to entries - 1, or behind those `in_front`."""
    added: tuple[Added, ...]
    """In the order of their ids, from `entries` on (where `in_front` have been counted)."""
    in_front: tuple[Added, ...] = ()
    """Added tokens with the ids 0, 1, ..."""
    split: str = QWEN_SPLIT

    @property
    def ids(self) -> dict[str, int]:
        """Ids of all added tokens."""
        start = len(self.in_front) + self.entries
        front = {token.content: index for index, token in enumerate(self.in_front)}
        return front | {token.content: start + index for index, token in enumerate(self.added)}


def write_tokenizer_files(folder: Path, vocabulary: Vocabulary, config: dict[str, Any]) -> None:
    """tokenizer.json, and tokenizer_config.json of `config` with the list of added tokens."""
    (folder / "tokenizer.json").write_text(tokenizer_json(vocabulary), encoding="utf-8")
    special = {token.content: token.special for token in (*vocabulary.in_front, *vocabulary.added)}
    added = {
        str(index): {
            "content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
            "special": special[content],
        }
        for content, index in vocabulary.ids.items()
    }  # fmt: skip
    text = json.dumps({"added_tokens_decoder": added, **config}, indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


@cache
def tokenizer_json(vocabulary: Vocabulary) -> str:
    """The text of tokenizer.json."""
    first = len(vocabulary.in_front)
    learnt = _learnt(vocabulary.split)
    entries = {token.content: index for index, token in enumerate(vocabulary.in_front)}
    entries |= {token: first + index for token, index in learnt["vocab"].items()}
    for index in range(len(entries), first + vocabulary.entries):
        entries[f"filler{index}"] = index
    merges = [(left, right) for left, right in learnt["merges"]]
    tokenizer = _byte_level(models.BPE(entries, merges, byte_fallback=False, fuse_unk=False), vocabulary.split)
    for token in (*vocabulary.in_front, *vocabulary.added):
        made = AddedToken(token.content, normalized=False, special=token.special)
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([made])
    found = {content: tokenizer.token_to_id(content) for content in vocabulary.ids}
    assert found == vocabulary.ids, "the fillers do not add up"
    return tokenizer.to_str()


@cache
def _learnt(split: str) -> dict[str, Any]:
    tokenizer = _byte_level(models.BPE(), split)
    trainer = trainers.BpeTrainer(
        vocab_size=900, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([_TEXT] * 2, trainer)
    return json.loads(tokenizer.to_str())["model"]


def _byte_level(model: models.Model, split: str) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(split), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def special(names: Sequence[str]) -> tuple[Added, ...]:
    """Special tokens of these names."""
    return tuple(Added(name) for name in names)
