"""What an export is for: precision, int4 blocks, dialect, limits. Values only; `export/targets/*.yaml` are such
configs.

Place in the pipeline: `lrkit export --target NAME` -> `Target` -> dialect.py (how nodes are written), bundle.py
(limits).
"""

from typing import Literal

from pydantic import Field

from lrkit.config import Config
from lrkit.runtime.manifest import Dialect, Limits, Precision


class Int4(Config):
    """Four-bit weights: symmetric, rounded to nearest, one scale per block along the input."""

    block: Literal[32, 64, 128] = 128
    """Weights per scale; a width that it does not divide falls back to 64 or 32."""
    accuracy_level: Literal[0, 1, 4] = 4
    """ort dialect: 0 or 1 computes in float32, 4 with activations rounded to int8 (faster)."""
    head: Literal["float", "int8", "int4"] = "int4"
    """Language head. A head of its own type is stored beside the embedding, which it shares otherwise."""
    embedding: Literal["float", "int8"] = "int8"
    """Token embedding: one scale per row."""
    vision: Literal["float", "int4"] = "float"
    """Matrices of the vision tower."""


class ProgramLimits(Config):
    """Capacities compiled into the graph, and the largest inputs a host may give."""

    max_prompt_tokens: int = Field(default=1024, ge=8)
    """Prompt tokens, visual ones included."""
    max_patches: int = Field(default=4096, ge=1)
    """Patches of all pictures of one prompt."""
    max_images: int = Field(default=4, ge=1)
    """Pictures of one prompt."""
    max_latent_steps: int | None = Field(default=None, ge=0)
    """Latent steps of one answer; null: what the checkpoint allows."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Spoken tokens of one answer."""


class Target(Config):
    """One kind of device."""

    description: str = ""
    """One sentence, shown by `lrkit ls`."""
    dialect: Dialect = "ort"
    """ort: ONNX Runtime's own fused and int4 operators; tensorrt: standard operators only."""
    precision: Precision = "fp32"
    """Weights; fp16 also computes in fp16, int4 computes in fp32 (ort on a CPU) unless `activations` says fp16."""
    activations: Literal["fp32", "fp16"] | None = None
    """What the graph computes in; null: fp16 for precision fp16, fp32 otherwise."""
    int4: Int4 = Int4()
    """Read where precision is int4."""
    limits: ProgramLimits = ProgramLimits()
    """Capacities."""
    provider: str = "cpu"
    """Where ONNX Runtime is meant to run it: cpu, cuda, ..."""

    @property
    def computes_fp16(self) -> bool:
        """Whether activations are fp16."""
        return (self.activations or ("fp16" if self.precision == "fp16" else "fp32")) == "fp16"


def limits_of(target: Target, latent_steps: int) -> Limits:
    """The limits of a bundle for a checkpoint that takes up to `latent_steps`."""
    given = target.limits.max_latent_steps
    return Limits(
        max_prompt_tokens=target.limits.max_prompt_tokens,
        max_patches=target.limits.max_patches,
        max_images=target.limits.max_images,
        max_latent_steps=latent_steps if given is None else given,
        max_new_tokens=target.limits.max_new_tokens,
    )
