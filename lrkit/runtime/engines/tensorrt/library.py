"""The one place that knows NVIDIA's packages `tensorrt_rtx` and `tensorrt` (10 and 11), which share one API.

Torch-free; a package is imported when it is asked for.

Place in the pipeline: lrkit/export builds and checks engines through it; lrkit/runtime/engines/tensorrt/engine.py runs
them.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from types import ModuleType
from typing import Any, Protocol, get_args

from lrkit.contract.bundle.manifest import EngineKind
from lrkit.errors import LrkitError, UnknownNameError, did_you_mean, one_line, require

KINDS: tuple[EngineKind, ...] = get_args(EngineKind)
PACKAGES: dict[EngineKind, str] = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
"""Kind -> name of the Python package; the pip extra of lrkit has the kind's name."""


class Log(Protocol):
    """The logger to hand to every object of the package that wants one: an `ILogger` that keeps what it is told."""

    errors: list[str]
    """Texts of the severities INTERNAL_ERROR and ERROR since the last `take`."""
    warnings: list[str]
    """Texts of the severity WARNING since the last `take`."""
    on_text: Callable[[str, str], None] | None
    """Also gets each text of any severity: ("error", "warning", "info" or "verbose", text)."""

    def take(self) -> list[str]:
        """What was said since the last call, errors before warnings; forgets it."""
        ...


@dataclass(frozen=True)
class TensorRT:
    """One of the packages, imported."""

    kind: EngineKind
    module: Any
    """The package itself; NVIDIA ships no types for it."""
    version: str
    """As it names itself: "1.7.1.116"."""
    log: Log
    """The logger of this process: the package honours the first one it is given, so there is one."""

    @property
    def major(self) -> int:
        """First number of the version. An engine runs on the major version that built it."""
        return int(self.version.partition(".")[0])


def load_library(kind: EngineKind) -> TensorRT:
    """Imports the package of that kind, once per process.

    Raises:
        MissingExtraError: it is not installed; the message names the extra.
        LrkitError: it is installed and cannot be loaded, as when its shared libraries are missing.
        UnknownNameError: no such kind.
    """
    if kind not in KINDS:
        raise UnknownNameError(
            f"unknown kind of engine {kind!r}; known are {', '.join(KINDS)}{did_you_mean(kind, KINDS)}"
        )
    with _LOCK:
        return _load(kind)


def installed_version(kind: EngineKind) -> str | None:
    """Version of the package as pip knows it, without importing it; None where it is not installed."""
    for name in (PACKAGES[kind], PACKAGES[kind].replace("_", "-")):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


_LOCK = threading.Lock()


@cache
def _load(kind: EngineKind) -> TensorRT:
    module = _import(kind)
    return TensorRT(kind, module, str(module.__version__), _make_log(module))


def _import(kind: EngineKind) -> ModuleType:
    try:
        return require(PACKAGES[kind], kind)
    except LrkitError:
        raise
    except Exception as error:  # OSError, ImportError, RuntimeError: whatever its loader of shared libraries says
        raise LrkitError(
            f"the package {PACKAGES[kind]} is installed but cannot be loaded ({one_line(error)}); install it again: "
            f'pip install --force-reinstall "lrkit[{kind}]"'
        ) from error


def _make_log(module: Any) -> Log:
    """A logger class can only be made once the package is there to derive it from."""
    names = {
        module.ILogger.INTERNAL_ERROR: "error",
        module.ILogger.ERROR: "error",
        module.ILogger.WARNING: "warning",
        module.ILogger.INFO: "info",
        module.ILogger.VERBOSE: "verbose",
    }

    class Kept(module.ILogger):  # pyright: ignore[reportUntypedBaseClass]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []
            self.on_text: Callable[[str, str], None] | None = None

        def log(self, severity: Any, msg: str) -> None:
            name = names.get(severity, "verbose")
            if name == "error":
                self.errors.append(msg)
            elif name == "warning":
                self.warnings.append(msg)
            if self.on_text is not None:
                self.on_text(name, msg)

        def take(self) -> list[str]:
            said = [*self.errors, *self.warnings]
            self.errors, self.warnings = [], []
            return said

    return Kept()
