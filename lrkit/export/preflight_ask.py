"""Asks the library itself whether it takes a program: TensorRT's ONNX parser, which needs no GPU, or ONNX Runtime.

Place in the pipeline: preflight.py compares the answer with what the rules say. Nothing is built: what only the builder
refuses, the parser takes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrkit.errors import LrkitError
from lrkit.export.preflight_graph import View, label
from lrkit.export.rules import Stage, TargetName
from lrkit.export.tensorrt_words import PARTS, place_of
from lrkit.runtime.manifest import EngineKind
from lrkit.runtime.tensorrt_library import PACKAGES, TensorRT, installed_version, load_library

MAJORS: dict[TargetName, int | None] = {"tensorrt-10": 10, "tensorrt-11": 11, "tensorrt-rtx": None}
"""Targets that TensorRT's parser can be asked about -> major version that must be installed; None: any."""
HARMLESS = ("has Int64 binding",)
"""What the parser warns of whatever it is given."""
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


def ask(target: TargetName, path: Path, view: View) -> Opinion | None:
    """The opinion of the library that stands for the target; None where it is not installed."""
    if target == "ort":
        return _ask_onnxruntime(path)
    kind: EngineKind = "tensorrt-rtx" if target == "tensorrt-rtx" else "tensorrt"
    version, major = installed_version(kind), MAJORS[target]
    if version is None or (major is not None and int(version.partition(".")[0]) != major):
        return None
    try:
        return _ask_parser(load_library(kind), path, view)
    except LrkitError as error:
        return Opinion(f"{PACKAGES[kind]} {version}", "parse", None, (Said("", "", "", str(error)),), ())


def _ask_parser(library: TensorRT, path: Path, view: View) -> Opinion:
    trt, who = library.module, f"parser of {PACKAGES[library.kind]} {library.version}"
    library.log.take()
    try:
        builder = trt.Builder(library.log)
    except TypeError:  # what the binding raises where the library gives no builder: standard TensorRT without a GPU
        return Opinion(who, "parse", None, (Said("", "", "", _first(library.log.take())),), ())
    strongly = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strongly is None else 1 << int(strongly))
    parser = trt.OnnxParser(network, library.log)
    takes = bool(parser.parse_from_file(str(path)))
    said = tuple(_said(parser.get_error(number), view) for number in range(parser.num_errors))
    warnings = tuple(text for text in library.log.warnings if not any(word in text for word in HARMLESS))
    library.log.take()
    return Opinion(who, "parse", takes, () if takes else said, warnings)


def _said(error: Any, view: View) -> Said:
    name = str(error.node_name())
    plain = name.removeprefix(UNNAMED)
    found = [s for s in view.sites if label(s.node) == name or any(out.name == plain for out in s.node.outputs)]
    place = place_of(name) if name.partition("/")[0] in PARTS else ""
    text = _first(str(error.desc()).strip().splitlines())
    return Said(found[0].name if found else name, str(error.node_operator()), place, text)


def _ask_onnxruntime(path: Path) -> Opinion:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    who = f"session of onnxruntime {onnxruntime.__version__}"
    try:
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes have no common base below Exception
        return Opinion(who, "load", False, (Said("", "", "", _first(str(error).splitlines())),), ())
    return Opinion(who, "load", True, (), ())


def _first(lines: list[str]) -> str:
    return next((line.strip() for line in lines if line.strip()), "it gives no reason")
