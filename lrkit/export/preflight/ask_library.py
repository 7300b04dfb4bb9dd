"""Asks the library itself whether it takes a program: TensorRT's ONNX parser, which needs no GPU, ONNX Runtime or
OpenVINO.

Place in the pipeline: findings.py compares the answer with what the rules say. Nothing is built, so a refusal that
comes from the builder alone is not seen.
"""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import cast

from lrkit.contract.bundle.manifest import EngineKind
from lrkit.errors import LrkitError, MissingExtraError, clean, one_line
from lrkit.export.preflight.rules import Stage, TargetName
from lrkit.export.preflight.view import View, label
from lrkit.export.tensorrt.device.words import PARTS, place_of
from lrkit.export.tensorrt.process import child_environment
from lrkit.runtime.engines.openvino.library import core
from lrkit.runtime.engines.openvino.library import installed_version as openvino_version
from lrkit.runtime.engines.openvino.library import said as openvino_said
from lrkit.runtime.engines.openvino.reader import parse
from lrkit.runtime.engines.tensorrt.library import PACKAGES, TensorRT, installed_version, load_library

MAJORS: dict[TargetName, int | None] = {"tensorrt-10": 10, "tensorrt-11": 11, "tensorrt-rtx": None}
"""Targets that TensorRT's parser can be asked about -> major version that must be installed; None: any."""
HARMLESS = ("has Int64 binding",)
"""What the parser warns of whatever it is given."""
SECONDS = 600
"""How long a library in a process of its own may take to read a program."""
UNNAMED = "node_of_"
"""The parser calls a node without a name by this and its first output."""


@dataclass(frozen=True)
class Said:
    """One sentence of a library about a node."""

    name: str
    """Full name of the node, as the findings have it; empty where none was said."""
    operator: str
    place: str
    """Part and layer of lrkit's program; empty for a program of another maker."""
    text: str


@dataclass(frozen=True)
class Opinion:
    """What a library says of a program."""

    who: str
    """"parser of tensorrt_rtx 1.7.1.116"."""
    stage: Stage
    """What was tried."""
    takes: bool | None
    """None where it could not be asked."""
    said: tuple[Said, ...]
    """Errors; TensorRT's parser stops at the first."""
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Parsed:
    """What a library said, before its nodes are looked up in the program."""

    takes: bool | None
    said: list[tuple[str, str, str]]
    """(node, operator, text)."""
    warnings: list[str]


def ask(target: TargetName, path: Path, view: View, apart: bool = False) -> Opinion | None:
    """The opinion of the library that stands for the target; None where it is not installed. `apart`: in a process of
    its own, as a program of a stranger may crash the library or make it take all memory."""
    stage: Stage = "load" if target in ("ort", "openvino") else "parse"
    version, who = _library(target)
    if version is None:
        return None
    parsed = _parse_apart(target, path) if apart else _parse(target, path)
    said = tuple(_said(*one, view) for one in parsed.said)
    return Opinion(f"{who} {version}", stage, parsed.takes, () if parsed.takes else said, tuple(parsed.warnings))


def _library(target: TargetName) -> tuple[str | None, str]:
    """(version of what can be asked, None without it; what it is)."""
    if target == "ort":
        return _version("onnxruntime"), "session of onnxruntime"
    if target == "openvino":
        return openvino_version(), "openvino"
    kind, major = _kind(target), MAJORS[target]
    version = installed_version(kind)
    if version is not None and major is not None and int(version.partition(".")[0]) != major:
        version = None
    return version, f"parser of {PACKAGES[kind]}"


def _version(package: str) -> str | None:
    """The imported package's own version, as several distributions bring it."""
    return getattr(import_module(package), "__version__", None)


def _kind(target: TargetName) -> EngineKind:
    return "tensorrt-rtx" if target == "tensorrt-rtx" else "tensorrt"


def _parse(target: TargetName, path: Path) -> Parsed:
    """Asks in this process."""
    if target == "ort":
        return _load_onnxruntime(path)
    if target == "openvino":
        return _load_openvino(path)
    try:
        return _parse_tensorrt(load_library(_kind(target)), path)
    except LrkitError as error:
        return Parsed(None, [("", "", str(error))], [])


def _parse_apart(target: TargetName, path: Path) -> Parsed:
    """Asks in a process of its own."""
    command = [sys.executable, "-P", "-m", __spec__.name, target, str(path.absolute())]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS, env=child_environment()
        )
    except subprocess.TimeoutExpired:
        return Parsed(None, [("", "", f"it gave no answer within {SECONDS} s")], [])
    if done.returncode < 0:
        text = f"its process ended by signal {signal.Signals(-done.returncode).name} while it read the program"
        return Parsed(False, [("", "", text)], [])
    try:
        takes, said, warnings = json.loads(done.stdout)
    except ValueError:
        return Parsed(None, [("", "", one_line(done.stderr.decode("utf-8", "replace")))], [])
    return Parsed(takes, [tuple(one) for one in said], warnings)


def _parse_tensorrt(library: TensorRT, path: Path) -> Parsed:
    trt = library.module
    library.log.take()
    try:
        builder = trt.Builder(library.log)
    except TypeError:  # what the binding raises where the library gives no builder: standard TensorRT without a GPU
        return Parsed(None, [("", "", _first(library.log.take()))], [])
    strongly = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strongly is None else 1 << int(strongly))
    parser = trt.OnnxParser(network, library.log)
    takes = bool(parser.parse_from_file(str(path)))
    errors = [parser.get_error(number) for number in range(parser.num_errors)]
    said = [(str(e.node_name()), str(e.node_operator()), _first(str(e.desc()).strip().splitlines())) for e in errors]
    warnings = [text for text in library.log.warnings if not any(word in text for word in HARMLESS)]
    library.log.take()
    return Parsed(takes, said, warnings)


def _said(name: str, operator: str, text: str, view: View) -> Said:
    plain = name.removeprefix(UNNAMED)
    found = [s for s in view.sites if label(s.node) == name or any(out.name == plain for out in s.node.outputs)]
    place = place_of(name) if name.partition("/")[0] in PARTS else ""
    return Said(found[0].name if found and name else name, operator, place, text)


def _load_onnxruntime(path: Path) -> Parsed:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes have no common base below Exception
        return Parsed(False, [("", "", _first(str(error).splitlines()))], [])
    return Parsed(True, [], [])


def _load_openvino(path: Path) -> Parsed:
    try:
        core().compile_model(parse(path), "CPU")
    except MissingExtraError as error:
        return Parsed(None, [("", "", str(error))], [])
    except Exception as error:  # OpenVINO raises RuntimeError, and its binding others
        return Parsed(False, [("", "", openvino_said(error))], [])
    return Parsed(True, [], [])


def _first(lines: list[str]) -> str:
    return next((clean(line).strip() for line in lines if line.strip()), "it gives no reason")


def _child() -> None:
    """`python -m lrkit.export.preflight.ask_library TARGET FILE`: the answer as JSON on stdout."""
    # The libraries print to stdout too: the real one is kept, and theirs goes to stderr.
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    parsed = _parse(cast(TargetName, sys.argv[1]), Path(sys.argv[2]))
    answer.write(json.dumps([parsed.takes, parsed.said, parsed.warnings]))
    answer.flush()
    os._exit(0)  # without the libraries' own clean-up, which may hang


if __name__ == "__main__":
    _child()
