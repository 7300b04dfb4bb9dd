"""What a target says of engines beside ONNX Runtime: TensorRT engines to build, and how OpenVINO is to run programs.

Place in the pipeline: part of `Target` (target.py); export/tensorrt/ builds from it.
"""

import re
from typing import Any, Literal

from pydantic import Field, model_validator

from lrkit.config import Config
from lrkit.contract.bundle.manifest import EngineKind

MOST = 1 << 20
"""Largest capacity that may be asked for, in tokens, patches or MiB: far above what any model here was trained for."""


class EngineOptions(Config):
    """Options of TensorRT's builder; null leaves its default."""

    workspace_mb: int | None = Field(default=None, ge=1, le=MOST)
    """Most scratch memory of a layer, in MiB."""
    optimization_level: int | None = Field(default=None, ge=0, le=5)
    """How long to look for fast kernels."""
    tf32: bool | None = None
    """Whether float32 products may be rounded to 10 bits of mantissa; NVIDIA's default is yes."""
    layer_details: Literal["none", "layer_names_only", "detailed"] | None = None
    """What an engine can say about its layers when it is profiled."""
    weight_streaming: bool | None = None
    """Whether weights may stay in the host's memory and be streamed while it runs."""
    timing_cache: str | None = None
    """Standard TensorRT: file of kernel timings, read if it is there, and written."""
    hardware_compatibility: Literal["ampere_plus", "same_compute_capability"] | None = None
    """Standard TensorRT: other GPUs that the engine must run on too, at some cost in speed."""
    version_compatible: bool | None = None
    """Standard TensorRT: whether later releases of the same major can run it."""

    @property
    def given(self) -> dict[str, Any]:
        """Those that were asked for."""
        return self.model_dump(mode="json", exclude_none=True)


STANDARD_ONLY = ("timing_cache", "hardware_compatibility", "version_compatible")
"""Options that TensorRT-RTX has no use for: it picks kernels on the user's GPU."""


def is_arch(name: str) -> bool:
    """Whether it is the name of a compute capability, as sm89 or SM_89; part of an engine's file name."""
    return re.fullmatch(r"(?i)sm_?\d{2,3}", name) is not None


class EngineTarget(Config):
    """TensorRT engines to build from the programs, ahead of time."""

    kind: EngineKind
    """tensorrt-rtx builds on any machine for several GPUs; tensorrt builds on the device itself."""
    archs: tuple[str, ...] = ()
    """tensorrt-rtx: compute capabilities, as sm89; empty: all from sm80 that its builder knows."""
    options: EngineOptions = EngineOptions()
    """For the builder."""
    usual_prompt_tokens: int | None = Field(default=None, ge=1, le=MOST)
    """Prompt length that engines are tuned for; null: that of the bundle's recorded samples."""
    usual_patches: int | None = Field(default=None, ge=1, le=MOST)
    """Patches that engines are tuned for; null: those of the bundle's recorded samples."""

    @model_validator(mode="after")
    def _archs_are_compute_capabilities(self) -> "EngineTarget":
        if wrong := [arch for arch in self.archs if not is_arch(arch)]:
            raise ValueError(f"archs {wrong[0][:40]!r} is no compute capability; write it as sm89")
        return self

    @model_validator(mode="after")
    def _known_to_its_kind(self) -> "EngineTarget":
        if self.kind == "tensorrt" and self.archs:
            raise ValueError(
                f"archs {', '.join(self.archs)} are for tensorrt-rtx; tensorrt builds for the GPU of the machine it "
                "runs on, so leave them out"
            )
        asked = [name for name in STANDARD_ONLY if getattr(self.options, name) is not None]
        if self.kind == "tensorrt-rtx" and asked:
            raise ValueError(f"the options {', '.join(asked)} are for tensorrt, not for tensorrt-rtx; leave them out")
        return self


class OpenVinoTarget(Config):
    """How OpenVINO is to run the programs; they are compared with torch in that way."""

    precision: Literal["auto", "f32", "bf16", "f16"] = "auto"
    """Number type of its products of floats; auto: f32, as ONNX Runtime has on a CPU."""
    int8_activations: bool = False
    """Whether it may round activations to int8 where weights are integers, as int4.accuracy_level 4 does in the dialect
    ort: faster, and the answers are then OpenVINO's own."""
