"""Summaries, paired comparisons, verdicts and conditions, on rows made by hand."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from lrkit.config import load_config
from lrkit.errors import ConfigError, DataError, UserError
from lrkit.gpus import GpuMeter
from lrkit.profile.ceilings.devices import DeviceSheet, load_sheet, plan
from lrkit.profile.ceilings.number_types import TypeRate
from lrkit.profile.ceilings.roofline import Rates, Work, ceilings
from lrkit.profile.judge.depth_map import depth_map
from lrkit.profile.judge.statistics import compare_runs, drift, geometric_ratio, summarize_run
from lrkit.profile.measure.conditions import failures, parse_condition
from lrkit.profile.measure.meters import EnergyMeter, MemoryMeter, clock_cost
from lrkit.profile.measure.rounds import Row
from lrkit.profile.measure.suite import Suite, load_suite
from lrkit.profile.pages.comparison import compare_reports, render_comparison, verdict
from lrkit.profile.pages.markdown import table
from lrkit.profile.pages.svg import escape
from lrkit.profile.report_file import read_report
from lrkit.resources import list_resources


def rows(
    scale: float, steps: int = 4, wrong: int = 0, repeats: int = 2, noise: float = 0.02, seed: int = 0
) -> list[Row]:
    """Twenty samples of lengths 1 to 4, `scale` milliseconds per length; the first `wrong` are answered wrongly."""
    rng = random.Random(seed)
    return [
        Row(
            sample=f"s{i}", repeat=repeat, seconds={"total": scale * 1e-3 * (1 + i % 4) * rng.uniform(1, 1 + noise)},
            ar_steps=steps, latent_steps=2, correct=i >= wrong, depths={"1": 3}, halting="decided", finished=True,
        )
        for repeat in range(repeats)
        for i in range(20)
    ]  # fmt: skip


def test_a_failed_answer_is_counted_and_wrong_but_has_no_latency() -> None:
    made = rows(10)
    made[3] = Row("s3", 0, correct=False, error="CapacityError: too large")
    found = summarize_run(made, "inside")
    assert (found["answers"], found["failures"]) == (40, 1)
    assert found["errors"] == {"CapacityError: too large": 1}
    assert found["accuracy"]["correct"] == 19 and found["accuracy"]["total"] == 20
    assert found["latency_sec"]["count"] == 39
    assert found["energy_joule"]["mean"] is None and found["rss_peak_bytes"] is None, "unknown is null, not 0"
    assert found["depths_mean"] == {"1": 3.0}


def test_runs_are_compared_sample_by_sample() -> None:
    found = compare_runs(rows(60, steps=40, wrong=1, seed=1), rows(10, steps=4))
    ratio = found["latency_ratio"]
    assert ratio["low"] <= ratio["value"] <= ratio["high"]
    assert ratio["value"] == pytest.approx(6.0, rel=0.02), "the spread of lengths is not in the ratio"
    assert ratio["high"] - ratio["low"] < 0.2
    assert found["ar_steps_ratio"]["value"] == 10.0
    assert found["accuracy_difference"]["difference"] == pytest.approx(0.05)


def test_time_in_all_weighs_a_chain_by_its_length() -> None:
    """As the steps beside it: question by question, a chain of one step counts as much as one of eight."""
    short, long = (Row(f"s{i}", 0, seconds={"total": seconds}) for i, seconds in enumerate((1.0, 9.0)))
    halves = [Row("s0", 0, seconds={"total": 1.0}), Row("s1", 0, seconds={"total": 1.0})]
    found = compare_runs([short, long], halves)
    assert (found["time_ratio"]["value"], found["latency_ratio"]["value"]) == (5.0, pytest.approx(3.0))


def test_equal_answers_on_few_questions_prove_little() -> None:
    found = compare_runs(rows(60), rows(10))["accuracy_difference"]
    assert found["difference"] == 0.0
    assert found["high"] == -found["low"] == pytest.approx(1 - 0.05 ** (1 / 20))


def test_ratios_without_pairs_or_interval_are_unknown() -> None:
    assert geometric_ratio([], [])["value"] is None
    one = geometric_ratio([2.0], [1.0])
    assert one["value"] == 2.0 and one["low"] is None
    assert verdict(one, 0.03) == "unknown"


def test_phases_by_differences_keep_the_rest() -> None:
    entry = {"vision": 0.001, "prefill": 0.003, "think": 0.002, "speak": 0.001, "latent_steps": 2, "first_token": 0.006}
    entry |= {"latent_step_sec": [0.0015, 0.0005], "token_sec": 0.0005}
    made = [Row(f"s{i}", 0, seconds={"total": 0.01, "preprocess": 0.001}) for i in range(3)]
    found = summarize_run(made, "differences", [entry])
    assert found["latent_step_sec"]["median"] == pytest.approx(0.001)
    assert found["token_sec"]["median"] == 0.0005
    assert found["first_token_sec"]["median"] == pytest.approx(0.007), "preprocessing comes before it"
    assert found["phases_sec"]["other"]["median"] == pytest.approx(0.002)
    without = summarize_run(made, "differences", [])
    assert without["first_token_sec"]["median"] is None and set(without["phases_sec"]) == {"preprocess"}


def test_the_vision_tower_is_taken_out_of_the_hosts_prefill() -> None:
    phases = {"total": 0.01, "preprocess": 0.001, "prefill": 0.004, "think": 0.002, "speak": 0.002, "other": 0.001}
    made = [Row(f"s{i}", 0, seconds=phases, first_token_seconds=0.007) for i in range(3)]
    found = summarize_run(made, "host", [{"vision": 0.0015, "prefill": 0.002}])["phases_sec"]
    assert (found["vision"]["median"], found["prefill"]["median"]) == (0.0015, pytest.approx(0.0025))
    assert "vision" not in summarize_run(made, "host", [])["phases_sec"]


def test_a_depth_map_cuts_long_prompts_into_columns_and_keeps_the_latent_apart() -> None:
    passes = [1] * 50 + [0] * 50
    answers = [{3: [passes, [0, 0, 1]]}, {3: [passes, [1, 0, 1], [1]]}, {}]
    found = depth_map(answers, [[True] * 60 + [False] * 40] * 2 + [[]])
    assert found is not None
    prompt, first, second = found["chunks"]
    assert prompt["tokens"] == [100, 100] and len(prompt["passes"][0]) == len(prompt["visual"]) == 48
    assert prompt["passes"][0][0] == 1 and prompt["passes"][0][-1] == 0 and prompt["visual"][-1] == 0
    assert first["passes"] == [[0.5, 0.0, 1.0]] and first["answers"] == 2
    assert second["passes"] == [[1.0]] and second["answers"] == 1
    assert depth_map([{}], [[]]) is None


def test_drift_is_a_sample_against_itself() -> None:
    made = rows(10, noise=0.0)
    for row in made[20:]:
        row.seconds["total"] *= 1.5
    assert drift(made) == pytest.approx(0.5)
    assert drift(made[:2]) is None


def report(scale: float, seed: int, **other: Any) -> dict[str, Any]:
    made = rows(scale, seed=seed, **other)
    run = {"id": "latent", "threads": 1, "settings": {"threads": 1}, "summary": summarize_run(made, "inside")}
    packages = dict.fromkeys(("torch", "onnxruntime", "transformers"))
    provenance = dict.fromkeys(("lrkit", "git_commit", "python", "cpu", "platform", "num_cpus"), 1)
    return {"runs": [{**run, "rows": [r.to_dict() for r in made]}], "provenance": {**provenance, "packages": packages}}


def test_two_sessions_of_the_same_agree_and_a_slowed_one_is_found() -> None:
    first, again, slow = report(10, 1), report(10, 2), report(12, 3)
    assert compare_reports(first, again)["runs"]["latent"]["verdict"] == "same"
    found = compare_reports(first, slow)
    assert found["runs"]["latent"]["verdict"] == "slower"
    assert compare_reports(slow, first)["runs"]["latent"]["verdict"] == "faster"
    assert "| latent | slower |" in render_comparison(found)


def test_a_change_within_a_sessions_own_drift_is_noise() -> None:
    noisy = report(12, 4)
    noisy["runs"][0]["summary"]["drift"] = 0.3
    assert compare_reports(report(10, 1), noisy)["runs"]["latent"]["verdict"] == "same"


def test_reports_without_a_common_run_cannot_be_compared() -> None:
    other = report(10, 1)
    other["runs"][0]["id"] = "cot"
    with pytest.raises(UserError, match="no run in common"):
        compare_reports(report(10, 1), other)


def test_conditions() -> None:
    figures = {"latent": {"p95_ms": 12.0, "energy_joule": None}, "cot_over_latent": {"latency": 5.0}}
    asked = [parse_condition(text) for text in ("latent.p95_ms > 10", "latent.p95_ms>500", "cot_over_latent.latency<6")]
    assert failures(asked, figures) == ["latent.p95_ms > 10 (it is 12)", "cot_over_latent.latency<6 (it is 5)"]
    for text, said in (
        ("latent.p59_ms > 1", "did you mean"),
        ("cot.p95_ms > 1", "no run 'cot'"),
        ("latent.energy_joule > 1", "unknown"),
    ):
        with pytest.raises(UserError, match=said):
            failures([parse_condition(text)], figures)
    for text in ("latent.p95_ms", "latent > 3", "latent.p95_ms > 1.2.3"):
        with pytest.raises(UserError, match="write it as in"):
            parse_condition(text)


def test_a_report_of_another_kind_or_a_later_schema_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    for content, said in (
        ("{", "not valid JSON"),
        ('{"kind": "eval"}', "no report"),
        ('{"kind": "profile", "schema": 9}', "update"),
    ):
        file.write_text(content)
        with pytest.raises(DataError, match=said):
            read_report(file)
    with pytest.raises(DataError, match="no such file"):
        read_report(tmp_path / "none.json")


def test_names_in_a_report_make_no_cells_links_or_tags() -> None:
    foreign = "a|b <b>[x](http://y) `c` *d*\n# e \x1b[31m"
    page = table(("run", foreign), [[foreign, "1"]])
    assert len(page.splitlines()) == 3
    assert page.splitlines()[2] == r"| a\|b \<b>\[x](http://y) \`c\` \*d\* # e  \[31m | 1 |"
    assert escape(foreign) == "a|b &lt;b&gt;[x](http://y) `c` *d* # e  [31m"


def test_ceilings_name_what_binds() -> None:
    rates = Rates(bytes_per_sec=1e9, flops_per_sec=1e10)
    work = {"prefill": Work(1e6, 1e9), "speak": Work(1e8, 1e6), "vision": Work(1e6, 1e6), "think": Work(1.0, 1.0)}
    phases = {"prefill": {"median": 0.2}, "speak": {"median": 0.4}, "vision": {"median": 0.1}}
    found = ceilings(work, phases, rates, together=False)
    assert (found["prefill"]["binds"], found["prefill"]["share_of_ceiling"]) == ("compute", pytest.approx(0.5))
    assert (found["speak"]["binds"], found["speak"]["share_of_ceiling"]) == ("memory", pytest.approx(0.25))
    assert found["vision"]["binds"] == "overhead"
    assert found["think"]["share_of_ceiling"] is None
    assert {one["share_of_machine"] for one in found.values()} == {None}
    machine = TypeRate("bfloat16", 1e11, "torch")
    beside = ceilings(work, phases, rates, together=False, machine=machine)
    assert beside["prefill"]["machine_type"] == "bfloat16"
    assert beside["prefill"]["share_of_machine"] == pytest.approx(0.05), "arithmetic is ten times as fast"
    assert beside["speak"]["share_of_machine"] == pytest.approx(0.25), "memory is not"
    joined = ceilings(work, phases, rates, together=True)
    assert "vision" not in joined and joined["prefill"]["bytes"] == 2e6


def test_shipped_suites_and_sheets_load() -> None:
    suites = [load_suite(resource.name) for resource in list_resources("suite")]
    shipped = {"smoke", "latency", "accuracy", "sweep", "2b-shape", "shape-bundle"}
    assert {resource.name for resource in list_resources("suite")} >= shipped
    assert all(suite.description and suite.runs[0].mode == "latent" for suite in suites)
    sheets = {resource.name: load_sheet(resource.name) for resource in list_resources("device")}
    assert len(sheets) >= 12
    assert all(sheet.source and (sheet.checked or sheet.unchecked) for sheet in sheets.values())
    work = {"latent": {"speak": Work(3.35e9, 1.0)}}
    assert plan("h100-sxm", sheets["h100-sxm"], work)["least_sec"]["latent"] == pytest.approx(1e-3)
    assert sheets["ryzen-9-7950x"].rates.flops_per_sec is None, "what a sheet does not say only leaves memory to bound"
    with pytest.raises(ConfigError, match="memory_gb_per_sec"):
        load_config(DeviceSheet, {"description": "x", "kind": "gpu", "source": "y"})
    stated = {"description": "x", "kind": "gpu", "source": "y", "memory_gb_per_sec": 1.0}
    with pytest.raises(ConfigError, match="does not state"):
        load_config(DeviceSheet, {**stated, "unchecked": ["int8_tops"]})


def test_suites_refuse_what_contradicts_itself() -> None:
    sets = [{"data": "trail:main", "count": 1}]
    with pytest.raises(ConfigError, match="same name a"):
        load_config(Suite, {"samples": sets, "runs": [{"name": "a", "mode": "cot"}, {"name": "a", "mode": "cot"}]})
    with pytest.raises(ConfigError, match="has mode 'cot'"):
        load_config(Suite, {"samples": sets, "runs": [{"name": "a", "mode": "cot", "replay_tokens": 0}]})
    with pytest.raises(UserError, match=r"no run 'lantent'.*did you mean"):
        load_suite("smoke", only=["lantent"])


def test_energy_counters_that_can_be_read(tmp_path: Path) -> None:
    for zone, value in (("intel-rapl:0", 5_000_000), ("intel-rapl:1", 1_000_000), ("intel-rapl:0:0", 4_000_000)):
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "energy_uj").write_text(str(value))
    meter = EnergyMeter("cpu", tmp_path)
    meter.start()
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("7500000")
    assert (meter.source, meter.stop()) == ("rapl", pytest.approx(2.5))
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("10")
    assert meter.stop() is None, "the counter wrapped around"
    none = EnergyMeter("cpu", tmp_path / "nothing")
    none.start()
    assert (none.source, none.stop()) == (None, None)


def test_a_gpu_that_cannot_be_asked_is_unknown_not_zero() -> None:
    for bus in (None, "ffff:ff:1f.7"):  # not asked for, and no machine's
        gpu = GpuMeter(bus)
        assert gpu.joules() is gpu.total_bytes() is gpu.driver_version() is None
    meter = EnergyMeter("cuda:9999")
    meter.start()
    assert (meter.source, meter.stop()) == (None, None)


def test_memory_growth_is_seen() -> None:
    meter = MemoryMeter()
    meter.start()
    block = bytearray(64 * 2**20)
    block[::4096] = b"x" * len(block[::4096])
    peak, growth = meter.stop()
    assert peak is not None and peak > 64e6
    if growth is not None:  # only Linux lets a process reset its high-water mark
        assert growth > 50e6
    assert 0 < clock_cost() < 1e-4
    assert json.dumps(Row("a", 0, seconds={"total": 0.12345678}).to_dict()["seconds"]) == '{"total": 0.1234568}'
