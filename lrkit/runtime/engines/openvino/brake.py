"""Lets a run of OpenVINO be ended inside its loops. Torch-free.

Place in the pipeline: engine.py changes a model here before it is compiled on a CPU -> graph.py pulls the brake.

OpenVINO's own cancel is looked at between nodes, and to OpenVINO a whole loop, with all its tokens, is one node. So
each loop gets one more input: an array of flags that lies in lrkit's own memory and of which it reads one per
iteration. A flag that is set ends the loop after that iteration. The last flag always is, so a loop that would never
end does.
"""

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import numpy as np

from lrkit.contract.bundle.manifest import MAX_NEW_TOKENS
from lrkit.runtime.engines.openvino.library import load_library

MOST_ITERATIONS = MAX_NEW_TOKENS + 2
"""More than a loop of any program of lrkit takes."""


def add_brake(model: Any) -> bool:
    """Gives every loop of the outermost graph a brake, and the model one more, last input: uint8 (MOST_ITERATIONS,).
    False, and nothing is changed, where there is no loop."""
    loops = [node for node in model.get_ops() if node.get_type_name() == "Loop"]
    if not loops:
        return False
    op = load_library().opset13
    flags = op.parameter([MOST_ITERATIONS], np.uint8, name="brake")
    for loop in loops:
        _wire(op, loop, flags.output(0))
    model.add_parameters([flags])
    model.validate_nodes_and_infer_types()
    return True


def _wire(op: Any, loop: Any, flags: Any) -> None:
    """The loop goes on while its own condition holds and its flag of the iteration is 0."""
    body = loop.get_function()
    _, condition = loop.get_special_body_ports()
    now = op.parameter([1], np.uint8, name="brake/now")
    free = op.reshape(op.equal(now, op.constant(np.zeros(1, np.uint8))), op.constant(np.zeros(0, np.int64)), False)
    goes_on = body.get_results()[condition].input(0)
    own = goes_on.get_source_output()
    shaped = (
        own if len(own.partial_shape) == 0 else op.reshape(own, op.constant(np.zeros(0, np.int64)), False).output(0)
    )
    goes_on.replace_source_output(op.logical_and(shaped, free).output(0))
    body.add_parameters([now])
    loop.set_sliced_input(now, flags, 0, 1, 1, -1, 0)


class Brake:
    """Ends the runs of one request. One run at a time, and never the one that follows."""

    def __init__(self, request: Any, place: int | None) -> None:
        """`place`: number of the input that `add_brake` made; None without one."""
        self._request, self._lock = request, threading.Lock()
        self._run = 0  # counts up; 0 is none
        self.pulled = False
        self._flags = np.zeros(MOST_ITERATIONS if place is not None else 1, np.uint8)
        self._flags[-1] = 1
        if place is not None:
            # OpenVINO reads this very memory while it runs.
            request.set_input_tensor(place, load_library().Tensor(self._flags, shared_memory=True))

    @contextmanager
    def released(self) -> Generator[Callable[[], None]]:
        """Around one run: what ends it, and does nothing once it is over."""
        with self._lock:
            self._run += 1
            number, self.pulled = self._run, False
            self._flags[:-1] = 0
        try:
            yield lambda: self._pull(number)
        finally:
            with self._lock:
                self._run += 1

    def _pull(self, number: int) -> None:
        with self._lock:
            if number == self._run:
                self.pulled = True
                self._flags[:] = 1
                self._request.cancel()
