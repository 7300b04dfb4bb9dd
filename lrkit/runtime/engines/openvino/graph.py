"""One graph of a bundle in OpenVINO: run and ended early, each failure in one sentence. Torch-free.

Place in the pipeline: engine.py compiles a graph -> `OvGraph` -> program_engine.py or programs/step_session.py.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lrkit.errors import BundleError
from lrkit.runtime.engines.common.stopping import current
from lrkit.runtime.engines.openvino.library import load_library, said


@dataclass(frozen=True)
class Port:
    """An input or output, with the attributes of onnxruntime's."""

    name: str
    type: str
    """As numpy names it."""
    shape: tuple[int | str, ...]
    """Free axes are "?"."""


_TYPES = {"i64": "int64", "f32": "float32", "f16": "float16", "u8": "uint8", "boolean": "bool"}


def port(found: Any, name: str | None = None) -> Port:
    """What OpenVINO says of an input or output of a model."""
    kind: str = found.element_type.get_type_name()
    shape = found.partial_shape
    sizes: list[int | str] = ["?"]
    if not shape.rank.is_dynamic:
        sizes = ["?" if size.is_dynamic else size.get_length() for size in shape]
    return Port(name or str(found.any_name), _TYPES.get(kind, kind), tuple(sizes))


class OvGraph:
    """A compiled graph. May be run by several threads at once: each run takes an idle request, or makes one."""

    def __init__(self, compiled: Any, path: Path, inputs: Sequence[str]) -> None:
        self.compiled = compiled
        self._path, self._inputs = path, inputs
        self._idle: list[Any] = []
        self._lock = threading.Lock()
        self._tensor = load_library().Tensor

    def run(self, output_names: Sequence[str], input_feed: Mapping[str, Any], /) -> list[Any]:
        """The outputs of those names, in that order. What ends the thread's `Running` ends it.

        Raises:
            BundleError: the program fails on these inputs.
            TimeoutExceeded, Cancelled: it was ended.
        """
        running = current()
        while True:
            request = self._take()
            running.ends_by(request.cancel)
            try:
                feed = {name: np.asarray(input_feed[name], order="C") for name in self._inputs}
                for name, array in feed.items():
                    request.set_tensor(name, self._tensor(array, shared_memory=array.size > 0))
                request.infer()
                # Copied, as the next run writes where they lie.
                found = [np.array(request.get_tensor(name).data) for name in output_names]
            except Exception as error:  # OpenVINO raises RuntimeError, and its binding others
                running.check()
                if running.was_interrupted():
                    continue
                raise BundleError(
                    f"{self._path}: OpenVINO cannot run it ({said(error)}); copy the bundle again, or ask for less"
                ) from error
            with self._lock:
                self._idle.append(request)
            return found

    def _take(self) -> Any:
        with self._lock:
            return self._idle.pop() if self._idle else self.compiled.create_infer_request()
