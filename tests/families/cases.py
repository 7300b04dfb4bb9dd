"""The protocol of a family's case, and the table of cases: a row here is all that the battery of tests needs.

A family's case is a `FamilyCase` called `CASE` in `tests/families/published_NAME.py`. It writes tiny checkpoints whose
files are laid out exactly as the family is published, and says what transformers has to compare them with. The tests of
this folder are run over all rows; none of them names a family.

What the writer of a case owes:
  - The model is made from the family's own config class of transformers, with random weights that are large enough for
    clear choices (see tests/published.py: 0.5 for embeddings, 0.12 to 0.2 for matrices), saved in the published type.
  - Files: safetensors (one variant in shards with an index), preprocessor_config.json or processor_config.json,
    chat_template.json or chat_template.jinja, generation_config.json with the published list of end tokens, tokenizer
    with the family's real special tokens and ids, the real number of rows in the embedding.
    tests/families/byte_level.py makes tokenizers of that kind.
  - It is small: 2 to 4 layers, width 32 to 64. The first variant costs least: the long tests (training, export) take
    it alone. Its pictures may be smaller than published where published ones would cost seconds; another variant then
    has the published numbers.
  - Texts of the battery (`QUESTION`, samples of `drawn_samples`) are split into tokens that the tokenizer knows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lrkit.families.protocols import Geometry

Write = Callable[[Path], Path]
"""Writes a checkpoint into a new folder and returns where it is."""
Part = Literal[
    "replay", "distill", "routing", "several_pictures", "smaller_pictures", "fp16", "int4", "tensorrt", "step_form"
]
"""What a family may be unable to do. replay, distill, routing: parts of the method; several_pictures: of one prompt;
smaller_pictures: max_pixels and limits of a bundle that shrink a picture; the others: ways to export."""


@dataclass(frozen=True, eq=False)
class Peer:
    """What transformers has of a family."""

    model: str
    """Class of the model, an attribute of transformers."""
    processor: str
    """Class of the processor, an attribute of transformers. It is opened with the Pillow image processor and without
    a video processor (tests/families/peer.py)."""
    patches: Callable[[Mapping[str, Any], Geometry], np.ndarray] = lambda made, geometry: made["pixel_values"]
    """What the image processor made, as float32 (patches, values) in the order of `Geometry.cut`."""
    modes: tuple[str, ...] = ("L", "LA", "P", "RGBA", "1", "CMYK", "YCbCr")
    """Pillow's modes that the image processor reads as lrkit does; lrkit's own rules for the others have own tests."""


@dataclass(frozen=True, eq=False)
class FamilyCase:
    """One family, as the battery tests it."""

    name: str
    """Its model_type: the row in lrkit/families/table.py."""
    variants: Mapping[str, Write]
    """Published layouts by name, such as older and newer files; the first is the cheap one."""
    peer: Peer | None
    """None: the family is not in transformers, and there is nothing to compare with."""
    geometries: Mapping[str, Geometry] = field(default_factory=dict[str, Geometry])
    """Further cuts that the laws of geometry are tried on, beside those of the variants."""
    sizes: tuple[tuple[int, int], ...] = ()
    """Further sizes of pictures (width, height), such as those around the published limits."""
    refused: tuple[tuple[int, int], ...] = ((1, 5000),)
    """Sizes that `Geometry.check_size` refuses, as the image processor of transformers does."""
    cannot: Mapping[Part, str] = field(default_factory=dict[Part, str])
    """What has no meaning for the family -> a regular expression of the sentence that the user gets."""
    views: int = 1
    """How often a picture's tokens may cover it, where it is also shown whole beside its parts."""
    crops: bool = False
    """Whether the tower may see only a part of a picture."""
    exact: bool = True
    """Whether a position's numbers on torch are transformers' bit for bit; False only with the reason beside it."""
    training: tuple[str, ...] = ()
    """Settings of the training recipe that the family needs otherwise, as `batch_size=2`."""
    question: str = "How many squares are there?"
    steps: tuple[str, ...] = ("The red one is a square.", "The larger one is to the left.")
    answer: str = "2"
    """What is asked and said where the vocabulary is too small for the usual words."""


ROWS = {
    "chameleon": "tests.families.published_chameleon",
    "qwen2_vl": "tests.families.published_qwen2_vl",
    "qwen2_5_vl": "tests.families.published_qwen2_5_vl",
    "qwen3_vl": "tests.families.published_qwen3_vl",
    "idefics3": "tests.families.published_idefics3",
    "smolvlm": "tests.families.published_smolvlm",
}
"""Family -> module of its `CASE`."""
NOT_PUBLISHED = {
    "rowwise": "tests.families.published_rowwise",
}
"""The same of families that nobody publishes: without a `Peer`, so only the laws and invariants are theirs."""


@cache
def case_of(name: str) -> FamilyCase:
    """The case of a row."""
    module = {**ROWS, **NOT_PUBLISHED}[name]
    case: FamilyCase = import_module(module).CASE
    assert case.name == name, f"{module} is of {case.name}"
    assert (case.peer is not None) is (name in ROWS), "what is published is in transformers"
    return case


def peer_of(case: FamilyCase) -> Peer:
    """The peer of a row of `ROWS`."""
    assert case.peer is not None
    return case.peer
