"""`lrkit profile` through the command line, on a tiny random checkpoint and on its bundle."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lrkit.cli.main import main
from lrkit.errors import CapacityError
from lrkit.profile.measure import rounds as loop
from lrkit.profile.measure.cases import Case
from tests.commands import lrkit

SHAPES = Path(__file__).resolve().parents[2] / "profiles" / "shapes"
MODES = {"latent", "cot", "direct"}
FEW = ("samples.0.count=2", "max_new_tokens=6", "phase_samples=1", "gallery=1")


@pytest.fixture(scope="module")
def profiled(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the checkpoint beside the bundle, and of the bundle."""
    folder = tmp_path_factory.mktemp("profile")
    models = (bundle.parent / "latent", bundle)
    assert lrkit("profile", *models, "--suite", "latency", "repeats=2", *FEW, "--threads", 1, "-o", folder) == 0
    return folder


@pytest.fixture(scope="module")
def report(profiled: Path) -> dict[str, Any]:
    return json.loads((profiled / "report.json").read_text())


def runs_of(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {run["id"]: run for run in report["runs"]}


def test_both_engines_are_measured_by_the_same_code(report: dict[str, Any]) -> None:
    runs = runs_of(report)
    assert set(runs) == {
        *(f"latent/{name}" for name in (*MODES, "no-replay", "no-routing")), *(f"bundle/{mode}" for mode in MODES),
    }  # fmt: skip
    assert [len(run["rows"]) for run in runs.values()] == [4] * 8
    assert {item["run"] for item in report["skipped"]} == {
        "latent/fixed", "bundle/fixed", "bundle/no-replay", "bundle/no-routing",
    }  # fmt: skip
    assert [model["engine"] for model in report["models"]] == ["torch", "onnxruntime"]
    assert "direct baseline" in runs["latent/direct"]["note"] and runs["latent/cot"]["note"] is None


def test_every_count_is_the_methods(report: dict[str, Any]) -> None:
    """Three fixed latent steps; six spoken tokens, of which the last, cut by the limit, is not fed back."""
    runs = runs_of(report)
    for name, latents in (("latent", 3), ("cot", 0), ("direct", 0)):
        for engine in ("latent", "bundle"):
            for row in runs[f"{engine}/{name}"]["rows"]:
                assert row["error"] is None and row["latent_steps"] == latents
                assert row["ar_steps"] == latents + row["spoken_tokens"] - (not row["finished"])
    same = [[row["answer"] for row in runs[f"{engine}/latent"]["rows"]] for engine in ("latent", "bundle")]
    assert same[0] == same[1]
    row, without = runs["latent/latent"]["rows"][0], runs["latent/no-replay"]["rows"][0]
    assert (row["replayed_tokens"], without["replayed_tokens"]) == (12, 0)
    assert row["depths"] == runs["bundle/latent"]["rows"][0]["depths"] == {"1": 31, "3": 31}, (
        "8 of each part of the prompt, then 5 of each step"
    )
    assert "depths" not in runs["latent/no-routing"]["rows"][0]


def test_phases_add_up_and_ceilings_stand_beside_them(report: dict[str, Any]) -> None:
    runs = runs_of(report)
    seconds = runs["latent/latent"]["rows"][0]["seconds"]
    assert sum(value for name, value in seconds.items() if name != "total") == pytest.approx(seconds["total"], abs=1e-6)
    assert set(seconds) == {"total", "preprocess", "vision", "prefill", "think", "speak", "other"}
    assert "think" not in runs["latent/cot"]["rows"][0]["seconds"]
    assert runs["bundle/latent"]["summary"]["phase_source"] == "differences"
    assert len(runs["latent/latent"]["rows"][0]["latent_step_seconds"]) == 3
    found = runs["latent/latent"]["ceilings"]
    assert set(found) == {"vision", "prefill", "think", "speak"}
    for phase in found.values():
        assert phase["bytes"] > 0 and phase["flops"] > 0 and phase["binds"] in ("memory", "compute", "overhead")
    assert {"vision", "prefill", "think", "speak"} == set(runs["bundle/latent"]["ceilings"])
    assert report["timer"]["share"] < 0.01
    assert report["energy_source"] in (None, "rapl")


def test_both_engines_count_the_same_work(report: dict[str, Any]) -> None:
    """The same model and lengths: attention, vision and routing are counted for a bundle as for its checkpoint."""
    runs = runs_of(report)
    for phase in ("vision", "prefill", "think", "speak"):
        torch, program = (runs[f"{name}/latent"]["ceilings"][phase]["flops"] for name in ("latent", "bundle"))
        assert program == pytest.approx(torch, rel=1e-6), phase


def test_a_programs_phases_are_differences_of_runs_that_stop_early(report: dict[str, Any]) -> None:
    run = runs_of(report)["bundle/latent"]
    assert run["summary"]["phase_source"] == "differences" and len(run["differences"]) == 1
    entry = run["differences"][0]
    assert len(entry["latent_step_sec"]) == entry["latent_steps"] == 3
    assert sum(entry["latent_step_sec"]) == pytest.approx(entry["think"])
    assert entry["vision"] + entry["prefill"] + entry["think"] == pytest.approx(entry["first_token"])
    fed = run["rows"][0]["ar_steps"] - 3
    assert entry["token_sec"] * fed == pytest.approx(entry["speak"])
    summary = run["summary"]
    assert {"preprocess", "vision", "prefill", "think", "speak", "other"} == set(summary["phases_sec"])
    first, total = summary["first_token_sec"]["median"], summary["latency_sec"]["max"]
    assert entry["first_token"] < first < total, "preprocessing comes before it, the rest of the speech after it"


def test_a_step_bundle_tells_its_phases_itself(step_bundle: Path, tmp_path: Path) -> None:
    given = ("--runs", "latent,direct", "--threads", 1, "-o", tmp_path)
    assert lrkit("profile", step_bundle, *FEW, *given) == 0
    found = runs_of(json.loads((tmp_path / "report.json").read_text()))["latent"]
    assert found["summary"]["phase_source"] == "host"
    row = found["rows"][0]
    assert len(row["latent_step_seconds"]) == row["latent_steps"] == 3
    assert len(row["token_seconds"]) == row["spoken_tokens"] == 6
    assert sum(row["token_seconds"]) <= row["seconds"]["speak"]
    assert {"prefill", "think", "speak", "other"} < set(row["seconds"]) and row["first_token_seconds"] > 0
    assert "vision" in found["summary"]["phases_sec"], "from a run with words in place of the picture"
    assert "timed by the host" in (tmp_path / "report.md").read_text()


def test_the_depth_map_shows_each_token(report: dict[str, Any], profiled: Path) -> None:
    """One extra pass of 5 of the prompt's tokens and of the tokens of three latent steps, in layers 1 and 3."""
    runs = runs_of(report)
    found = runs["latent/latent"]["summary"]["depth_map"]
    assert found == runs["bundle/latent"]["summary"]["depth_map"], "torch and program route the same tokens"
    assert found["layers"] == [1, 3]
    assert [chunk["name"] for chunk in found["chunks"]] == ["prompt", "step 1", "step 2", "step 3"]
    prompt = found["chunks"][0]
    assert prompt["answers"] == 4 and 0 < sum(prompt["visual"]) < len(prompt["visual"])
    assert [len(chunk["passes"][0]) for chunk in found["chunks"][1:]] == [5, 5, 5], "four replayed, then the latent"
    mean = runs["latent/latent"]["summary"]["depths_mean"]["1"]
    tokens = runs["latent/latent"]["rows"][0]["prefilled_tokens"]
    total = sum(prompt["passes"][0]) * tokens / len(prompt["passes"][0])
    total += sum(sum(chunk["passes"][0]) for chunk in found["chunks"][1:])
    assert total == pytest.approx(mean, rel=0.2), "columns of the prompt hold one or two tokens each"
    assert "Routed depth by layer and token" in (profiled / "report.html").read_text()
    assert runs["latent/no-routing"]["summary"]["depth_map"] is None


def test_the_page_needs_nothing_else(profiled: Path) -> None:
    page = (profiled / "report.html").read_text()
    assert len(page) < 2_000_000
    assert "<script" not in page and not re.search(r"(src|href)=[\"'](?!data:)", page) and "url(" not in page
    assert page.count("<svg") > 20 and "prefers-color-scheme:dark" in page and "data:image/png;base64," in page
    text = (profiled / "report.md").read_text()
    assert "bundle/latent" in text and "was skipped: a bundle has its replay built in" in text


def test_a_report_compared_with_itself_is_the_same(profiled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = profiled / "report.json"
    assert lrkit("compare", file, file, "--json", profiled / "compared.json") == 0
    compared = json.loads((profiled / "compared.json").read_text())
    assert {row["verdict"] for row in compared["runs"].values()} == {"same"}
    assert compared["differs"] == {}
    assert "| bundle/cot | same |" in capsys.readouterr().out


def test_a_condition_fails_the_command_after_the_report(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = (bundle, *FEW, "--runs", "latent,cot", "--threads", 1, "-o", tmp_path, "--plan", "l4")
    assert lrkit("profile", *given, "--fail-if", "latent.ar_steps > 1", "--fail-if", "latent.accuracy > 1") == 2
    assert "error: latent.ar_steps > 1 (it is 8)" in capsys.readouterr().err
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["plan"][0]["device"] == "l4" and report["plan"][0]["measured"] is False
    assert report["figures"]["cot_over_latent"]["ar_steps"] < 1


def test_a_failing_answer_is_reported_and_the_others_go_on(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = loop._ask

    def sometimes(case: Case, sample: Any, *others: Any) -> Any:
        if case.id == "cot" and sample.id.endswith("1"):
            monkeypatch.setattr(case.engine, "generate", refuse, raising=False)
        return ask(case, sample, *others)

    def refuse(*_: object) -> None:
        raise CapacityError("too large for this test")

    monkeypatch.setattr(loop, "_ask", sometimes)
    assert lrkit("profile", bundle, *FEW, "phase_samples=0", "repeats=1", "-o", tmp_path) == 0
    runs = runs_of(json.loads((tmp_path / "report.json").read_text()))
    assert runs["cot"]["summary"]["failures"] == 1 and runs["latent"]["summary"]["failures"] == 0
    assert runs["cot"]["rows"][1]["error"] == "CapacityError: too large for this test"
    assert "1 answers failed" in (tmp_path / "report.md").read_text()


def test_ctrl_c_leaves_a_partial_report(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ask, count = loop._ask, iter(range(100))

    def until_stopped(*given: Any) -> Any:
        if next(count) == 5:  # three warm up
            raise KeyboardInterrupt
        return ask(*given)

    monkeypatch.setattr(loop, "_ask", until_stopped)
    assert lrkit("profile", bundle, *FEW, "--threads", 1, "-o", tmp_path) == 130
    assert "interrupted; the report of what was measured" in capsys.readouterr().err
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["partial"] is True
    assert sum(len(run["rows"]) for run in report["runs"]) == 2
    assert "Partial" in (tmp_path / "report.html").read_text()


def test_a_sweep_names_a_setting(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = (bundle.parent / "latent", *FEW, "--runs", "latent", "-o", tmp_path)
    assert lrkit("sweep", *given, "replay_tokens=0,4", "max_latent_steps=1") == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert [point["settings"]["replay_tokens"] for point in report["sweep"]["points"]] == [0, 4]
    assert runs_of(report)["replay_tokens=4,max_latent_steps=1"]["rows"][0]["replayed_tokens"] == 4
    assert f"use {report['sweep']['use']}: the fastest" in capsys.readouterr().out
    assert "accuracy over latency" in (tmp_path / "report.html").read_text()


def test_a_sweep_prunes_a_trained_checkpoint_but_no_bundle(bundle: Path, tmp_path: Path) -> None:
    """With the values that it has built in a bundle can be asked: a sweep over replay_tokens once failed at these."""
    replayed = json.loads((bundle / "bundle.json").read_text())["programs"]["latent"]["settings"]["replay"]
    axes = ("prune_after=0", "prune_keep=0.25,1", f"replay_tokens={replayed['num_tokens']}")
    models = (bundle.parent / "latent", bundle)
    assert lrkit("sweep", *models, *axes, *FEW, "--runs", "latent", "-o", tmp_path) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    runs, skipped = runs_of(report), {item["run"]: item["reason"] for item in report["skipped"]}
    few, all_ = (f"prune_after=0,prune_keep={keep},{axes[-1]}" for keep in (0.25, 1))
    assert {f"latent/{few}", f"latent/{all_}", f"bundle/{all_}"} <= set(runs)
    same = [[row["answer"] for row in runs[f"latent/{name}"]["rows"]] for name in (all_, "latent")]
    assert same[0] == same[1]
    assert "pruning built in" in skipped[f"bundle/{few}"]


def test_a_shape_is_profiled_without_weights_of_its_own(tmp_path: Path) -> None:
    sizes = json.loads((SHAPES / "qwen2-vl-2b.json").read_text())
    tower = {**sizes["config"]["vision_config"], "depth": 1, "embed_dim": 48, "num_heads": 4, "hidden_size": 256}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    small = {"num_hidden_layers": 2, "hidden_size": 256, "intermediate_size": 96, "vision_config": tower, **heads}
    file = tmp_path / "small.json"
    file.write_text(json.dumps({**sizes, "config": {**sizes["config"], **small}, "picture": [112, 112]}))
    given = (f"random:{file}", "forced.cot_tokens=9", "forced.latent_steps=2", "forced.answer_tokens=3")
    assert lrkit("profile", *given, "repeats=1", "--threads", 1, "-o", tmp_path) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    steps = {name: found["rows"][0]["ar_steps"] for name, found in runs_of(report).items()}
    assert steps == {
        "latent": 2 + 2,
        "no-replay": 2 + 2,
        "routing": 2 + 2,
        "cot": 9 + 3 - 1,
        "direct": 3 - 1,
        "follow-up": 2 + 2,
    }
    assert set(runs_of(report)["routing"]["rows"][0]["depths"]) == {"1"}
    assert report["models"][0]["precision"] in report["models"][0]["precision_reason"], "chosen by timing both"
    assert runs_of(report)["latent"]["rows"][0]["correct"] is None, "random weights are not asked to be right"
    assert runs_of(report)["latent"]["rows"][0]["prefilled_tokens"] > (112 // 28) ** 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((), "no model was named"),
        (("random:smolvlm",), "did you mean 'smolvlm-"),
        (("random:smolvlm-256m", "tiny"), "is profiled alone, on a picture of its own; leave tiny out"),
        (("random:smolvlm-256m", "--data", "trail:main"), "leave --data out"),
        (("random:smolvlm-256m", "--engine", "tensorrt"), "runs on torch; leave --engine"),
        (("{bundle}", "--device", "cpu"), "only bundles were named"),
        (("{bundle}", "--engine", "tensorrt-rtx"), "no engine of tensorrt-rtx"),
        (("{bundle}", "--engine", "tensort"), "did you mean 'tensorrt'"),
        (("tiny", "--engine", "tensorrt"), "--engine runs bundles"),
        (("{bundle}", "--runs", "latnt"), "did you mean 'latent'"),
        (("{bundle}", "--suite", "smok"), "did you mean 'smoke'"),
        (("{bundle}", "--plan", "h1000"), "unknown device"),
        (("{bundle}", "--fail-if", "latent is slow"), "write it as in"),
    ],
)
def test_mistakes_are_one_message(
    bundle: Path, tmp_path: Path, given: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [text.replace("{bundle}", str(bundle)) for text in given]
    assert lrkit("profile", *filled, *FEW, "-o", tmp_path) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("error: ") == 1


def test_cuda_graphs_are_refused_where_they_cannot_be(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for model, said in (
        (str(bundle), "TensorRT takes --engine-option cuda_graphs=[speak]"),
        ("tiny", "CUDA graphs are for GPUs"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["profile", model, "--cuda-graphs"])
        assert ended.value.code == 2
        assert said in " ".join(capsys.readouterr().err.split())
