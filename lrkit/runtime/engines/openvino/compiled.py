"""Reads and compiles one graph of a bundle. Torch-free.

Place in the pipeline: engine.py and an export that compares its programs on OpenVINO -> `compile_graph` -> graph.py.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lrkit.contract.bundle.io_spec import IoSpec
from lrkit.contract.schemes import computed_in
from lrkit.errors import BundleError, UserError
from lrkit.runtime.engines.openvino.brake import add_brake
from lrkit.runtime.engines.openvino.graph import OvGraph, port
from lrkit.runtime.engines.openvino.kept import Kept, ready
from lrkit.runtime.engines.openvino.library import check_device, core, said
from lrkit.runtime.engines.openvino.options import Numbers, OpenVinoOptions, properties
from lrkit.runtime.engines.openvino.reader import differences, read_model


def natural_precision(target: Mapping[str, Any], cpu: bool = True) -> Literal["f16", "f32"]:
    """The number type of products where none was chosen, by OpenVINO's names: that in which the programs of a target
    are written, but on a CPU float32, as ONNX Runtime sums there: in f16 a near tie would replay another token."""
    if cpu:
        return "f32"
    return "f16" if computed_in(target.get("precision"), target.get("activations")) == "fp16" else "f32"


def compile_graph(
    path: Path, spec: IoSpec | None, options: OpenVinoOptions, numbers: Numbers, weights: Path | None = None
) -> OvGraph:
    """The graph in a file of the dialect standard, for the device of `options`; `weights`: the file that holds its
    weights, None: it holds them itself.

    Raises:
        BundleError: OpenVINO refuses it, or it is another than `spec` declares; None: any will do.
        UserError: a device that is not here, a property that OpenVINO refuses, or a cache folder that cannot be used.
        MissingExtraError: OpenVINO is not installed.
    """
    device, folder = check_device(options.device), ready(options.cache)
    model = read_model(path)
    if spec is not None and (found := differences(model, spec)):
        raise BundleError(f"{path}: is not the program that bundle.json declares ({found[0]}); copy the bundle again")
    inputs, outputs = [port(one) for one in model.inputs], [port(one) for one in model.outputs]
    # Other devices hold a copy of their inputs, in which nothing can be set while they run.
    brake = on_cpu(device) and add_brake(model)
    given = properties(options, device, numbers)
    if folder is None:
        return OvGraph(_compile(model, device, path, options, given), path, inputs, outputs, brake)
    kept = Kept(folder, [path] if weights is None else [path, weights], device, given)
    compiled = kept.load()
    if compiled is None:
        compiled = _compile(model, device, path, options, given)
        kept.save(compiled)
    return OvGraph(compiled, path, inputs, outputs, brake)


def on_cpu(device: str) -> bool:
    """Whether OpenVINO's device of that name is the CPU."""
    return device.strip().upper().partition(".")[0] == "CPU"


def _compile(model: Any, device: str, path: Path, options: OpenVinoOptions, given: Mapping[str, Any]) -> Any:
    try:
        return core().compile_model(model, device, dict(given))
    except Exception as error:  # OpenVINO raises RuntimeError, and its binding others
        text = said(error)
        if named := [key for key in options.properties if key in text]:
            raise UserError(
                f"OpenVINO refuses the property {named[0]} = {options.properties[named[0]]} ({text}); correct the "
                "engine's option properties"
            ) from error
        do = "copy the bundle again" if on_cpu(device) else "check the device's driver, or give device=CPU"
        raise BundleError(f"{path}: OpenVINO cannot compile it for {device} ({text}); {do}") from error
