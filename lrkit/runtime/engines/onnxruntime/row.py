"""The row of ONNX Runtime in the table of engines. Torch-free.

Place in the pipeline: lrkit/runtime/engines/table.py -> `ROW` -> engine.py.
"""

from pathlib import Path

from pydantic import Field

from lrkit.config import Config
from lrkit.gpus import Gpus
from lrkit.provenance import installed_version
from lrkit.runtime.engines.common.row import EngineRow, EngineState
from lrkit.runtime.engines.onnxruntime.engine import OrtEngine

NAME = "onnxruntime"


class OrtOptions(Config):
    """How programs are run."""

    provider: str = "cpu"
    """cpu, cuda, cuda:1, tensorrt, ...; see providers.py."""
    threads: int | None = Field(default=None, ge=1)
    """Of one operator; None: as many as the process may use (lrkit/cores.py), which then do not spin."""
    session_config: dict[str, str] = {}
    """ONNX Runtime's own session entries."""
    provider_options: dict[str, str] = {}
    """The provider's own options; a bundle may give a few of them, the caller any."""


def _open(path: Path | str, options: OrtOptions, verify: bool) -> OrtEngine:
    given = options.provider, options.threads, verify, options.session_config, options.provider_options
    return OrtEngine.from_bundle(path, *given)


def _state(gpus: Gpus) -> EngineState:
    from lrkit.environment import onnxruntime_providers  # brings packaging and tomllib, which no answer needs

    version = installed_version("onnxruntime") or installed_version("onnxruntime-gpu")
    providers = onnxruntime_providers()
    if not providers:
        return EngineState(NAME, False, version, "cannot be imported", "pip install --upgrade lrkit")
    names = ", ".join(name.removesuffix("ExecutionProvider").lower() for name in providers)
    missing = gpus.found and "CUDAExecutionProvider" not in providers
    return EngineState(NAME, True, version, names, 'pip install "lrkit[gpu]"' if missing else None)


ROW = EngineRow(NAME, OrtOptions, _open, _state)
