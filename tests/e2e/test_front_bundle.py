"""A bundle with a front, as a host in another language asks it: pixels and words in, two runs of ONNX Runtime."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from lrkit import Reasoner
from lrkit.contract.bundle.bundle_folder import open_bundle
from lrkit.contract.bundle.manifest import digest
from lrkit.data.trail import trail_set
from lrkit.errors import BundleError
from lrkit.export.bundle import export_bundle
from lrkit.runtime.checks.bundle_check import check_bundle
from tests.bundles import QUESTION, TARGET, add_front, picture
from tests.conftest import MadeOnce
from tests.hostile import endless_loop


@pytest.fixture
def front_bundle(bundle: Path, made_once: MadeOnce) -> Path:
    target = TARGET.model_copy(update={"front": True})
    samples = trail_set("main", "test", 2)

    def write(folder: Path) -> Path:
        return export_bundle(bundle.parent / "latent", folder / "front", target, samples, baselines=False).folder

    return made_once("exported-front", write)


def test_two_runs_answer_as_python(front_bundle: Path) -> None:
    manifest = json.loads((front_bundle / "bundle.json").read_text(encoding="utf-8"))
    front, program = (
        onnxruntime.InferenceSession(str(front_bundle / one["file"]))
        for one in (manifest["front"], manifest["programs"]["latent"])
    )
    reasoner = Reasoner.load(front_bundle)
    for number in range(3):
        tokens = reasoner.processor.text_ids(QUESTION, 1)
        made = front.run(None, {"picture": np.asarray(picture(number)), "token_ids": np.array(tokens)})
        feed = dict(zip([one["name"] for one in manifest["front"]["outputs"]], made, strict=True))
        limits = manifest["limits"]
        feed |= {name: np.array(limits[name]) for name in ("max_latent_steps", "max_new_tokens")}
        feed |= {"think": np.array(True), "fixed_latents": np.array(True)}
        ids, count, steps = program.run(["token_ids", "num_tokens", "latent_steps"], feed)
        answer = reasoner.ask(picture(number), QUESTION)
        assert reasoner.processor.decode(ids[:count].tolist()) == answer.text != ""
        assert steps == answer.latent_steps == 3


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes bundle.json."""
    path = bundle / "bundle.json"
    told = json.loads(path.read_text(encoding="utf-8"))
    change(told)
    path.write_text(json.dumps(told), encoding="utf-8")


def replaced(bundle: Path, content: bytes) -> str:
    """What `lrkit validate` says of a bundle with another front, which is listed and whole."""
    front = add_front(bundle) / "front.onnx"
    front.write_bytes(content)
    edit(bundle, lambda told: told["files"].update({front.name: digest(front).model_dump()}))
    (problem,) = check_bundle(bundle).problems
    return problem


def test_a_front_is_checked_with_its_bundle(own_bundle: Path) -> None:
    assert check_bundle(add_front(own_bundle)).problems == []
    edit(own_bundle, lambda told: told["front"].update(least_pixels=1 << 40))
    (problem,) = check_bundle(own_bundle).problems
    assert f"bundle.json says that least_pixels is {1 << 40}, its other files say 64" in problem


def test_a_program_is_no_front(own_bundle: Path) -> None:
    problem = replaced(own_bundle, (own_bundle / "cot.onnx").read_bytes())
    assert "front.onnx: ONNX Runtime cannot run it" in problem


def test_a_front_without_an_end_is_ended(own_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrkit.runtime.checks.front_check.SECONDS", 0.1)
    outputs = json.loads((add_front(own_bundle) / "bundle.json").read_text(encoding="utf-8"))["front"]["outputs"]
    names = [one["name"] for one in outputs]
    kinds = (("picture", TensorProto.UINT8), ("token_ids", TensorProto.INT64))
    inputs = [helper.make_tensor_value_info(name, kind, None) for name, kind in kinds]
    made = [helper.make_tensor_value_info(name, TensorProto.INT64, []) for name in names]
    ends = [helper.make_node("Identity", ["extra"], [name]) for name in names]
    graph = helper.make_graph([*endless_loop("token_ids"), *ends], "front", inputs, made)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    assert "front.onnx: has no end; do not use this bundle" in replaced(own_bundle, model.SerializeToString())


def test_a_front_that_is_not_listed(own_bundle: Path) -> None:
    edit(add_front(own_bundle), lambda told: told["files"].pop("front.onnx"))
    with pytest.raises(BundleError, match=r"has no entry for front.onnx, which a host in another language needs"):
        open_bundle(own_bundle)
