"""Runs a bundle on ONNX Runtime. Torch-free; onnxruntime itself is imported when a program is first loaded.

Place in the pipeline: lrkit/contract/bundle/bundle_folder.py -> `OrtEngine` (a program_engine.py over ONNX Runtime's
sessions)
-> lrkit/runtime/sdk.py.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrkit.contract.bundle.bundle_folder import Bundle
from lrkit.contract.bundle.io_spec import IoSpec
from lrkit.contract.bundle.manifest import Dialect, GraphName, ProgramEntry, Role
from lrkit.contract.schemes import scheme_named
from lrkit.cores import find_cores
from lrkit.errors import BundleError, StoppedError, UserError
from lrkit.runtime.encode.processor import Processor
from lrkit.runtime.engines.onnxruntime.device_value import Device
from lrkit.runtime.engines.onnxruntime.providers import bundle_options, choose_provider, refusal
from lrkit.runtime.engines.onnxruntime.session import OrtGraph, inputs_of, load_adapter, load_session, said
from lrkit.runtime.engines.programs.program_engine import ProgramEngine
from lrkit.runtime.engines.programs.program_sessions import ProgramSessions


def optimizers_off(dialect: Dialect, precision: str) -> list[str]:
    """ONNX Runtime's graph transformers that a program must be loaded without.

    QDQSelectorActionTransformer turns DequantizeLinear into ONNX Runtime's own nodes for integers: it fails where the
    weights lie outside the loop that uses them, and elsewhere would round activations to int8 unasked.
    """
    standard = scheme_named(precision).encoding(dialect) == "DequantizeLinear"
    return ["QDQSelectorActionTransformer"] if standard else []


class Sessions(ProgramSessions):
    """One ONNX Runtime session per program of a bundle, made at first use and shared by all threads."""

    name = "onnxruntime"

    def __init__(
        self,
        bundle: Bundle,
        provider: str = "cpu",
        threads: int | None = None,
        config: Mapping[str, str] | None = None,
        provider_options: Mapping[str, str] | None = None,
    ) -> None:
        """`config` and `provider_options` are the caller's own and come before those of the bundle."""
        if threads is not None and threads < 1:
            raise UserError(f"threads is {threads}; it must be 1 or more")
        super().__init__(bundle)
        self.provider = provider
        # TensorRT below ONNX Runtime is a GPU of CUDA too.
        self.place = "cuda" if "tensorrt" in provider else provider
        choose_provider(provider)  # a name that is not known is said before what is wrong with its options
        given, entries = bundle_options(bundle.manifest, provider, bundle.folder)
        self._given = {**given, **(provider_options or {})}
        self._providers = choose_provider(provider, self._given)
        self.device: Device | None = None
        """Where the graphs of the form step leave their state; None: it comes back to the host."""
        if self.place == "cuda":
            self.device = "cuda", int(str(self._given.get("device_id", 0)))
        default = bundle.manifest.defaults.threads if bundle.manifest.defaults and provider == "cpu" else None
        default = None if default is None else min(default, find_cores().usable)  # chosen on another machine
        self._threads = default if threads is None else threads
        self._config = {**entries, **(config or {})}
        self._adapters: dict[str, Any] = {}

    def open_graph(self, role: Role, entry: ProgramEntry, graph: GraphName, file: str, spec: IoSpec) -> OrtGraph:
        """Loads one graph. Raises as `of`."""
        path = self.bundle.folder / file
        self.bundle.check_unchanged(file, entry.data)
        off = optimizers_off(entry.dialect, entry.precision)
        if self.provider == "cpu" and not scheme_named(entry.precision).on_cpu:
            raise BundleError(
                f"{path}: its weights are {entry.precision}, which no engine reads on a CPU; ask it by its TensorRT "
                "engine on a GPU, or export with precision=int4"
            )
        try:
            session = load_session(path, self._options(), self._providers, off)
        except StoppedError:
            raise
        except Exception as error:  # onnxruntime's own classes have no common base below Exception
            if self.provider != "cpu":
                raise refusal(error, self.provider, path, self._given) from error
            message = f"{path}: ONNX Runtime cannot load it ({said(error)}); copy the bundle again"
            raise BundleError(message) from error
        first = self._providers[0]
        wanted = first if isinstance(first, str) else first[0]
        if wanted not in session.get_providers():
            raise UserError(
                f"provider {self.provider!r} could not be started on this machine, which started "
                f"{', '.join(session.get_providers())}; check its driver and libraries, or use cpu"
            )
        if found := spec.differences(inputs_of(session, entry.swaps), session.get_outputs()):
            raise BundleError(
                f"{path}: is not the program that bundle.json declares ({found[0]}); copy the bundle again"
            )
        return OrtGraph(session, path, None if graph == "program" else self.device)

    def adapted(self, role: Role, name: str) -> OrtGraph:
        """The program with an adapter in place of its own; its file is read once."""
        graph, entry = self.of(role), self.bundle.program(role)
        file = entry.adapters[name].file
        with self._lock:
            if file not in self._adapters:
                self.bundle.check_unchanged(file)
                self._adapters[file] = load_adapter(self.bundle.folder / file, entry.swaps)
            return graph.with_adapter(self._adapters[file])

    def _options(self) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads or find_cores().threads
        if self._threads is None:
            # A waiting thread that spins takes the cores from others, and a container's quota from the working one.
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        for key, value in self._config.items():
            options.add_session_config_entry(key, value)
        return options


class OrtEngine(ProgramEngine):
    """One program of a bundle on ONNX Runtime. May be used by several threads at once."""

    def __init__(self, sessions: Sessions, processor: Processor, role: Role = "latent") -> None:
        super().__init__(sessions, processor, role)
        self.sessions: Sessions = sessions

    @classmethod
    def from_bundle(
        cls,
        path: Path | str,
        provider: str = "cpu",
        threads: int | None = None,
        verify: bool = True,
        config: Mapping[str, str] | None = None,
        provider_options: Mapping[str, str] | None = None,
    ) -> "OrtEngine":
        """Opens a bundle; its programs are loaded when first asked. `config` are ONNX Runtime's session entries,
        `provider_options` those of the provider.

        Raises:
            BundleError: see `open_bundle`.
            CheckpointError: its tokenizer or image settings cannot be read.
            UserError: a provider that this machine lacks, or threads below 1.
        """
        return cls.over(path, verify, lambda bundle: Sessions(bundle, provider, threads, config, provider_options))
