"""What this machine and this Python have to run lrkit with: what `lrkit doctor` prints, and worth attaching to a
report.

Compares what is installed with what lrkit's own metadata asks for, extra by extra, without importing any of it.
"""

import tomllib
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from lrkit.cores import find_cores
from lrkit.errors import LrkitError
from lrkit.provenance import collect, installed_version, memory_bytes

BASE = "base"
"""Name of what `pip install lrkit` brings, beside the names of the extras."""


@dataclass(frozen=True)
class Part:
    """The base install or an extra, and what it lacks here."""

    name: str
    """base, or the extra's name."""
    installed: dict[str, str]
    """Package -> version, for the requirements that are met."""
    missing: dict[str, str]
    """Package -> what is asked for, and what is there instead."""

    @property
    def present(self) -> bool:
        """Whether every package is there in a version that is allowed."""
        return not self.missing

    @property
    def command(self) -> str:
        """What brings the missing packages."""
        return "pip install --upgrade lrkit" if self.name == BASE else f'pip install "lrkit[{self.name}]"'


def inspect_environment() -> dict[str, Any]:
    """Provenance, cores, memory, ONNX Runtime providers, parts and notes, as plain JSON values."""
    parts = check_parts()
    providers = onnxruntime_providers()
    return {
        **collect(),
        "cores": asdict(find_cores()),
        "memory_bytes": memory_bytes(),
        "onnxruntime_providers": providers,
        "parts": {
            part.name: {**asdict(part), "present": part.present, "command": None if part.present else part.command}
            for part in parts
        },
        "notes": _notes(providers),
    }


def check_parts() -> list[Part]:
    """The base install first, then every extra by name."""
    declared = declared_requirements()
    return [_check(name, _expand(name, declared)) for name in sorted(declared, key=lambda name: (name != BASE, name))]


def declared_requirements() -> dict[str, list[Requirement]]:
    """What lrkit asks for, by part: from the installed package, or from pyproject.toml of a checkout.

    Raises:
        LrkitError: lrkit is neither installed nor run from a checkout.
    """
    try:
        lines = requires("lrkit") or []
    except PackageNotFoundError:
        return _from_pyproject(Path(__file__).resolve().parent.parent / "pyproject.toml")
    parts: dict[str, list[Requirement]] = {BASE: []}
    for line in lines:
        requirement = Requirement(line)
        parts.setdefault(_extra_of(requirement), []).append(requirement)
    return parts


def onnxruntime_providers() -> list[str]:
    """Execution providers of the installed ONNX Runtime, best first; empty where it cannot be imported."""
    try:
        import onnxruntime
    except ImportError:
        return []
    return list(onnxruntime.get_available_providers())


def _from_pyproject(file: Path) -> dict[str, list[Requirement]]:
    if not file.is_file():
        raise LrkitError("lrkit is not installed, so what it needs is not known; pip install lrkit")
    project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
    declared = {BASE: project["dependencies"], **project["optional-dependencies"]}
    return {name: [Requirement(line) for line in lines] for name, lines in declared.items()}


def _extra_of(requirement: Requirement) -> str:
    """The extra in a marker such as `extra == "train"`; the metadata of a wheel has no other place for it."""
    text = str(requirement.marker or "")
    return text.rpartition("extra == ")[2].strip("\"')") if "extra == " in text else BASE


def _expand(part: str, declared: dict[str, list[Requirement]]) -> list[Requirement]:
    """The requirements of a part, with `lrkit[other]` replaced by those of the other part."""
    found: list[Requirement] = []
    for requirement in declared[part]:
        if requirement.name == "lrkit":
            found += [inner for extra in sorted(requirement.extras) for inner in _expand(extra, declared)]
        elif requirement.marker is None or requirement.marker.evaluate({"extra": part}):  # meant for this machine
            found.append(requirement)
    return found


def _check(name: str, requirements: list[Requirement]) -> Part:
    installed: dict[str, str] = {}
    missing: dict[str, str] = {}
    for requirement in requirements:
        version = installed_version(requirement.name)
        if version is not None and requirement.specifier.contains(version, prereleases=True):
            installed[requirement.name] = version
        else:
            wanted = str(requirement.specifier) or "any version"
            missing[requirement.name] = f"{wanted}, {'not installed' if version is None else f'installed is {version}'}"
    return Part(name, installed, missing)


def _notes(providers: list[str]) -> list[str]:
    """Traps that a list of versions does not show."""
    if installed_version("onnxruntime-gpu") and "CUDAExecutionProvider" not in providers:
        # Both packages put their files into the same folder, and the one installed last wins.
        return [
            "onnxruntime-gpu is installed but ONNX Runtime has no CUDA provider: the CPU package overwrote it; "
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"
        ]
    return []
