"""Runs a bundle on OpenVINO. Torch-free; openvino itself is imported when a program is first loaded.

Place in the pipeline: lrkit/contract/bundle/bundle_folder.py -> `OpenVinoEngine` (a program_engine.py over graph.py)
-> lrkit/runtime/sdk.py.
"""

from pathlib import Path

from lrkit.contract.bundle.bundle_folder import Bundle
from lrkit.contract.bundle.io_spec import IoSpec
from lrkit.contract.bundle.manifest import GraphName, ProgramEntry, Role
from lrkit.errors import BundleError
from lrkit.runtime.encode.processor import Processor
from lrkit.runtime.engines.openvino.compiled import compile_graph, natural_precision, on_cpu
from lrkit.runtime.engines.openvino.graph import OvGraph
from lrkit.runtime.engines.openvino.options import Numbers, OpenVinoOptions
from lrkit.runtime.engines.programs.program_engine import ProgramEngine
from lrkit.runtime.engines.programs.program_sessions import ProgramSessions


class OpenVinoSessions(ProgramSessions):
    """One compiled graph per graph of a bundle, made at first use and shared by all threads."""

    name = "openvino"

    def __init__(self, bundle: Bundle, options: OpenVinoOptions) -> None:
        super().__init__(bundle)
        self.options = options
        self.place = "cpu" if on_cpu(options.device) else options.device.strip().lower()

    def open_graph(self, role: Role, entry: ProgramEntry, graph: GraphName, file: str, spec: IoSpec) -> OvGraph:
        """Loads one graph. Raises as `of`."""
        if entry.dialect != "standard":
            raise BundleError(
                f"{self.bundle.folder}: its {role} program has ONNX Runtime's own operators (dialect {entry.dialect}), "
                "which OpenVINO does not read; export the checkpoint again: lrkit export CHECKPOINT --engine openvino"
            )
        self.bundle.check_unchanged(file, entry.data)
        weights = None if entry.data is None else self.bundle.folder / entry.data
        return compile_graph(self.bundle.folder / file, spec, self.options, self.numbers, weights)

    @property
    def numbers(self) -> Numbers:
        """As asked for; otherwise as the programs were compared with torch on OpenVINO, or are written."""
        made_for, asked = self.bundle.manifest.made_for, self.options
        own = Numbers(natural_precision(self.bundle.manifest.target, self.place == "cpu"))
        if made_for is not None and made_for.engine == self.name:
            own = Numbers(made_for.precision, made_for.int8_activations)
        rounds = own.int8_activations if asked.int8_activations is None else asked.int8_activations
        return Numbers(own.precision if asked.precision == "auto" else asked.precision, rounds)


class OpenVinoEngine(ProgramEngine):
    """One program of a bundle on OpenVINO. May be used by several threads at once."""

    def __init__(self, sessions: OpenVinoSessions, processor: Processor, role: Role = "latent") -> None:
        super().__init__(sessions, processor, role)
        self.sessions: OpenVinoSessions = sessions
        self.products = sessions.numbers.precision

    @classmethod
    def from_bundle(cls, path: Path | str, options: OpenVinoOptions, verify: bool = True) -> "OpenVinoEngine":
        """Opens a bundle; its programs are compiled when first asked.

        Raises:
            BundleError: see `open_bundle`.
            CheckpointError: its tokenizer or image settings cannot be read.
        """
        return cls.over(path, verify, lambda bundle: OpenVinoSessions(bundle, options))
