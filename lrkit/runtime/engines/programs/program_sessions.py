"""The loaded programs of a bundle, whatever runs them. Torch-free.

Place in the pipeline: `ProgramEngine` asks its `ProgramSessions` for the session of a program; onnxruntime/engine.py,
openvino/engine.py and tensorrt/engine.py say how one graph is opened.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from lrkit.contract.bundle.bundle_folder import Bundle
from lrkit.contract.bundle.io_spec import IoSpec
from lrkit.contract.bundle.manifest import GraphName, ProgramEntry, Role
from lrkit.errors import UserError
from lrkit.runtime.engines.programs.step_session import StepSession


class GraphSession(Protocol):
    """One graph, loaded: an `onnxruntime.InferenceSession`, or a TensorRT engine with its context."""

    def run(self, output_names: Sequence[str], input_feed: Mapping[str, Any], /) -> Sequence[Any]:
        """The outputs of those names, in that order. May be called by several threads at once."""
        ...


class ProgramSessions(ABC):
    """One session per program of a bundle, made at first use and shared by all threads."""

    name: str
    """Of the engine, as its row in lrkit/runtime/engines/table.py."""
    place: str = "cpu"
    """Where it runs: cpu, cuda, cuda:1, or the name of another device."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._made: dict[Role, Any] = {}
        self._lock = threading.Lock()

    @property
    def loaded(self) -> tuple[Role, ...]:
        """Programs in memory."""
        return tuple(self._made)

    def of(self, role: Role) -> Any:
        """The session of that program: a `GraphSession`, or the `StepSession` around the graphs of the form step.

        Raises:
            BundleError: the bundle has no such program, or its file is none or another than declared.
            UserError: the program cannot be run on this machine.
        """
        with self._lock:
            if role not in self._made:
                self._made[role] = self._make(role)
            return self._made[role]

    def _make(self, role: Role) -> Any:
        entry = self.bundle.program(role)
        if not entry.steps:
            return self.open_graph(role, entry, "program", entry.file, entry.spec)
        sessions = {
            name: self.open_graph(role, entry, name, step.file, step.spec) for name, step in entry.steps.items()
        }
        specs = {name: step.spec for name, step in entry.steps.items()}
        return StepSession(sessions, specs, entry.spec, self.bundle.manifest.tokens.ends)

    def adapted(self, role: Role, name: str) -> Any:
        """The program with an adapter in place of its own.

        Raises:
            UserError: what runs the programs cannot switch adapters.
        """
        raise UserError(f"adapters are switched by ONNX Runtime, and {self.name} runs the bundle; leave engine out")

    @abstractmethod
    def open_graph(self, role: Role, entry: ProgramEntry, graph: GraphName, file: str, spec: IoSpec) -> GraphSession:
        """Loads one graph; `file` is its ONNX file, relative to the bundle. Raises as `of`."""
