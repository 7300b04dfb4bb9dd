"""Every script of benchmarks/ runs at its smoke size and writes what it promises.

The training step's once crashed for a week, after pictures had become bytes: no test ran it.
"""

import csv
import json
import re
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lrkit import Reasoner
from lrkit.contract.sample import Sample
from lrkit.runtime.engines.onnxruntime.engine import OrtEngine
from tests.bundles import QUESTION, picture
from tests.ledger_base import write_ledger_base
from tests.small_shape import SHAPE

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(file.stem for file in (ROOT / "benchmarks").glob("*.py"))
Arguments = Callable[[Path, Path], list[object]]
"""From a bundle and a folder of the test's own."""


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Scripts set torch's own number."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: object) -> None:
    """As `python -m benchmarks.NAME`, but in this process, which has torch already."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    monkeypatch.delitem(sys.modules, f"benchmarks.{name}", raising=False)  # where another test has imported it
    try:
        runpy.run_module(f"benchmarks.{name}", run_name="__main__", alter_sys=True)
    except SystemExit as left:
        assert not left.code, f"{name} left with {left.code}"


def soak(folder: Path) -> None:
    report = json.loads((folder / "soak.json").read_text())
    assert report["wrong_answers"] == 0 and report["asks"] == 60 and report["different_questions"] >= 48
    rows = list(csv.DictReader((folder / "soak.csv").read_text().splitlines()))
    assert [int(row["asks"]) for row in rows] == list(range(61)), "one row before the first ask, then one after each"
    assert report["resident_bytes_last"] == int(rows[-1]["resident_bytes"]) > 10_000_000


def cold_start(folder: Path) -> None:
    report = json.loads((folder / "cold_start.json").read_text())
    assert report["install"] is None, "nothing was installed, so nothing is said about it"
    assert report["import_sec"]["count"] == report["first_answer"]["wall_sec"]["count"] == 1
    assert 0 < report["first_answer"]["answer_sec"]["median"] < report["first_answer"]["wall_sec"]["median"]


def dialects(folder: Path) -> None:
    """The program that engines are built from, against the one that is compared with torch; the full report, on more
    pictures and number types, is profiles/reports/dialects.json."""
    report = json.loads((folder / "dialects.json").read_text())
    found = report["variants"]["fp32"]
    assert report["samples"] == 32
    for who, against in found["against_ort"].items():
        assert set(against["same"].values()) == {32} and len(against["same"]) == 5, who
        assert against["first_difference"] == {}, who
        assert max(against["largest_error"].values()) < (0.05 if "bf16" in who else 1e-4), who
    assert 24 < found["right"]["ort"] == found["right"]["standard"], "an untrained model would agree with itself too"
    assert "| fp32 | standard | 32 of 32 |" in (folder / "dialects.md").read_text()


def engines(folder: Path) -> None:
    report = json.loads((folder / "engines.json").read_text())
    assert report["turns"] == report["questions"] == 1
    assert set(report["milliseconds"]) == {f"{a} {b}" for a in ("torch", "fp32", "int4") for b in ("latent", "cot")}
    assert all(0 < low <= middle <= high for low, middle, high in report["milliseconds"].values())


def int4_decode(folder: Path) -> None:
    report = json.loads((folder / "int4_decode.json").read_text())
    (row,) = report["rows"]
    assert (row["threads"], row["prompt_tokens"], report["tokens"], report["repeats"]) == (1, 12, 2, 2)
    assert row["prompt_sec_lrkit"]["median"] > 0 and len(row["token_sec_lrkit"]["values"]) == 2
    assert not any("ratio" in name for name in row), "there was nothing to compare with"


def training_step(folder: Path) -> None:
    """It ends with an error of its own where the two steps differ in loss or gradient."""
    report = json.loads((folder / "training_step.json").read_text())
    assert report["gradient_norms_differ_by"] < 1e-2 and report["pairs"] == 2
    assert set(report["step_sec"]) == {"lrkit", "naive"} and report["speedup"]["median"] > 0


def peer(folder: Path) -> None:
    """Two exporters and two loops, and in float32 the same tokens; the script ends with an error where they differ."""
    report = json.loads((folder / "peer.json").read_text())
    (row,) = report["rows"]
    assert (row["precision"], row["same_tokens"], report["tokens"], report["repeats"]) == ("fp32", True, 3, 2)
    assert row["prompt_sec_lrkit"]["median"] > 0 and row["prompt_sec_peer"]["median"] > 0
    assert len(row["token_ratio"]["values"]) == 2 and row["bytes"]["peer"] > row["bytes"]["lrkit"] > 10_000


def pruning(folder: Path) -> None:
    """Of eight answers some are wrong once three of four visual tokens are gone: they really leave."""
    report = json.loads((folder / "pruning.json").read_text())
    plain, pruned = (row["sets"]["trail:main"]["accuracy"] for row in report["rows"])
    assert [row["keep"] for row in report["rows"]] == [1.0, 0.25] and plain > 0.9 > pruned
    assert "| 1 | 0 | 25.0% |" in (folder / "pruning.md").read_text()


def analysis_cost(folder: Path) -> None:
    report = json.loads((folder / "analysis_cost.json").read_text())
    assert report["recipe"] == "smoke" and report["samples"] == 2 and report["pairs"] >= 2
    assert 0 <= report["share"]["median"] < 1 and report["update_sec"]["median"] > 0


def scenes(folder: Path) -> None:
    (row,) = json.loads((folder / "scenes.json").read_text())["rows"]
    assert row["right"]["first"] == [4, 4] and sum(asked for _, asked in row["right"].values()) == 8
    assert set(row["median_sec"]) == {"first, with the look", "second", "whole prompt"}


def fine_replay(folder: Path) -> None:
    """Three conditions of one update: the teacher teaches, windows are drawn, and nothing is trained twice."""
    report = json.loads((folder / "fine_replay.json").read_text())
    whole, taught, drawn = report["rows"]
    assert [row["condition"] for row in report["rows"]] == ["full", "taught", "random"]
    assert (whole["prompt_visual_tokens"], taught["prompt_visual_tokens"]) == (40, 10) and whole["updates"] == 2
    assert taught["replayed_tokens"] > 0 < drawn["replayed_tokens"] and report["samples"] == 8
    assert set(taught["with_random_windows"]) == {"accuracy", "accuracy_by_seed", "accuracy_by_hops"}
    assert taught["minus"]["random"]["seeds"] == [0] and taught["minus"]["own"] is None
    (times,) = report["times"]
    assert times["whole"]["prefilled_tokens"] - times["closer"]["prefilled_tokens"] == 30 and times["questions"] == 2
    assert times["closer_over_whole"]["count"] == 2 and times["engine"] == "torch"
    assert "| small, then random windows | 1 | 1 |" in (folder / "fine_replay.md").read_text()


def gpu_answers(folder: Path) -> None:
    """The processor stands in for the GPU: every engine, form and look of the script, in the order of its report."""
    report = json.loads((folder / "gpu_answers.json").read_text())
    found = {tuple(name.split("/")[-5:]): row for name, row in report["rows"].items()}
    assert list(found) == [
        ("torch", "fp16", "graphs", "False", "1"), ("torch", "fp16", "eager", "False", "1"),
        *(("onnxruntime", "int4", form, look, "1") for form in ("program", "step") for look in ("False", "True")),
    ]  # fmt: skip
    assert [row.get("reason") for row in found.values()] == [None] * 6
    assert all(row["answer_sec"] > 0 and len(row["seconds"]) == 1 for row in found.values())


def published_plans(folder: Path) -> None:
    """Two sharded rows and two runs of 7B; the full report, of all rows, is profiles/reports/published-plans.json."""
    report = json.loads((folder / "published_plans.json").read_text())
    assert [row["name"] for row in report["rows"]] == ["8 H100, FSDP", "16 x 8 H100, FSDP"]
    assert [row["machines"] for row in report["runs"]] == [1, 2] and report["measured"] is False
    full = json.loads((ROOT / "profiles/reports/published-plans.json").read_text())
    assert report["rows"] == full["rows"][:2] and report["runs"] == full["runs"][:2], "run the benchmark again"


def peer_genai(folder: Path) -> None:
    """Another pipeline and another graph, and in float32 the same tokens."""
    report = json.loads((folder / "peer_genai.json").read_text())
    (row,) = report["rows"]
    assert (row["precision"], row["hint"], row["same_tokens"], row["prompt_tokens"]) == ("fp32", "f32", True, 8)
    assert row["prompt_sec_lrkit"]["median"] > 0 and row["prompt_sec_peer"]["median"] > 0
    assert all(report["versions"].values())


def step_encodings(folder: Path) -> None:
    """An extra pass that is added with a weight changes the model, and gradient reaches what decides on it."""
    report = json.loads((folder / "step_encodings.json").read_text())
    none, some = report["rows"]
    assert (none["size"], none["changed"], none["gradient"]["routers"]) == (0.0, 0.0, 0.0)
    assert none["gradient"]["step_encodings"] > 0 < some["gradient"]["routers"]


def ray_throughput(folder: Path) -> None:
    """Both ways wrote the same rows, or the script ends with an error."""
    report = json.loads((folder / "ray_throughput.json").read_text())
    assert set(report["ways"]) == {"plain", "ray"} and report["rounds"] == report["rate_ratio"]["count"] == 1
    assert all(run["rows_per_sec"] > 0 and run["rows"] == 8 for (run,) in report["runs"].values())


def shape_file(folder: Path) -> Path:
    file = folder / "shape.json"
    file.write_text(json.dumps(SHAPE))
    return file


def quantization(folder: Path) -> None:
    rows = json.loads((folder / "quantization.json").read_text())["rows"]
    assert [row["way"] for row in rows] == ["rtn", "gptq on prompt"]
    assert all(0 < row["phases"]["latent.last"]["mean"] < 0.5 for row in rows)
    assert "gptq on prompt" in (folder / "quantization.md").read_text()


def calibration_size(folder: Path) -> None:
    report = json.loads((folder / "calibration_size.json").read_text())
    assert report["matrices"] == 8 and report["rounds"] == 1 and report["inputs"]["latent"] >= 4 * 4
    assert report["seconds_by_work"].keys() >= {"loading", "calibrating", "rounding"}
    assert report["peak_bytes"] > 1 << 20


def loading(folder: Path) -> None:
    report = json.loads((folder / "loading.json").read_text())
    assert report["same_batches"] and len(report["rows"]) == 8
    assert all(row["first_pass_sec"] > 0 and 0 <= row["waiting_share"] <= 1 for row in report["rows"])
    assert "the same batches" in (folder / "loading.md").read_text()


def words_peers(folder: Path) -> None:
    """Two processes in turns; the first is what both are held to."""
    report = json.loads((folder / "words_peers.json").read_text())
    ours, again = report["rows"].values()
    assert ours["token_ratio"]["values"] == [1.0, 1.0] and len(again["first_ratio"]["values"]) == 2
    assert ours["first_sec"]["median"] > 0 and again["first_sec"]["median"] > 0


def plan_memory(folder: Path) -> None:
    """Of a run this small, what no plan counts is as large as what it does."""
    report = json.loads((folder / "plan_memory.json").read_text())
    (row,) = report["rows"]
    assert row["planned_bytes"] > sum(row["planned"][name] for name in ("weights", "optimizer", "pictures")) > 1e7
    assert 0.3 < row["ratio"] < 1.3 and row["measured_low"] > 1e7


def shard_memory(folder: Path) -> None:
    """Two processes with their parts; of weights this small, what no plan counts is as large as what it does."""
    report = json.loads((folder / "shard_memory.json").read_text())
    (row,) = report["rows"]
    assert row["processes"] == 2 and row["shard"] and row["planned"]["masters"] == 0 < row["planned"]["arriving"]
    assert 0.3 < row["ratio"] < 1.3 and 4 * row["trained"] < row["measured_low"] <= row["measured_high"]


def visual_positions(folder: Path) -> None:
    """Two updates of each scheme; the first sees the same tables with the same weights, at other places."""
    report = json.loads((folder / "visual_positions.json").read_text())
    counted, by_rows = report["rows"].values()
    assert len(counted) == len(by_rows) == 2
    assert counted[0]["loss"] != by_rows[0]["loss"] and abs(counted[0]["loss"] / by_rows[0]["loss"] - 1) < 0.1


SMOKE: dict[str, tuple[Arguments, Callable[[Path], None]]] = {
    "soak": (lambda bundle, folder: [bundle, "--output", folder / "soak"], soak),
    "cold_start": (lambda bundle, folder: [bundle, "--json", folder / "cold_start.json"], cold_start),
    "dialects": (lambda bundle, folder: ["--json", folder / "dialects.json"], dialects),
    "engines": (lambda bundle, folder: [bundle, bundle, "--output", folder / "engines.json"], engines),
    "int4_decode": (lambda bundle, folder: [bundle, "--json", folder / "int4_decode.json"], int4_decode),
    "training_step": (lambda bundle, folder: ["--json", folder / "training_step.json"], training_step),
    "pruning": (lambda bundle, folder: ["--json", folder / "pruning.json"], pruning),
    "step_encodings": (lambda bundle, folder: ["--json", folder / "step_encodings.json"], step_encodings),
    "ray_throughput": (lambda bundle, folder: [bundle, "--json", folder / "ray_throughput.json"], ray_throughput),
    "quantization": (lambda bundle, folder: ["tiny", "--json", folder / "quantization.json"], quantization),
    "calibration_size": (
        lambda bundle, folder: [shape_file(folder), "--block", 32, "--json", folder / "calibration_size.json"],
        calibration_size,
    ),
    "loading": (lambda bundle, folder: ["--json", folder / "loading.json"], loading),
    "analysis_cost": (lambda bundle, folder: ["--json", folder / "analysis_cost.json"], analysis_cost),
    "scenes": (lambda bundle, folder: ["--json", folder / "scenes.json"], scenes),
    "fine_replay": (
        lambda bundle, folder: ["--folder", folder / "runs", "--json", folder / "fine_replay.json"],
        fine_replay,
    ),
    "gpu_answers": (
        lambda bundle, folder: ["--models", bundle.parent / "latent", "--json", folder / "gpu_answers.json"],
        gpu_answers,
    ),
    "plan_memory": (lambda bundle, folder: ["--json", folder / "plan_memory.json"], plan_memory),
    "shard_memory": (lambda bundle, folder: ["--json", folder / "shard_memory.json"], shard_memory),
    "published_plans": (lambda bundle, folder: ["--json", folder / "published_plans.json"], published_plans),
    "peer": (lambda bundle, folder: ["--json", folder / "peer.json"], peer),
    "words_peers": (
        lambda bundle, folder: [
            *(bundle, f"{bundle}/", "--question", "Take 3 hops. Which room are you in? Start in room 3"),
            *("--json", folder / "words_peers.json"),
        ],
        words_peers,
    ),
    "visual_positions": (
        lambda bundle, folder: [
            *(write_ledger_base(folder / "base"), "--float32", "--schemes", "2,3,3"),
            *("--json", folder / "visual_positions.json"),
        ],
        visual_positions,
    ),
    "peer_genai": (lambda bundle, folder: ["--json", folder / "peer_genai.json"], peer_genai),
}
NEEDS = {"peer_genai": ("openvino_genai", "nncf"), "ray_throughput": ("ray",)}
"""Packages beside lrkit's own extras; skipped without them."""
LONG = {"peer", "plan_memory", "shard_memory", "gpu_answers", "fine_replay"}
"""Their smoke size takes too long for the default tests."""
PART_OF = {
    "fine_replay_times": "fine_replay",
    "naive_step": "training_step",
    "peer_model": "peer",
    "peer_genai_model": "peer_genai",
}
"""Run by another script."""
RUN_ELSEWHERE = {
    "answer_costs": "unit/test_answer_costs.py",
    "routed_depth": "unit/test_ablate.py",
    "perplexity": "parity/test_perplexity.py",
}
"""Script -> the test that runs it on a small model."""
MEASURES_NOTHING = {"tables", "sceptic", "depth", "plan_tables", "probe_table", "shape_tables", "woven_base"}
"""Render reports, the tables of some, and write a model; tests/unit/test_tables.py and test_woven.py run them."""


def test_every_script_is_run() -> None:
    assert {*SMOKE, *PART_OF, *RUN_ELSEWHERE, *MEASURES_NOTHING} == set(SCRIPTS) and set(PART_OF.values()) <= set(SMOKE)
    for name, test in RUN_ELSEWHERE.items():
        assert re.search(rf"from benchmarks import .*\b{name}\b", (ROOT / "tests" / test).read_text())
    for name, whole in PART_OF.items():
        assert f"benchmarks.{name} import" in (ROOT / "benchmarks" / f"{whole}.py").read_text()


MARKS = {"dialects": pytest.mark.long, "ray_throughput": pytest.mark.long, **dict.fromkeys(LONG, pytest.mark.slow)}


@pytest.mark.parametrize("name", [pytest.param(name, marks=MARKS.get(name, ())) for name in SMOKE])
def test_a_script_runs_at_its_smoke_size(
    name: str, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in NEEDS.get(name, ()):
        pytest.importorskip(package)
    arguments, holds = SMOKE[name]
    run(monkeypatch, name, *arguments(bundle, tmp_path), "--smoke")
    holds(tmp_path)


@pytest.mark.slow
def test_each_side_of_the_training_step_runs_in_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that peak memory is each side's own: the naive one's is larger."""
    run(monkeypatch, "training_step", "--pairs", 2, "--json", tmp_path / "training_step.json")
    training_step(tmp_path)
    report: dict[str, Any] = json.loads((tmp_path / "training_step.json").read_text())
    assert report["peak_bytes"]["lrkit"] < report["peak_bytes"]["naive"]


def test_the_committed_comparison_holds() -> None:
    report = json.loads((ROOT / "profiles/reports/dialects.json").read_text())
    assert report["samples"] >= 500 and set(report["variants"]) >= {"fp32", "fp16", "int4"}
    for who in ("standard", "OpenVINO, f32"):
        assert set(report["variants"]["fp32"]["against_ort"][who]["same"].values()) == {report["samples"]}


def test_words_are_timed_on_the_weights_made_for_them(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The latent weights once answered in their stead, in as few words as they think steps."""
    asked: list[tuple[str, str]] = []
    generate = OrtEngine.generate

    def noted(self: OrtEngine, prompts, options, on_token=None):
        asked.append((self.role, options.mode))
        return generate(self, prompts, options, on_token)

    monkeypatch.setattr(OrtEngine, "generate", noted)
    engines = runpy.run_path(str(ROOT / "benchmarks" / "engines.py"))
    sample = Sample(images=(picture(),), question=QUESTION, steps=(), answer="")
    engines["measure_turn"]({"fp32": Reasoner.load(bundle)}, [sample])
    assert set(asked) == {("latent", "latent"), ("cot", "cot")}
