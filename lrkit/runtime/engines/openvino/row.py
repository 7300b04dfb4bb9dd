"""The row of OpenVINO in the table of engines. Torch-free.

Place in the pipeline: lrkit/runtime/engines/table.py -> `ROW` -> engine.py.
"""

from pathlib import Path

from lrkit.errors import LrkitError
from lrkit.gpus import Gpus
from lrkit.runtime.engines.common.row import EngineRow, EngineState
from lrkit.runtime.engines.openvino.engine import OpenVinoEngine
from lrkit.runtime.engines.openvino.library import EXTRA, full_name, here, installed_version
from lrkit.runtime.engines.openvino.options import OpenVinoOptions

NAME = "openvino"


def _open(path: Path | str, options: OpenVinoOptions, verify: bool) -> OpenVinoEngine:
    return OpenVinoEngine.from_bundle(path, options, verify)


def _state(gpus: Gpus) -> EngineState:
    version, command = installed_version(), f'pip install "lrkit[{EXTRA}]"'
    if version is None:
        return EngineState(NAME, False, None, "not installed", command)
    try:
        devices = here()
    except LrkitError as error:
        return EngineState(NAME, False, version, str(error), f"{command} --force-reinstall")
    names = ", ".join(f"{device} ({full_name(device)})" for device in devices)
    return EngineState(NAME, bool(devices), version, names or "it finds no device here", None)


ROW = EngineRow(NAME, OpenVinoOptions, _open, _state, lambda: installed_version() is not None)
