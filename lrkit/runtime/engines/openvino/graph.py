"""One graph of a bundle in OpenVINO: run and ended early, each failure in one sentence. Torch-free.

Place in the pipeline: engine.py compiles a graph -> `OvGraph` -> program_engine.py or programs/step_session.py.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lrkit.errors import BundleError
from lrkit.runtime.engines.common.stopping import Running, current
from lrkit.runtime.engines.openvino.brake import Brake
from lrkit.runtime.engines.openvino.library import load_library, said

_LOOK_SEC = 0.02  # how often a run that waits for its turn looks whether it is to end


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
    """A compiled graph. May be run by several threads at once, as many as OpenVINO has streams; others wait."""

    def __init__(self, compiled: Any, path: Path, inputs: Sequence[Port], outputs: Sequence[Port], brake: bool) -> None:
        """`brake`: the graph has one, as an input after `inputs`."""
        self.compiled = compiled
        self.get_inputs: Callable[[], Sequence[Port]] = lambda: inputs
        self.get_outputs: Callable[[], Sequence[Port]] = lambda: outputs
        self._path, self._inputs = path, [one.name for one in inputs]
        self._brake_place = len(compiled.inputs) - 1 if brake else None
        self._idle: list[tuple[Any, Brake]] = []
        self._streams = threading.Semaphore(max(1, int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))))
        self._tensor = load_library().Tensor

    def run(self, output_names: Sequence[str], input_feed: Mapping[str, Any], /) -> list[Any]:
        """The outputs of those names, in that order. What ends the thread's `Running` ends it: between two nodes, or
        two iterations of a loop.

        Raises:
            BundleError: the program fails on these inputs.
            TimeoutExceeded, Cancelled: it was ended.
        """
        running = current()
        while not self._streams.acquire(timeout=_LOOK_SEC):
            running.check()
        try:
            while True:
                found = self._run(output_names, input_feed, running)
                if found is not None:
                    return found
        finally:
            self._streams.release()

    def _run(self, names: Sequence[str], feed: Mapping[str, Any], running: Running) -> list[Any] | None:
        """None where a signal ended it whose handler did not raise: then it is to be repeated."""
        request, brake = self._take()
        # Shared with OpenVINO, not copied, so they must live as long as the run. It refuses one that is read-only, as
        # families keep what never changes: that is copied.
        given = {name: np.require(feed[name], requirements=["C", "A", "W"]) for name in self._inputs}
        with brake.released() as pull:
            running.ends_by(pull)
            try:
                for name, array in given.items():
                    request.set_tensor(name, self._tensor(array, shared_memory=array.size > 0))
                request.infer()
            except Exception as error:  # OpenVINO raises RuntimeError, and its binding others
                if brake.pulled:
                    return _ended(running)
                raise BundleError(
                    f"{self._path}: OpenVINO cannot run it ({said(error)}); copy the bundle again, or ask for less"
                ) from error
            if brake.pulled:
                return _ended(running)
            # Copied, as the next run writes where they lie.
            found = [np.array(request.get_tensor(name).data) for name in names]
        self._idle.append((request, brake))  # lists are thread-safe
        return found

    def _take(self) -> tuple[Any, Brake]:
        try:
            return self._idle.pop()
        except IndexError:
            request = self.compiled.create_infer_request()
            return request, Brake(request, self._brake_place)


def _ended(running: Running) -> None:
    """What ended it is raised."""
    running.check()
    running.was_interrupted()
