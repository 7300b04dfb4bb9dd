"""Sessions of ONNX Runtime on the CPU, in which an export runs what it wrote.

Place in the pipeline: bundle.py opens a program and check.py runs it; chosen_tokens.py runs its tower alone.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lrkit.contract.bundle.io_spec import IoSpec
from lrkit.contract.bundle.manifest import StepEntry, StepName
from lrkit.errors import ExportError, one_line
from lrkit.runtime.engines.programs.step_session import StepSession


def open_program(file: Path, spec: IoSpec, optimizers_off: Sequence[str] = ()) -> Any:
    """An ONNX Runtime session on the CPU, without the graph transformers named (see
    lrkit/runtime/engines/onnxruntime/engine.py).

    Raises:
        ExportError: ONNX Runtime refuses it, or it has other inputs or outputs than `spec` declares.
    """
    session = open_graph(file, optimizers_off)
    if wrong := spec.differences(session.get_inputs(), session.get_outputs()):
        raise ExportError(f"{file.name} is not the program it was built to be ({wrong[0]}); export it again")
    return session


def open_graph(file: Path, optimizers_off: Sequence[str] = ()) -> Any:
    """The same of any graph.

    Raises:
        ExportError: ONNX Runtime refuses it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(
            str(file), options, providers=["CPUExecutionProvider"], disabled_optimizers=list(optimizers_off)
        )
    except Exception as error:  # onnxruntime's own classes have no common base below Exception
        raise ExportError(refusal(f"cannot load {file.name}", error)) from error


def refusal(what: str, error: Exception) -> str:
    """What ONNX Runtime did not do, in one sentence."""
    return (
        f"ONNX Runtime {what} while it is compared with torch ({one_line(error)}); free memory if that is what it "
        "lacks, or export with another --target or --dialect"
    )


def open_steps(
    folder: Path,
    steps: Mapping[StepName, StepEntry],
    whole: IoSpec,
    end_ids: Sequence[int],
    optimizers_off: Sequence[str] = (),
) -> StepSession:
    """The graphs of the form `step`, driven like one program. Raises as `open_program`."""
    sessions = {name: open_program(folder / entry.file, entry.spec, optimizers_off) for name, entry in steps.items()}
    return StepSession(sessions, {name: entry.spec for name, entry in steps.items()}, whole, end_ids)
