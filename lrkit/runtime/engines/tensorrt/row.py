"""The rows of NVIDIA's two packages in the table of engines. Torch-free.

Place in the pipeline: lrkit/runtime/engines/table.py -> `RTX`, `STANDARD` -> engine.py.
"""

from pathlib import Path

from lrkit.contract.bundle.manifest import EngineKind
from lrkit.gpus import Gpus
from lrkit.runtime.engines.common.row import EngineRow, EngineState
from lrkit.runtime.engines.tensorrt.engine import TensorRtEngine, TensorRtOptions
from lrkit.runtime.engines.tensorrt.library import installed_version


def _row(kind: EngineKind) -> EngineRow:
    def opened(path: Path | str, options: TensorRtOptions, verify: bool) -> TensorRtEngine:
        return TensorRtEngine.from_bundle(path, kind, options, verify)

    return EngineRow(kind, TensorRtOptions, opened, lambda gpus: _state(kind, gpus))


def _state(kind: EngineKind, gpus: Gpus) -> EngineState:
    version, extra = installed_version(kind), f'pip install "lrkit[{kind}]"'
    if not gpus.found:
        can = ", but builds engines for other machines" if version else ""
        return EngineState(kind, False, version, f"no NVIDIA GPU here{can}", None if version else extra)
    names = ", ".join(f"{gpu.name} ({gpu.arch})" for gpu in gpus.found)
    if version is None:
        return EngineState(kind, False, None, f"not installed; would run on {names}", extra)
    return EngineState(kind, True, version, names, None)


RTX, STANDARD = _row("tensorrt-rtx"), _row("tensorrt")
