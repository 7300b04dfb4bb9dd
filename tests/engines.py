"""Builds TensorRT engines of programs with NVIDIA's real builder, which needs no GPU, for tests."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from lrkit.contract.bundle.io_spec import IoSpec
from lrkit.contract.bundle.manifest import Limits
from lrkit.export.graph.saving import save_models
from lrkit.export.tensorrt.jobs import Profile, axis_sizes, profile_of
from lrkit.export.tensorrt.process import build_in_process
from lrkit.runtime.engines.tensorrt.library import installed_version

PACKAGE = "tensorrt_rtx"
needs_builder = pytest.mark.skipif(
    installed_version("tensorrt-rtx") is None, reason='needs tensorrt_rtx: pip install "lrkit[tensorrt-rtx]"'
)


@dataclass(frozen=True)
class BuiltEngine:
    """An engine on disk."""

    path: Path
    entry: dict[str, Any]
    """As device/build_engine.py reports it."""

    @property
    def num_bytes(self) -> int:
        return self.path.stat().st_size


def profile_for(spec: IoSpec, answer: IoSpec, limits: Limits, merge: int) -> Profile:
    usual = limits.max_prompt_tokens // 2, limits.max_patches // 2
    return profile_of(spec, axis_sizes(limits, merge**2, answer, *usual))


def build_engine(model: ir.Model, folder: Path, profile: Profile, archs: tuple[str, ...] = ("sm89",), **options: Any):
    """Saves a model with its weights beside it, and builds its engine for `archs` in a process of its own.

    Raises:
        ExportError: the parser or the builder refused.
    """
    save_models({"model.onnx": model}, folder, "model.onnx.data")
    job = {"graph": "program", "onnx": "model.onnx", "engine": "model.engine", "profile": profile}
    request = {"packages": [PACKAGE], "archs": archs, "options": options, "folder": str(folder), "jobs": [job]}
    return BuiltEngine(folder / "model.engine", build_in_process(request, lambda sign: None))
