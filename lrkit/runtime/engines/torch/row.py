"""The row of torch in the table of engines: it runs checkpoints. Imports torch only to open one.

Place in the pipeline: lrkit/runtime/engines/table.py -> `ROW` -> engine.py.
"""

from pathlib import Path
from typing import Any

from lrkit.checkpoints.checkpoint_folder import download_bases
from lrkit.config import Config
from lrkit.contract.attention import Attention, AttentionChoice
from lrkit.errors import require
from lrkit.gpus import Gpus
from lrkit.provenance import installed_version
from lrkit.runtime.engines.common.row import EngineRow, EngineState

NAME = "torch"


class TorchOptions(Config):
    """How a checkpoint is run."""

    device: str = "cpu"
    """cpu, cuda or cuda:0."""
    dtype: str | None = None
    """float32, bfloat16 or float16; None or auto: as trained."""
    attention: AttentionChoice = Attention()
    """Kernels of attention: sdpa, flash_attention_2, flash_attention_3 or flash_attention_4, one name or {vision: NAME,
    text: NAME}."""
    cuda_graphs: bool = False
    """Record steps on a GPU and launch each as one."""
    allow_download: bool = False
    """Fetch a backbone that is named by a hub id."""


def _open(folder: Path | str, options: TorchOptions, verify: bool) -> Any:
    for package in ("torch", "transformers", "peft"):
        require(package, "train")
    from lrkit.runtime.engines.torch.engine import TorchEngine

    if options.allow_download:
        download_bases(Path(folder))
    given = options.device, options.dtype, options.cuda_graphs, options.attention
    return TorchEngine.from_checkpoint(Path(folder), *given)


def _state(gpus: Gpus) -> EngineState:
    version = installed_version("torch")
    if version is None:
        return EngineState(NAME, False, None, "not installed", 'pip install "lrkit[train]"')
    if gpus.found and version.endswith("+cpu"):
        said = "cpu; the installed torch has no CUDA, so the GPU stays idle"
        return EngineState(NAME, True, version, said, "pip install --force-reinstall torch")
    return EngineState(NAME, True, version, "cpu, cuda" if gpus.found else "cpu", None)


ROW = EngineRow(NAME, TorchOptions, _open, _state, checkpoints=True)
