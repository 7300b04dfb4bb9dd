"""What an export runs its programs in, to compare them with torch: the engine that they are meant for, on the CPU.

Place in the pipeline: bundle.py opens a program and check.py runs it; chosen_tokens.py runs its tower alone.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lrkit.contract.bundle.io_spec import IoSpec
from lrkit.contract.bundle.manifest import MadeFor, ProgramEntry
from lrkit.errors import ExportError, LrkitError, one_line
from lrkit.export.targets.target import Target
from lrkit.runtime.engines.onnxruntime.engine import optimizers_off
from lrkit.runtime.engines.onnxruntime.session import inputs_of
from lrkit.runtime.engines.programs.step_session import StepSession


@dataclass(frozen=True)
class Comparing:
    """What runs programs while they are compared."""

    name: str
    """For errors: ONNX Runtime, OpenVINO."""
    open: Callable[[Path, IoSpec | None, Collection[str]], Any]
    """Loads one graph; of a declared one inputs, but for those of an adapter, and outputs are compared. Raises
    `ExportError`."""
    made_for: MadeFor | None = None
    """For bundle.json."""

    @property
    def products(self) -> str | None:
        """Number type that the engine rounds products to; None: that of the program."""
        return None if self.made_for is None else self.made_for.precision

    @staticmethod
    def of(target: Target) -> "Comparing":
        """By what the target is for.

        Raises:
            MissingExtraError: it is for OpenVINO, which is not installed.
        """
        if target.openvino is not None:
            return _openvino(target)
        off = optimizers_off(target.dialect, target.precision)
        return Comparing("ONNX Runtime", partial(open_program, optimizers_off=off))

    def program(self, folder: Path, entry: ProgramEntry, end_ids: Sequence[int]) -> Any:
        """The session that answers by a written program, in either form. Raises `ExportError`."""
        if not entry.steps:
            return self.open(folder / entry.file, entry.spec, entry.swaps)
        sessions = {name: self.open(folder / step.file, step.spec, ()) for name, step in entry.steps.items()}
        return StepSession(sessions, {name: step.spec for name, step in entry.steps.items()}, entry.spec, end_ids)


def _openvino(target: Target) -> Comparing:
    from lrkit.runtime.engines.openvino.compiled import compile_graph, natural_precision
    from lrkit.runtime.engines.openvino.library import load_library
    from lrkit.runtime.engines.openvino.options import Numbers, OpenVinoOptions

    assert target.openvino is not None
    options, asked = OpenVinoOptions(), target.openvino.precision
    precision = natural_precision(target.model_dump(mode="json")) if asked == "auto" else asked
    numbers = Numbers(precision, target.openvino.int8_activations)

    def opened(file: Path, spec: IoSpec | None, swaps: Collection[str]) -> Any:
        try:
            return compile_graph(file, spec, options, numbers)
        except LrkitError as error:
            raise ExportError(refusal("cannot load", error, "OpenVINO")) from error

    made_for = MadeFor(
        engine="openvino", version=str(load_library().__version__), precision=precision,
        int8_activations=numbers.int8_activations,
    )  # fmt: skip
    return Comparing("OpenVINO", opened, made_for)


def open_program(
    file: Path, spec: IoSpec | None = None, swaps: Collection[str] = (), optimizers_off: Sequence[str] = ()
) -> Any:
    """An ONNX Runtime session on the CPU, without the graph transformers named (see
    lrkit/runtime/engines/onnxruntime/engine.py).

    Raises:
        ExportError: ONNX Runtime refuses it, or it has other inputs or outputs than `spec` declares.
    """
    session = _session(file, optimizers_off)
    if spec is not None and (wrong := spec.differences(inputs_of(session, swaps), session.get_outputs())):
        raise ExportError(f"{file.name} is not the program it was built to be ({wrong[0]}); export it again")
    return session


def _session(file: Path, optimizers_off: Sequence[str]) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(
            str(file), options, providers=["CPUExecutionProvider"], disabled_optimizers=list(optimizers_off)
        )
    except Exception as error:  # onnxruntime's own classes have no common base below Exception
        raise ExportError(refusal(f"cannot load {file.name}", error)) from error


def refusal(what: str, error: Exception, who: str = "ONNX Runtime") -> str:
    """What an engine did not do, in one sentence."""
    return (
        f"{who} {what} while it is compared with torch ({one_line(error)}); free memory if that is what it "
        "lacks, or export with another --target or --dialect"
    )
