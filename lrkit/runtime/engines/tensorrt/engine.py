"""Runs a bundle's TensorRT engines, of tensorrt_rtx or tensorrt 10 and 11. Torch-free unless torch holds the buffers.

Place in the pipeline: lrkit/contract/bundle/bundle_folder.py -> `TensorRtEngine` (a program_engine.py over session.py)
-> lrkit/runtime/sdk.py. docs/where-it-runs.md says on which devices this has run.

Everything that can be checked without the device is checked first, in this order: engine, package, version, file, GPU,
compute capability, memory.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from lrkit.config import Config
from lrkit.contract.bundle.bundle_folder import Bundle
from lrkit.contract.bundle.io_spec import IoSpec
from lrkit.contract.bundle.manifest import EngineEntry, EngineKind, GraphName, ProgramEntry, Role, StepName
from lrkit.errors import BundleError, UserError, one_line
from lrkit.gpus import Gpu, require_gpu
from lrkit.runtime.engines.programs.program_engine import ProgramEngine
from lrkit.runtime.engines.programs.program_sessions import ProgramSessions
from lrkit.runtime.engines.tensorrt.device_array import Pool
from lrkit.runtime.engines.tensorrt.device_memory import open_memory
from lrkit.runtime.engines.tensorrt.engine_file import check_version, open_engine_file
from lrkit.runtime.engines.tensorrt.library import TensorRT, load_library
from lrkit.runtime.engines.tensorrt.session import EngineSession


class TensorRtOptions(Config):
    """How engines are run."""

    device: int = Field(default=0, ge=0)
    """Which GPU, as CUDA counts them."""
    cuda_graphs: tuple[StepName, ...] = ()
    """Form step: graphs to record as CUDA graphs and launch as one; those with a loop inside cannot be."""
    runtime_cache: Path | None = None
    """tensorrt-rtx: a folder that keeps what was compiled for this GPU, so that the next start is quick; made if it is
    not there."""
    weight_budget_bytes: int | None = Field(default=None, ge=0)
    """Device memory for weights, the rest being streamed from the host; of engines built with weight streaming only."""


def find_engine(entry: ProgramEntry, kind: EngineKind, graph: GraphName) -> list[EngineEntry]:
    """Engines of that kind built from that graph of a program."""
    return [built for built in entry.engines if built.kind == kind and built.graph == graph]


def choose_engine(engines: Sequence[EngineEntry], gpu: Gpu, bundle: Path, known: Sequence[str] = ()) -> EngineEntry:
    """The one for that GPU. `known`: compute capabilities that the package can build for without the device.

    Raises:
        BundleError: none is; the message names the GPU's compute capability and the command that adds one.
    """
    fitting = [one for one in engines if gpu.arch in one.archs or _runs_on_later(one, gpu.arch)]
    if fitting:
        return fitting[0]
    kind, built = engines[0].kind, ", ".join(dict.fromkeys(arch for one in engines for arch in one.archs))
    if known and gpu.arch not in known:
        do = f"{kind} knows only {', '.join(known)}: use engine tensorrt or onnxruntime on this GPU"
    else:
        do = f"build one for it: {export_command(bundle, kind, gpu.arch)}"
    raise BundleError(
        f"{bundle}: its engines of {kind} are for {built or 'another device'}, this GPU ({gpu.name}) is {gpu.arch}; "
        f"{do}"
    )


def _runs_on_later(built: EngineEntry, arch: str) -> bool:
    """Built by TensorRT with hardware compatibility for Ampere and later."""
    return built.options.get("hardware_compatibility") == "ampere_plus" and int(arch[2:]) >= 80


def export_command(bundle: Path, kind: EngineKind, arch: str = "smXX") -> str:
    """What adds engines to a bundle; standard TensorRT builds for the device that it runs on."""
    return f"lrkit engines {bundle} --engine {kind}" + (f" --arch {arch}" if kind == "tensorrt-rtx" else "")


class TensorRtSessions(ProgramSessions):
    """One engine per graph of a bundle, loaded at first use and shared by all threads."""

    def __init__(self, bundle: Bundle, kind: EngineKind, options: TensorRtOptions) -> None:
        super().__init__(bundle)
        self.name = kind
        self.kind: EngineKind = kind
        self.options = options
        self.place = f"cuda:{options.device}"
        self._pool: Pool | None = None
        self._runtime: Any = None  # must outlive its engines
        graphs = {name for entry in bundle.manifest.programs.values() for name in entry.steps}
        if wrong := [name for name in options.cuda_graphs if name not in graphs]:
            has = f"only {', '.join(sorted(graphs))}" if graphs else "one graph with its loops inside, as none can have"
            raise UserError(
                f"cuda_graphs names {wrong[0]}, and {bundle.folder} has {has}; leave it out, or export with --form step"
            )
        if options.runtime_cache is not None and kind != "tensorrt-rtx":
            raise UserError(f"runtime_cache is for tensorrt-rtx, and the engine is {kind}; leave it out")

    def _engines_of(self, role: Role, entry: ProgramEntry, graph: GraphName) -> list[EngineEntry]:
        engines = find_engine(entry, self.kind, graph)
        if not engines:
            there = sorted({built.kind for built in entry.engines})
            has = f"only of {', '.join(there)}" if there else "nor of another kind"
            what = f"{role} program" if graph == "program" else f"{role} program's graph {graph}"
            raise BundleError(
                f"{self.bundle.folder}: has no engine of {self.kind} for its {what}, {has}; {self._how_to_add(entry)}"
            )
        return engines

    def _how_to_add(self, entry: ProgramEntry) -> str:
        if entry.dialect == "standard":
            return f"add it: {export_command(self.bundle.folder, self.kind)}"
        return (
            f"engines are built from the dialect standard, and the program is in {entry.dialect}, so export the "
            f"checkpoint again: lrkit export CHECKPOINT --engine {self.kind}"
            + (" --target TARGET" if self.kind == "tensorrt" else "")
        )

    def open_graph(self, role: Role, entry: ProgramEntry, graph: GraphName, file: str, spec: IoSpec) -> EngineSession:
        """Loads the engine of one graph for this GPU. Raises as `of`, and what `load_library`, `open_memory` raise."""
        engines = self._engines_of(role, entry, graph)
        library = load_library(self.kind)
        for built in engines:
            path = self.bundle.folder / built.file
            check_version(path, built, library)
            open_engine_file(path, built).close()
        gpu = require_gpu(self.options.device, f"{self.bundle.folder}: its engine of {self.kind}")
        known = [name.lower() for name in _capabilities(library) if name.startswith("SM")]
        chosen = choose_engine(engines, gpu, self.bundle.folder, known)
        if self._pool is None:
            self._pool = Pool(open_memory(self.options.device, self.kind))
        path = self.bundle.folder / chosen.file
        self.bundle.check_unchanged(chosen.file)
        with self._pool.work:
            self._pool.memory.activate()
            self._runtime = self._runtime or library.module.Runtime(library.log)
            loaded = deserialize(library, self._runtime, path, chosen, self.options.weight_budget_bytes)
            capture = graph in self.options.cuda_graphs
            context, save = self._context(library, loaded, path, capture)
        return EngineSession(library, loaded, context, self._pool, spec, str(path), capture, save)

    def _context(self, library: TensorRT, engine: Any, path: Path, capture: bool) -> tuple[Any, Any]:
        """(execution context, what to call after new shapes)."""
        if self.kind != "tensorrt-rtx":
            return _made(engine.create_execution_context(), library, path, "context"), lambda: None
        config = engine.create_runtime_config()
        if capture:
            config.cuda_graph_strategy = library.module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        save = self._use_cache(config, path) if self.options.runtime_cache is not None else lambda: None
        return _made(engine.create_execution_context(config), library, path, "context"), save

    def _use_cache(self, config: Any, path: Path) -> Any:
        """Gives the context what was compiled before; returns what saves the rest."""
        folder = self.options.runtime_cache
        assert folder is not None
        file = folder / f"{path.stem}.cache"
        cache = config.create_runtime_cache()
        if file.is_file():
            cache.deserialize(file.read_bytes())  # False where it is of another GPU or version: it then starts empty
        config.set_runtime_cache(cache)

        def save() -> None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                part = file.with_suffix(".part")
                part.write_bytes(bytes(cache.serialize()))
                part.replace(file)
            except OSError as error:
                raise UserError(f"{file}: cannot be written ({error.strerror}); give another runtime_cache") from error

        return save


def deserialize(library: TensorRT, runtime: Any, path: Path, entry: EngineEntry, budget: int | None = None) -> Any:
    """The `ICudaEngine` in a file, by the package's `Runtime`; `budget`: device memory for its weights.

    Raises:
        BundleError: the package refuses it; the message holds its reason.
        UserError: a budget for an engine that does not stream its weights.
    """
    library.log.take()
    found = runtime.deserialize_cuda_engine(open_engine_file(path, entry))
    engine = _made(found, library, path, f"engine, built by {entry.version},")
    if budget is not None:
        if not engine.streamable_weights_size:
            raise UserError(
                f"{path}: weight_budget_bytes is {budget}, and the engine was built without weight streaming; leave it "
                "out, or build the engine with it"
            )
        engine.weight_streaming_budget_v2 = min(budget, engine.streamable_weights_size)
    return engine


def _made(thing: Any, library: TensorRT, path: Path, what: str) -> Any:
    """The package gives None instead of raising, and says why in its log."""
    if thing is None:
        said = one_line((library.log.take() or ["it does not say why"])[0])
        raise BundleError(
            f"{path}: {library.kind} {library.version} cannot make its {what} ({said}); build the engine again on, or "
            "for, this machine"
        )
    return thing


def _capabilities(library: TensorRT) -> list[str]:
    """What the package can build for on any machine; nothing for standard TensorRT, which builds on the device."""
    named = getattr(library.module, "ComputeCapability", None)
    return [] if library.kind != "tensorrt-rtx" or named is None else list(named.__members__)


class TensorRtEngine(ProgramEngine):
    """One program of a bundle on TensorRT. May be used by several threads at once."""

    @classmethod
    def from_bundle(
        cls, path: Path | str, kind: EngineKind, options: TensorRtOptions, verify: bool = True
    ) -> "TensorRtEngine":
        """Opens a bundle; its engines are loaded when first asked.

        Raises:
            BundleError: see `open_bundle`; the bundle has no engines of that kind.
            CheckpointError: its tokenizer or image settings cannot be read.
            UserError: an option that is wrong for this bundle.
        """
        return cls.over(path, verify, lambda bundle: TensorRtSessions(bundle, kind, options))
