"""Sweeps: which settings are tried, which one is named, and what replay costs against the chain it replaces."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lrkit.cli.shared.profiling import models_and_values
from lrkit.errors import UserError
from lrkit.profile.judge.statistics import summarize_run
from lrkit.profile.judge.sweep import judge_sweep, parse_axes, replay_sentence, with_sweep
from lrkit.profile.measure.choice import check_choice, how_to_export, write_choice
from lrkit.profile.measure.suite import load_suite
from lrkit.runtime.checks.bundle_check import check_bundle
from lrkit.runtime.sdk import Reasoner
from tests.unit.test_profile_statistics import rows


def test_a_sweep_makes_every_combination_and_names_the_fastest_that_is_no_worse() -> None:
    axes = parse_axes(["replay_tokens=0,4", "threads=1,2"])
    suite = with_sweep(load_suite("sweep"), axes)
    assert [run.name for run in suite.runs[2:]] == [
        f"replay_tokens={k},threads={t}" for k in (0, 4) for t in (1, 2)
    ]  # fmt: skip
    runs = []
    for run, (scale, wrong) in zip(suite.runs[2:], ((5, 12), (4, 12), (12, 0), (10, 1)), strict=True):
        made = rows(scale, wrong=wrong)
        raw = [row.to_dict() for row in made]
        runs.append(
            {
                "id": run.name,
                "mode": "latent",
                "settings": run.model_dump(),
                "summary": summarize_run(made, "inside"),
                "rows": raw,
            }
        )
    found = judge_sweep({"runs": runs}, axes)
    assert found["use"] == "replay_tokens=4,threads=2", (
        "half the answers wrong is measurably worse, one in twenty is not"
    )
    assert [point["pareto"] for point in found["points"]] == [False, True, True, True]
    for given, said in (("replay=1", "unknown setting"), ("threads", "no setting"), ("threads=0", "greater than")):
        with pytest.raises(UserError, match=said):
            with_sweep(suite, parse_axes([given]))


def replayed(milliseconds: dict[int, float]) -> dict[str, Any]:
    """A report of a chain of thought and of one latent run per number of replayed tokens."""
    settings = {"name": "cot", "replay_tokens": None, "threads": None}
    runs = [
        {"id": "cot", "mode": "cot", "settings": settings, "rows": [], "summary": summarize_run(rows(20), "inside")}
    ]
    for number, scale in milliseconds.items():
        made = rows(scale)
        runs.append(
            {"id": f"k{number}", "mode": "latent",
             "settings": {"name": f"replay_tokens={number}", "replay_tokens": number},
             "rows": [row.to_dict() for row in made], "summary": summarize_run(made, "inside")}
        )  # fmt: skip
    return {"runs": runs}


@pytest.mark.parametrize("given", ["replay_tokens=a", "replay_tokens=-1", "max_latent_steps=1.5", "threads=0"])
def test_a_value_that_cannot_be_is_said_in_lrkits_own_words(given: str) -> None:
    with pytest.raises(UserError, match=rf"^{given}: .*got .*; input should be [^\[]*$"):
        with_sweep(load_suite("smoke"), parse_axes([given]))


def test_the_number_from_which_replay_costs_more_than_the_chain_is_named() -> None:
    found = judge_sweep(replayed({0: 5, 8: 13, 16: 21, 32: 37}), parse_axes(["replay_tokens=0,8,16,32"]))
    against = found["replay_against_cot"]
    assert against["dearer_from"] == 16
    assert against["break_even_tokens"] == pytest.approx(15, abs=1), (
        "a token costs as much as the chain's base is above"
    )
    assert against["latency_over_cot"]["0"] == pytest.approx(0.25, rel=0.1)
    assert "from 16 replayed tokens a step on" in replay_sentence(against)


def test_a_run_of_the_suite_is_no_point_of_the_sweep() -> None:
    """no-replay of the suite sets what replay_tokens=0 of the sweep sets."""
    report = replayed({0: 5, 8: 6})
    report["runs"][1]["settings"]["name"] = "no-replay"
    found = judge_sweep(report, parse_axes(["replay_tokens=0,8"]))
    assert [point["run"] for point in found["points"]] == ["k8"]


def test_replay_that_stays_cheaper_than_the_chain_is_said_to() -> None:
    found = judge_sweep(replayed({0: 5, 8: 5.5, 16: 6}), parse_axes(["replay_tokens=0,8,16"]))["replay_against_cot"]
    assert found["dearer_from"] is None and found["break_even_tokens"] > 100
    assert "no number tried costs more" in replay_sentence(found)
    alone = judge_sweep(replayed({4: 5}), parse_axes(["replay_tokens=4"]))
    assert alone["replay_against_cot"] is None, "one number shows no slope"


def test_values_are_told_from_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["tiny", "threads=1,2", "samples.0.count=3", "a=b", "./x=y"]
    assert models_and_values(words) == (["tiny", "./x=y"], ["threads=1,2", "samples.0.count=3", "a=b"])
    (tmp_path / "a=b").mkdir()
    assert models_and_values(["a=b", "c=d"]) == (["a=b"], ["c=d"]), "a folder of that name is a model"


def chosen(settings: dict[str, Any], **changed: Any) -> dict[str, Any]:
    """A report whose sweep chose `settings`."""
    sweep = {"use": "x", "why": "the fastest", "points": [{"run": "x", "settings": settings}]}
    made = {"cpu": "some CPU", "num_cpus": 2, "time_utc": "2026-01-01T00:00:00Z", "lrkit": "0.1.0"}
    return {"partial": False, "command": "lrkit profile", "sweep": sweep, "provenance": made, **changed}


def test_what_a_program_has_compiled_in_cannot_be_written(bundle: Path) -> None:
    for models, sweep, said in (
        ([str(bundle), "tiny"], {"threads": [1]}, "into one bundle"),
        (["tiny"], {"threads": [1]}, "into one bundle"),
        ([str(bundle)], {"replay_tokens": [0, 4]}, "compiled in"),
    ):
        with pytest.raises(UserError, match=said):
            check_choice(models, sweep)
    check_choice([str(bundle)], {"replay_tokens": [4], "threads": [1, 2]})
    model = {"replay": {"num_tokens": 4}, "routing": {"depth": 0}}
    assert "set replay.num_tokens: 8 in" in str(how_to_export({"replay_tokens": 8, "threads": 1}, model))
    assert how_to_export({"replay_tokens": 4, "threads": 1}, model) is None


def test_the_choice_is_what_the_sdk_does_until_it_is_asked_otherwise(own_bundle: Path) -> None:
    picture = Image.new("RGB", (24, 16))
    before = Reasoner.load(own_bundle, verify=False).ask(picture, "Start in room 3")
    assert (before.latent_steps, before.halting) == (3, "fixed"), "as the program has it"
    write_choice(own_bundle, chosen({"threads": 1, "max_latent_steps": 1, "replay_tokens": 4}))
    reasoner = Reasoner.load(own_bundle)
    assert reasoner.ask(picture, "Start in room 3").latent_steps == 1
    assert reasoner.ask(picture, "Start in room 3", max_latent_steps=2).latent_steps == 2, "who asks, decides"
    engine: Any = reasoner.engine
    assert engine.sessions.of("latent").get_session_options().intra_op_num_threads == 1
    two: Any = Reasoner.load(own_bundle, threads=2).engine
    assert two.sessions.of("latent").get_session_options().intra_op_num_threads == 2
    assert engine.bundle.manifest.defaults.chosen["why"] == "the fastest"
    report = check_bundle(own_bundle)
    assert report.problems == [] and report.samples == report.same > 0, "recorded samples run as they were recorded"


def test_an_interrupted_sweep_writes_nothing(own_bundle: Path) -> None:
    before = (own_bundle / "bundle.json").read_bytes()
    with pytest.raises(UserError, match="interrupted"):
        write_choice(own_bundle, chosen({"threads": 1}, partial=True))
    assert (own_bundle / "bundle.json").read_bytes() == before


def test_a_device_sheet_that_is_not_there_is_told_before_anything_is_measured() -> None:
    """`--plan nosuch` measured for minutes, then said that there is no such sheet and dropped what it had."""
    from lrkit.errors import UserError
    from lrkit.profile.measure.suite import load_suite
    from lrkit.profile.profile_models import profile_models

    class Untouched:
        def stage(self, name: str) -> None:
            raise AssertionError(f"measuring began: {name}")

        def advance(self, step: int = 1) -> None:
            raise AssertionError("measuring began")

    with pytest.raises(UserError, match="unknown device 'nosuch'"):
        profile_models([], load_suite("smoke"), plan_for=["h100-sxm", "nosuch"], watcher=Untouched())  # pyright: ignore[reportArgumentType]
