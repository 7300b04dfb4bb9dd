"""The engines that can run a bundle, by name. Torch-free; a package is imported when its engine is asked for.

Place in the pipeline: `Reasoner.load(engine=...)`, `lrkit ask|eval|validate --engine` -> `open_engine` ->
onnxruntime/engine.py or tensorrt/engine.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lrkit.errors import UnknownNameError, UserError, did_you_mean, one_line
from lrkit.runtime.engines.programs.program_engine import ProgramEngine
from lrkit.runtime.engines.tensorrt.library import KINDS

ENGINES: tuple[str, ...] = ("onnxruntime", *KINDS)
"""onnxruntime runs every bundle; the others run the engines that `lrkit engines` or an export put into it."""


@dataclass(frozen=True)
class EngineChoice:
    """What runs a bundle, and how."""

    name: str | None = None
    """One of ENGINES; None: onnxruntime."""
    provider: str | None = None
    """onnxruntime: cpu, cuda, cuda:1, tensorrt, ...; None: cpu."""
    threads: int | None = None
    """onnxruntime: of one operator; None: as many as the process may use (lrkit/cores.py), which then do not spin."""
    session_config: Mapping[str, str] | None = None
    """onnxruntime: its own session entries."""
    provider_options: Mapping[str, str] | None = None
    """onnxruntime: the provider's own options; a bundle may give a few of them, the caller any."""
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """tensorrt-rtx and tensorrt: see lrkit.runtime.engines.tensorrt.engine.TensorRtOptions."""

    @property
    def place(self) -> str:
        """Where it runs, for a report: a provider, or a GPU."""
        if (self.name or ENGINES[0]) == ENGINES[0]:
            return self.provider or "cpu"
        return f"cuda:{self.options.get('device', 0)}"


def open_engine(path: Path | str, choice: EngineChoice | None = None, verify: bool = True) -> ProgramEngine:
    """Opens a bundle with what runs it; programs are loaded when first asked. `verify` compares every file with its
    SHA-256.

    Raises:
        UnknownNameError: no engine or provider of that name.
        BundleError: no bundle, or one that is damaged, incomplete or of a later schema, or has no engine of that kind.
        UserError: an option that is wrong, or for another engine.
    """
    choice = choice or EngineChoice()
    name = choice.name or ENGINES[0]
    if name not in ENGINES:
        raise UnknownNameError(
            f"unknown engine {one_line(repr(name), 80)}; known are {', '.join(ENGINES)}{did_you_mean(name, ENGINES)}"
        )
    if name == ENGINES[0]:
        if choice.options:
            raise UserError(f"engine options are for {', '.join(KINDS)}, and the engine is {name}; leave them out")
        from lrkit.runtime.engines.onnxruntime.engine import OrtEngine

        return OrtEngine.from_bundle(
            path, choice.provider or "cpu", choice.threads, verify, choice.session_config, choice.provider_options
        )
    names = ("provider", "threads", "session_config", "provider_options")
    given = {name: getattr(choice, name) for name in names}
    if wrong := [key for key, value in given.items() if value is not None]:
        raise UserError(f"{wrong[0]} is for engine onnxruntime, and the engine is {name}; leave it out")
    from lrkit.runtime.engines.tensorrt.engine import TensorRtEngine

    return TensorRtEngine.from_bundle(path, KINDS[ENGINES.index(name) - 1], choice.options, verify)


def parse_options(given: Sequence[str]) -> dict[str, Any]:
    """Engine options from "cuda_graphs=[speak]", "device=1": values as in YAML.

    Raises:
        ConfigError: an option that there is not, or a wrong value.
    """
    if not given:
        return {}
    from lrkit.config import load_config
    from lrkit.runtime.engines.tensorrt.engine import TensorRtOptions

    return load_config(TensorRtOptions, {}, given).model_dump(mode="json", exclude_unset=True)
