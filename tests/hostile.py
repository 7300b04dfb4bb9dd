"""Bundles as a stranger might write them, made from the tests' small real bundle: whole by their digests, and wrong."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from lrkit.contract.bundle.bundle_folder import open_bundle
from lrkit.errors import LrkitError
from lrkit.runtime.sdk import Reasoner

TYPES = {
    "int64": TensorProto.INT64, "float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8, "bool": TensorProto.BOOL,
    "float16": TensorProto.FLOAT16,
}  # fmt: skip


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Alters bundle.json."""
    path = folder / "bundle.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def resign(folder: Path, *more: str) -> None:
    """Writes digests and sizes of the files as they are now, of those listed and of `more`."""

    def change(values: dict[str, Any]) -> None:
        for name in [*values["files"], *more]:
            content = (folder / name).read_bytes()
            values["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}

    edit(folder, change)


def without_samples(folder: Path) -> None:
    """A bundle whose recorded samples are not run again."""
    edit(folder, lambda values: values.update(samples=[]))


def program(
    folder: Path,
    answers: Mapping[str, Any] | None = None,
    nodes: list[onnx.NodeProto] | None = None,
    role: str = "latent",
    change: Callable[[onnx.ModelProto], object] = lambda model: None,
) -> None:
    """Replaces the program of a role: it gives `answers` (output -> value), zeros for the rest; `nodes` make the int64
    scalar `extra`, which is added to num_tokens; `change` alters the model before it is written."""
    spec = json.loads((folder / "bundle.json").read_text())["programs"][role]["spec"]
    made, held = list(nodes or []), []
    for output in spec["outputs"]:
        name, given = output["name"], (answers or {}).get(output["name"])
        sizes = [size if isinstance(size, int) else 1 for size in output["shape"]]
        value = np.zeros(sizes, output["dtype"]) if given is None else np.asarray(given)
        held.append(onnx.numpy_helper.from_array(value, f"{name}_c"))
        if given is None and any(isinstance(size, str) for size in output["shape"]):  # one per token of the prompt
            axes = [f"{name}_{axis}" for axis in range(len(sizes))]
            for axis, size in zip(axes, output["shape"], strict=True):
                if isinstance(size, str):
                    made.append(helper.make_node("Shape", ["input_ids"], [axis]))
                else:
                    held.append(onnx.numpy_helper.from_array(np.array([size], np.int64), axis))
            made += [
                helper.make_node("Concat", axes, [f"{name}_shape"], axis=0),
                helper.make_node("Expand", [f"{name}_c", f"{name}_shape"], [name]),
            ]
        elif name == "num_tokens" and nodes:
            made.append(helper.make_node("Add", [f"{name}_c", "extra"], [name]))
        else:
            made.append(helper.make_node("Identity", [f"{name}_c"], [name]))
    ports = [
        [helper.make_tensor_value_info(one["name"], TYPES[one["dtype"]], one["shape"]) for one in spec[kind]]
        for kind in ("inputs", "outputs")
    ]
    graph = helper.make_graph(made, "hostile", *ports, held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    change(model)
    (folder / f"{role}.onnx").write_bytes(model.SerializeToString())
    resign(folder)


def scalar(name: str, value: int | bool) -> onnx.NodeProto:
    """A node that gives a number."""
    kind = TensorProto.BOOL if isinstance(value, bool) else TensorProto.INT64
    return helper.make_node("Constant", [], [name], value=helper.make_tensor(f"{name}_v", kind, [], [value]))


def endless(folder: Path, role: str = "latent") -> None:
    """A program whose loop never ends."""
    program(folder, nodes=endless_loop("input_ids"), role=role)


def endless_loop(reads: str) -> list[onnx.NodeProto]:
    """Nodes that never come to `extra`, an int64; they read the input `reads`."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Add", ["count", "count"], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("count", TensorProto.INT64, []),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.INT64, []),
        ],
    )
    # The input keeps the loop from being worked out while the program loads.
    first = helper.make_node("ReduceSum", [reads], ["first"], keepdims=0)
    return [scalar("true", True), first, helper.make_node("Loop", ["", "true", "first"], ["extra"], body=body)]


def sentence(act: Callable[[], object]) -> str:
    """What is said of a bundle, in one clean sentence."""
    with pytest.raises(LrkitError) as caught:
        act()
    said = str(caught.value)
    assert "\n" not in said and said.isprintable()
    return said


def refusal(folder: Path, verify: bool = False) -> str:
    """Why the bundle is not opened, whether or not digests are compared."""
    said = sentence(lambda: open_bundle(folder, verify=verify))
    assert said == sentence(lambda: Reasoner.load(folder, verify=False))
    return said
