"""Bundles of strangers: whole by their digests, and still refused in one sentence before they open, run or answer
anything that no bundle of lrkit would."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from lrkit.contract.bundle.bundle_folder import open_bundle
from lrkit.data.trail import trail_set
from lrkit.errors import BundleError, TimeoutExceeded
from lrkit.evaluate.evaluation import EvalOptions, evaluate
from lrkit.profile.measure.cases import Model, ModelChoice, make_cases
from lrkit.profile.measure.rounds import measure
from lrkit.profile.measure.suite import load_suite
from lrkit.runtime.checks.bundle_check import check_bundle
from lrkit.runtime.sdk import Reasoner
from tests.bundles import QUESTION, picture
from tests.hostile import edit, endless, program, refusal, resign, sentence, without_samples


def link(folder: Path, name: str, target: Path) -> None:
    content = (folder / name).read_bytes()
    if not target.exists():
        target.write_bytes(content)
    (folder / name).unlink()
    (folder / name).symlink_to(target)


def test_a_link_out_of_the_folder(own_bundle: Path, tmp_path: Path) -> None:
    link(own_bundle, "latent.onnx", tmp_path / "elsewhere.onnx")
    assert "latent.onnx is a link that leads out of the bundle" in refusal(own_bundle)


def test_a_link_within_the_folder(own_bundle: Path) -> None:
    link(own_bundle, "prompt.json", own_bundle / "the-prompt.json")
    assert open_bundle(own_bundle)


def test_a_folder_that_leads_out(own_bundle: Path, tmp_path: Path) -> None:
    (own_bundle / "samples").rename(tmp_path / "samples")
    (own_bundle / "samples").symlink_to(tmp_path / "samples")
    with pytest.raises(BundleError, match="is a link that leads out of the bundle"):
        open_bundle(own_bundle)


def test_a_baseline_whose_settings_know_of_latents(own_bundle: Path) -> None:
    """Earlier exports wrote the settings a baseline was trained with; all their bundles were refused as damaged."""

    def change(values: dict[str, Any]) -> None:
        values["programs"]["cot"]["settings"]["think"]["max_latent_steps"] = 9

    edit(own_bundle, change)
    assert Reasoner.load(own_bundle).ask(picture(), QUESTION, mode="cot").latent_steps == 0


def test_a_bundle_reached_by_a_link(own_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(own_bundle)
    assert open_bundle(tmp_path / "linked")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_is_not_waited_for(own_bundle: Path) -> None:
    (own_bundle / "latent.onnx").unlink()
    os.mkfifo(own_bundle / "latent.onnx")
    assert "latent.onnx is no ordinary file" in refusal(own_bundle)


NAMES = {
    "/etc/passwd": "lies outside", "a/../../b": "lies outside", "..\\x": "lies outside", "C:/x": "lies outside",
    "a//b": "is no name", "./a": "is no name", "a/": "is no name", "nul\x00": "is no name", "NUL": "is no name",
    "x/com1.txt": "is no name", "a.": "is no name", "a\n": "is no name", "n" * 300: "is no name", "": "is no name",
    "Bundle.JSON": "names bundle.json itself", "LATENT.onnx": "are one file on some systems",
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_of_files(own_bundle: Path, name: str) -> None:
    edit(own_bundle, lambda values: values["files"].update({name: {"sha256": "0" * 64, "bytes": 1}}))
    assert NAMES[name] in refusal(own_bundle)


def test_settings_that_are_not_listed(own_bundle: Path) -> None:
    edit(own_bundle, lambda values: values["files"].pop("tokenizer_config.json"))
    assert "has a file tokenizer_config.json that bundle.json does not list" in refusal(own_bundle)


def test_a_file_replaced_after_its_digest_was_compared(own_bundle: Path) -> None:
    reasoner = Reasoner.open(own_bundle)
    content = (own_bundle / "latent.onnx").read_bytes()
    (own_bundle / "other").write_bytes(content)
    (own_bundle / "other").replace(own_bundle / "latent.onnx")
    assert "was altered after the bundle was opened; open it again" in sentence(lambda: reasoner.prepare())


NONSENSE: dict[str, tuple[dict[str, Any], str]] = {
    "token": ({"num_tokens": 1, "token_ids": [5_000, 0, 0, 0, 0, 0]}, "5000 in token_ids, where 0 to 63"),
    "negative token": ({"num_tokens": 2, "token_ids": [0, -(2**62), 0, 0, 0, 0]}, "in token_ids, where 0 to 63"),
    "count": ({"num_tokens": 7}, "num_tokens = 7, where 0 to 6 is possible"),
    "negative count": ({"num_tokens": -1}, "num_tokens = -1"),
    "latents": ({"latent_steps": 4}, "latent_steps = 4, where 0 to 3 is possible"),
    "halting": ({"halting": 99}, "halting = 99, where 0 to 3 is possible"),
    "steps": ({"ar_steps": 2**40}, "ar_steps = 1099511627776"),
    "replayed": ({"latent_steps": 1, "ar_steps": 1, "replayed": [[9**9] * 4] * 3}, "in replayed, where -1 to"),
    "replayed below": ({"latent_steps": 3, "ar_steps": 3, "replayed": [[-2] * 4] * 3}, "-2 in replayed"),
    "weights": ({"latent_steps": 1, "ar_steps": 1, "replay_weights": [[np.nan] * 4] * 3}, "no finite numbers"),
    "depths": ({"routed_depths": [[10**9, 0]] * 4}, "1000000000 in routed_depths"),
    "depths of tokens": ({"routed_latents": np.full((3, 2, 5), -3)}, "-3 in routed_latents"),
}


@pytest.mark.parametrize("what", NONSENSE)
def test_a_program_that_answers_nonsense(own_bundle: Path, what: str) -> None:
    given, expected = NONSENSE[what]
    manifest = json.loads((own_bundle / "bundle.json").read_text())
    types = {one["name"]: one["dtype"] for one in manifest["programs"]["latent"]["spec"]["outputs"]}
    program(own_bundle, {name: np.asarray(value, types[name]) for name, value in given.items()})
    reasoner = Reasoner.load(own_bundle, threads=1)
    said = sentence(lambda: reasoner.ask(picture(), QUESTION))
    assert "its program gives " in said and expected in said
    edit(own_bundle, lambda values: values.update(samples=values["samples"][:1]))
    assert expected.partition(",")[0] in sentence(lambda: check_bundle(own_bundle).raise_if_bad())


def test_a_program_that_answers_in_another_shape(own_bundle: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        (shape,) = [node for node in model.graph.node if list(node.output) == ["routed_prompt_1"]]
        shape.input[0] = "patch_picture"  # as many columns as there are patches

    program(own_bundle, change=change)
    reasoner = Reasoner.load(own_bundle, threads=1)
    assert "gives routed_prompt as int64 [2, 160], not int64 [2, " in sentence(
        lambda: reasoner.ask(picture(), QUESTION)
    )


def test_a_program_that_fails_while_it_runs(own_bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    failing = helper.make_node("Reshape", ["input_ids", "wrong"], ["r"])
    count = helper.make_node("ReduceSum", ["r"], ["extra"], keepdims=0)
    shape = helper.make_node("Constant", [], ["wrong"], value=helper.make_tensor("w", TensorProto.INT64, [1], [7]))
    program(own_bundle, nodes=[shape, failing, count])
    reasoner = Reasoner.load(own_bundle, threads=1)
    said = sentence(lambda: reasoner.ask(None, QUESTION))
    assert "latent.onnx: ONNX Runtime cannot run it (" in said and "Reshape" in said
    assert capfd.readouterr().err == "", "what ONNX Runtime says is said once, by lrkit"


def test_a_program_that_asks_for_more_memory_than_there_is(own_bundle: Path) -> None:
    """The size comes from the prompt, so that it is asked for while the program runs."""
    nodes = [
        helper.make_node("ReduceMax", ["input_ids"], ["most"], keepdims=1),
        helper.make_node("Constant", [], ["huge"], value=helper.make_tensor("h", TensorProto.INT64, [1], [1 << 45])),
        helper.make_node("Max", ["most", "huge"], ["size"]),
        helper.make_node("ConstantOfShape", ["size"], ["room"]),
        helper.make_node("ReduceMax", ["room"], ["float"], keepdims=0),
        helper.make_node("Cast", ["float"], ["extra"], to=TensorProto.INT64),
    ]
    program(own_bundle, nodes=nodes)
    reasoner = Reasoner.load(own_bundle, threads=1)
    assert "ONNX Runtime cannot run it (" in sentence(lambda: reasoner.ask(None, QUESTION))


UNLOADABLE: dict[str, Callable[[onnx.ModelProto], object]] = {
    "opset": lambda model: setattr(model.opset_import[0], "version", 9_999),
    "ir": lambda model: setattr(model, "ir_version", 9_999),
    "operator": lambda model: model.graph.node.append(helper.make_node("Nothing", [], ["n"])),
    "domain": lambda model: model.graph.node.append(helper.make_node("Add", [], ["n"], domain="nobody")),
    "cycle": lambda model: model.graph.node.append(helper.make_node("Identity", ["loop"], ["loop"])),
    "missing input": lambda model: model.graph.node.append(helper.make_node("Identity", ["nowhere"], ["n"])),
    "no graph": lambda model: model.ClearField("graph"),
}


@pytest.mark.parametrize("what", UNLOADABLE)
def test_a_program_that_onnx_runtime_refuses(own_bundle: Path, what: str, capfd: pytest.CaptureFixture[str]) -> None:
    program(own_bundle, change=UNLOADABLE[what])
    said = sentence(lambda: Reasoner.load(own_bundle, threads=1))
    assert "latent.onnx: " in said and "copy the bundle again" in said and "[ONNXRuntimeError]" not in said
    assert capfd.readouterr().err == "", "what ONNX Runtime says is said once, by lrkit"


def test_validate_ends_a_program_without_end(own_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrkit.runtime.checks.bundle_check.patience", lambda *_: 0.1)
    endless(own_bundle)
    report = check_bundle(own_bundle)
    assert len(report.problems) == 1, "one sample is enough"
    assert "recorded sample 0: has no answer after many times what its files need" in report.problems[0]


def test_eval_and_profile_end_it_too(own_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrkit.runtime.engines.programs.patience.patience", lambda *_: 0.1)
    endless(own_bundle)
    reasoner = Reasoner.load(own_bundle, threads=1)
    samples = trail_set("main", "test", 2)
    with pytest.raises(TimeoutExceeded, match=r"within the 0.2 s"):
        evaluate(reasoner, samples, EvalOptions(modes=("latent",)))
    suite = load_suite("smoke")
    model = Model(ModelChoice(str(own_bundle)), "x", reasoner, 0.0, None)
    with pytest.raises(TimeoutExceeded, match=r"within the 0.1 s"):
        measure(make_cases([model], suite).cases, samples, suite)


def limit(name: str, value: int) -> Callable[[dict[str, Any]], object]:
    return lambda values: values["limits"].update({name: value})


DECLARED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "picture bytes": (
        lambda v: v["programs"]["latent"]["spec"]["inputs"][2].update(shape=["N", 3 * 10**6]),
        "pictures of 600000000 bytes (max_patches), where at most 536870912 are taken",
    ),
    "patches": (limit("max_patches", 10**12), "limits.max_patches"),
    "tokens": (limit("max_prompt_tokens", 10**12), "limits.max_prompt_tokens"),
    "speech": (limit("max_new_tokens", 2**16), "room for 6 tokens, below its limit max_new_tokens of 65536"),
    "speech beyond": (limit("max_new_tokens", 10**9), "limits.max_new_tokens"),
    "pictures": (limit("max_images", -1), "limits.max_images"),
    "thought": (limit("max_latent_steps", 10**9), "limits.max_latent_steps"),
    "layers": (lambda v: v["programs"]["latent"].update(num_layers=10**12), "programs.latent.num_layers"),
    "routed": (lambda v: v["programs"]["latent"].update(routed_layers=[1, 900]), "beyond its 4 layers"),
    "threads": (lambda v: v.update(defaults={"threads": 10**6}), "defaults.threads"),
    "merge": (lambda v: v.update(patches_per_token=9), "of a visual token is 9, its other files say 4"),
    "family": (lambda v: v.update(family="qwen9"), "unknown backbone 'qwen9'; known: chameleon, "),
    "image token": (lambda v: v["tokens"].update(image=1), "the id of the image token is 1"),
    "end token": (lambda v: v["tokens"].update(eos=64), "64 words, fewer than the ids under tokens say"),
    "digest": (lambda v: v["files"]["cot.onnx"].update(sha256="../../x"), "sha256"),
    "negative bytes": (lambda v: v["files"]["cot.onnx"].update(bytes=-1), "bytes"),
    "samples": (lambda v: v.update(samples=v["samples"] * 20_000), "samples"),
}


@pytest.mark.parametrize("what", DECLARED)
def test_declared_numbers(own_bundle: Path, what: str) -> None:
    change, expected = DECLARED[what]
    edit(own_bundle, change)
    assert expected in sentence(lambda: Reasoner.load(own_bundle, verify=False))


def test_a_declaration_that_exhausts_memory(step_bundle: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(step_bundle, tmp_path / "steps"))

    def grow(values: dict[str, Any]) -> None:
        for one in values["programs"]["latent"]["steps"]["speak"]["spec"]["inputs"]:
            if one["name"] == "key0":
                one["shape"] = [1, 2, 2**30, 8]

    edit(own, grow)
    assert "inputs of 68" in refusal(own) and "where at most" in refusal(own)


STEPS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no prompt": (lambda steps: steps.pop("prompt"), "declares no step prompt"),
    "no speak": (lambda steps: steps.pop("speak"), "declares no step speak"),
    "no thinking": (lambda steps: steps.pop("think"), "which no step gives"),
    "no token": (lambda steps: steps["prompt"]["spec"]["outputs"].pop(13), "a prompt that does not give token"),
    "unknown input": (
        lambda steps: steps["prompt"]["spec"]["inputs"].append(
            {"name": "x", "dtype": "int64", "shape": [1], "meaning": ""}
        ),
        "the input x of its prompt, which nothing gives",
    ),
    "no next token": (lambda steps: steps["speak"]["spec"]["outputs"].pop(0), "that does not give new_token"),
}


@pytest.mark.parametrize("what", STEPS)
def test_steps_that_do_not_fit(step_bundle: Path, tmp_path: Path, what: str) -> None:
    own = Path(shutil.copytree(step_bundle, tmp_path / "steps"))
    change, expected = STEPS[what]
    edit(own, lambda values: change(values["programs"]["latent"]["steps"]))
    assert expected in refusal(own)


def test_a_manifest_of_any_size(own_bundle: Path) -> None:
    (own_bundle / "bundle.json").write_text('{"name": "' + "x" * (9 << 20) + '"}')
    assert "bytes where at most" in refusal(own_bundle)


def test_pixels_that_exhaust_memory(own_bundle: Path) -> None:
    """A picture is never enlarged beyond the limits, whatever the picture settings say."""
    path = own_bundle / "preprocessor_config.json"
    for changes in ({"size": {"shortest_edge": 10**15, "longest_edge": 10**16}}, {"patch_size": 10**6}):
        values = json.loads(path.read_text()) | changes
        path.write_text(json.dumps(values))
        resign(own_bundle)
        without_samples(own_bundle)
        sentence(lambda: Reasoner.load(own_bundle, threads=1).ask(picture(), QUESTION))
