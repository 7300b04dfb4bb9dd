"""An engine as a stranger would add one: one file, and a row in the table. It echoes the answers of ONNX Runtime."""

from pathlib import Path

from pydantic import Field

from lrkit.config import Config
from lrkit.contract.bundle.bundle_folder import Bundle
from lrkit.contract.bundle.io_spec import IoSpec
from lrkit.contract.bundle.manifest import GraphName, ProgramEntry, Role
from lrkit.gpus import Gpus
from lrkit.runtime.engines.common.row import EngineRow, EngineState
from lrkit.runtime.engines.programs.program_engine import ProgramEngine
from lrkit.runtime.engines.programs.program_sessions import GraphSession, ProgramSessions

NAME = "toy"


class ToyOptions(Config):
    """How programs are run."""

    workers: int = Field(default=1, ge=1)
    """Threads of one operator."""


class ToySessions(ProgramSessions):
    """A session is all that a new engine gives: names of outputs and arrays in, arrays out."""

    name = NAME
    place = "cpu"

    def __init__(self, bundle: Bundle, options: ToyOptions) -> None:
        super().__init__(bundle)
        self.options = options

    def open_graph(self, role: Role, entry: ProgramEntry, graph: GraphName, file: str, spec: IoSpec) -> GraphSession:
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = self.options.workers
        return onnxruntime.InferenceSession(str(self.bundle.folder / file), settings, ["CPUExecutionProvider"])


def opened(path: Path | str, options: ToyOptions, verify: bool) -> ProgramEngine:
    return ProgramEngine.over(path, verify, lambda bundle: ToySessions(bundle, options))


ROW = EngineRow(NAME, ToyOptions, opened, lambda gpus: state(gpus))


def state(gpus: Gpus) -> EngineState:
    return EngineState(NAME, True, "1.0", "cpu", None)
