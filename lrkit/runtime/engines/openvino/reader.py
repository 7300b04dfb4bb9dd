"""Reads the ONNX file of a program into a model of OpenVINO, and compares it with what was declared. Torch-free.

Place in the pipeline: engine.py and preflight read a program here before they compile it.
"""

from pathlib import Path
from typing import Any

from lrkit.contract.bundle.io_spec import IoSpec
from lrkit.errors import BundleError
from lrkit.runtime.engines.openvino.graph import Port, port
from lrkit.runtime.engines.openvino.library import load_library, said


def read_model(path: Path) -> Any:
    """The `openvino.Model` of an ONNX file.

    Raises:
        BundleError: OpenVINO refuses it.
    """
    try:
        return parse(path)
    except Exception as error:  # OpenVINO raises RuntimeError, and its binding others
        raise BundleError(f"{path}: OpenVINO cannot read it ({said(error)}); copy the bundle again") from error


def parse(path: Path) -> Any:
    """The same, with what OpenVINO itself raises."""
    # By name: `Core.read_model` asks every frontend about a file that is none, and they write to stderr.
    frontend = load_library().frontend.FrontEndManager().load_by_framework("onnx")
    return frontend.convert(frontend.load(str(path)))


def differences(model: Any, spec: IoSpec) -> list[str]:
    """What a model has other than declared; empty where nothing."""
    inputs = [port(one) for one in model.inputs]
    outputs: list[Port] = []
    for number, one in enumerate(model.outputs):
        declared = spec.outputs[number] if number < len(spec.outputs) else None
        if declared is None or declared.name not in one.names:
            outputs.append(port(one))
            continue
        found = port(one, declared.name)
        # OpenVINO knows some sizes less exactly than ONNX's own inference; each answer is checked for them.
        sizes = zip(found.shape, declared.shape, strict=False)
        known = tuple(want if size == "?" else size for size, want in sizes)
        outputs.append(Port(found.name, found.type, known if len(known) == len(declared.shape) else found.shape))
    return spec.differences(inputs, outputs)
