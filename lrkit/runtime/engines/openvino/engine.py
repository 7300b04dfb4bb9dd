"""Runs a bundle on OpenVINO. Torch-free; openvino itself is imported when a program is first loaded.

Place in the pipeline: lrkit/contract/bundle/bundle_folder.py -> `OpenVinoEngine` (a program_engine.py over graph.py)
-> lrkit/runtime/sdk.py.
"""

from pathlib import Path
from typing import Any

from lrkit.contract.bundle.bundle_folder import Bundle
from lrkit.contract.bundle.io_spec import IoSpec
from lrkit.contract.bundle.manifest import GraphName, ProgramEntry, Role
from lrkit.contract.schemes import computed_in
from lrkit.errors import BundleError, UserError
from lrkit.runtime.engines.openvino.brake import add_brake
from lrkit.runtime.engines.openvino.graph import OvGraph
from lrkit.runtime.engines.openvino.library import check_device, core, said
from lrkit.runtime.engines.openvino.options import OpenVinoOptions, properties
from lrkit.runtime.engines.openvino.reader import differences, read_model
from lrkit.runtime.engines.programs.program_engine import ProgramEngine, ProgramSessions


class OpenVinoSessions(ProgramSessions):
    """One compiled graph per graph of a bundle, made at first use and shared by all threads."""

    name = "openvino"

    def __init__(self, bundle: Bundle, options: OpenVinoOptions) -> None:
        super().__init__(bundle)
        self.options = options
        device = options.device.strip().upper()
        self.place = "cpu" if device.partition(".")[0] == "CPU" else device.lower()

    def open_graph(self, role: Role, entry: ProgramEntry, graph: GraphName, file: str, spec: IoSpec) -> OvGraph:
        """Loads one graph. Raises as `of`."""
        path = self.bundle.folder / file
        if entry.dialect != "standard":
            raise BundleError(
                f"{self.bundle.folder}: its {role} program has ONNX Runtime's own operators (dialect {entry.dialect}), "
                "which OpenVINO does not read; export the checkpoint again: lrkit export CHECKPOINT --engine openvino"
            )
        device = check_device(self.options.device)
        self.bundle.check_unchanged(file, entry.data)
        model = read_model(path)
        if found := differences(model, spec):
            raise BundleError(
                f"{path}: is not the program that bundle.json declares ({found[0]}); copy the bundle again"
            )
        # Other devices hold a copy of their inputs, in which nothing can be set while they run.
        brake = self.place == "cpu" and add_brake(model)
        compiled = self._compile(model, device, path, self.precision)
        return OvGraph(compiled, path, [one.name for one in spec.inputs], brake)

    @property
    def precision(self) -> str:
        """Number type of float products, by OpenVINO's names."""
        if self.options.precision != "auto":
            return self.options.precision
        target = self.bundle.manifest.target
        return "f16" if computed_in(target.get("precision"), target.get("activations")) == "fp16" else "f32"

    def _compile(self, model: Any, device: str, path: Path, precision: str) -> Any:
        given = properties(self.options, device, precision)
        try:
            return core().compile_model(model, device, given)
        except Exception as error:  # OpenVINO raises RuntimeError, and its binding others
            text = said(error)
            if named := [key for key in self.options.properties if key in text]:
                raise UserError(
                    f"OpenVINO refuses the property {named[0]} = {self.options.properties[named[0]]} ({text}); correct "
                    "the engine's option properties"
                ) from error
            do = "copy the bundle again" if device == "CPU" else "check the device's driver, or use device=CPU"
            raise BundleError(f"{path}: OpenVINO cannot compile it for {device} ({text}); {do}") from error


class OpenVinoEngine(ProgramEngine):
    """One program of a bundle on OpenVINO. May be used by several threads at once."""

    @classmethod
    def from_bundle(cls, path: Path | str, options: OpenVinoOptions, verify: bool = True) -> "OpenVinoEngine":
        """Opens a bundle; its programs are compiled when first asked.

        Raises:
            BundleError: see `open_bundle`.
            CheckpointError: its tokenizer or image settings cannot be read.
        """
        return cls.over(path, verify, lambda bundle: OpenVinoSessions(bundle, options))
