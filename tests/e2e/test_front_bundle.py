"""A bundle with a front, as a host in another language asks it: pixels and words in, two runs of ONNX Runtime."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from lrkit import Reasoner
from lrkit.contract.bundle.bundle_folder import open_bundle
from lrkit.contract.bundle.manifest import digest
from lrkit.data.trail import trail_set
from lrkit.errors import BundleError
from lrkit.export.bundle import export_bundle
from lrkit.runtime.checks.bundle_check import check_bundle
from tests.bundles import QUESTION, TARGET, add_front, picture
from tests.conftest import MadeOnce


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


def test_a_front_is_checked_with_its_bundle(own_bundle: Path) -> None:
    assert check_bundle(add_front(own_bundle)).problems == []
    manifest = own_bundle / "bundle.json"
    told = json.loads(manifest.read_text(encoding="utf-8"))
    told["front"]["least_pixels"] = 1 << 40
    manifest.write_text(json.dumps(told), encoding="utf-8")
    (problem,) = check_bundle(own_bundle).problems
    assert f"bundle.json says that least_pixels is {1 << 40}, its other files say 64" in problem


def test_a_program_is_no_front(own_bundle: Path) -> None:
    """It is listed and whole, and still does not give what programs read."""
    add_front(own_bundle)
    front, manifest = own_bundle / "front.onnx", own_bundle / "bundle.json"
    front.write_bytes((own_bundle / "cot.onnx").read_bytes())
    told = json.loads(manifest.read_text(encoding="utf-8"))
    told["files"]["front.onnx"] = digest(front).model_dump()
    manifest.write_text(json.dumps(told), encoding="utf-8")
    (problem,) = check_bundle(own_bundle).problems
    assert "front.onnx: ONNX Runtime cannot run it" in problem


def test_a_front_that_is_not_listed(own_bundle: Path) -> None:
    add_front(own_bundle)
    manifest = own_bundle / "bundle.json"
    told = json.loads(manifest.read_text(encoding="utf-8"))
    del told["files"]["front.onnx"]
    manifest.write_text(json.dumps(told), encoding="utf-8")
    with pytest.raises(BundleError, match=r"has no entry for front.onnx, which a host in another language needs"):
        open_bundle(own_bundle)
