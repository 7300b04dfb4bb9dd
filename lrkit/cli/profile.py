"""`lrkit profile MODEL...`: what latent reasoning buys on this device, as report.json, report.md and report.html.

Also compares two reports, and fails on a figure, for CI.
"""

import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from lrkit.cli.shared.console import STDOUT, beside_json
from lrkit.cli.shared.download import Download
from lrkit.cli.shared.progress import ProfileProgress
from lrkit.cli.shared.tables import json_option, milliseconds, number, percent, write_json
from lrkit.errors import LrkitError, UserError
from lrkit.files import check_writable

if TYPE_CHECKING:
    from lrkit.profile.judge.sweep import Axes
    from lrkit.profile.measure.cases import Model, ModelChoice
    from lrkit.profile.measure.conditions import Condition
    from lrkit.profile.measure.suite import Suite
    from lrkit.profile.report import Report

EXAMPLES = """
Examples:

    lrkit profile tiny

    lrkit profile tiny my-bundle --suite latency --threads 2 -o runs/profile

    lrkit profile my-bundle --runs latent,cot --fail-if "latent.p95_ms > 500"

    lrkit profile tiny --suite sweep --sweep replay_tokens=0,4,16 threads=1,2

    lrkit profile my-bundle --suite sweep --sweep max_latent_steps=2,4,8 threads=1,2 --write-choice

    lrkit profile tiny --plan jetson-orin-nx-16gb --plan h100-sxm

    lrkit profile --shape smolvlm-256m --random-weights --dtype bfloat16

    lrkit profile --shape qwen2-vl-2b --random-weights --suite gpu-shape --device cuda --cuda-graphs

    lrkit profile --compare before/report.json after/report.json
"""


def profile(
    models: Annotated[list[str] | None, typer.Argument(help="Bundles, checkpoints, or shipped names.")] = None,
    suite: Annotated[str | None, typer.Option(help="A name of `lrkit ls suite`, or a file; default smoke.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="A value of the suite, as repeats=5.")] = None,
    runs: Annotated[str, typer.Option(help="Only these runs of the suite, separated by commas.")] = "",
    data: Annotated[str | None, typer.Option(help="Questions of this .jsonl file or trail set instead.")] = None,
    device: Annotated[str | None, typer.Option(help="Checkpoints: cpu, cuda or cuda:0.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Checkpoints: float32, bfloat16 or float16.")] = None,
    engine: Annotated[str | None, typer.Option(help="Bundles: onnxruntime, tensorrt-rtx or tensorrt.")] = None,
    engine_option: Annotated[list[str] | None, typer.Option(help="TensorRT: KEY=VALUE, as device=1; repeat.")] = None,
    provider: Annotated[str | None, typer.Option(help="ONNX Runtime: cpu, cuda, tensorrt, ...")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of one operator.")] = None,
    cuda_graphs: Annotated[bool, typer.Option("--cuda-graphs", help="Checkpoints on a GPU: record steps.")] = False,
    sweep: Annotated[list[str] | None, typer.Option(help="Settings to try, as replay_tokens=0,4,8; repeat.")] = None,
    write_choice: Annotated[bool, typer.Option("--write-choice", help="Write what --sweep names into it.")] = False,
    plan: Annotated[list[str] | None, typer.Option(help="Least times on this device, by datasheet; repeat.")] = None,
    shape: Annotated[str | None, typer.Option(help="A name of `lrkit ls shape`, random weights; no model.")] = None,
    random_weights: Annotated[bool, typer.Option("--random-weights", help="Says that --shape has no others.")] = False,
    cot_tokens: Annotated[int | None, typer.Option(min=1, help="--shape: spoken tokens of the reasoning.")] = None,
    latent_steps: Annotated[int | None, typer.Option(min=0, help="--shape: latent steps.")] = None,
    answer_tokens: Annotated[int | None, typer.Option(min=1, help="--shape: spoken tokens of the answer.")] = None,
    budget: Annotated[float | None, typer.Option(min=1, help="Begin no further repeat after these seconds.")] = None,
    fail_if: Annotated[list[str] | None, typer.Option(help="Exit code 2 if it holds; repeat.")] = None,
    compare: Annotated[tuple[Path, Path] | None, typer.Option(help="Compare two report.json; no model.")] = None,
    download: Download = False,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the report.")] = Path("runs/profile"),
    json_file: Annotated[Path | None, json_option("Write the report, or comparison, here too.")] = None,
) -> None:
    """Measure accuracy, steps, latency by phase, memory and ceilings of all modes on the same questions."""
    from lrkit.profile.judge.sweep import parse_axes
    from lrkit.profile.measure.cases import ModelChoice
    from lrkit.profile.measure.choice import check_choice
    from lrkit.profile.measure.conditions import parse_condition
    from lrkit.runtime.engines.table import parse_options

    conditions = [parse_condition(text) for text in fail_if or []]
    if compare is not None:
        return _compare(*compare, json_file, models or [])
    check_writable(output, folder=True)
    forced = _forced(cot_tokens, latent_steps, answer_tokens, budget)
    models, sweep = _settings_after_sweep(models or [], sweep or [])
    if write_choice:
        check_choice(models, parse_axes(sweep))
    asked = _suite(suite or ("2b-shape" if shape else "smoke"), [*(overrides or []), *forced], runs, data)
    options = parse_options(engine_option or [])
    wanted = ModelChoice(shape or "", device, provider, threads, dtype, engine, options, cuda_graphs)
    choices = _choices(models, wanted) if shape is None else [_shape(wanted, random_weights, models, data)]
    report = _measure(choices, asked, sweep, plan or [], shape)
    _finish(report, conditions, output, json_file, models[0] if write_choice else None)


def _settings_after_sweep(models: list[str], sweep: list[str]) -> tuple[list[str], list[str]]:
    """`--sweep a=1,2 b=3` leaves `b=3` among the models; several settings in one text are taken apart too."""
    settings = [word for text in sweep for word in text.split()]
    if not settings:
        return models, settings
    more = [word for word in models if re.match(r"\w+=", word) and not Path(word).exists()]
    return [word for word in models if word not in more], settings + more


def _forced(
    cot_tokens: int | None, latent_steps: int | None, answer_tokens: int | None, budget: float | None
) -> list[str]:
    """As values of the suite."""
    wanted = {
        "forced.cot_tokens": cot_tokens, "forced.latent_steps": latent_steps, "forced.answer_tokens": answer_tokens,
        "budget_sec": budget,
    }  # fmt: skip
    return [f"{name}={value}" for name, value in wanted.items() if value is not None]


def _shape(wanted: "ModelChoice", random_weights: bool, models: list[str], data: str | None) -> "ModelChoice":
    """`wanted`, if it can be."""
    if not random_weights:
        raise UserError(f"--shape {wanted.path} has no weights; add --random-weights to profile it with random ones")
    if models or data:
        raise UserError("--shape is profiled alone, on a picture of its own; leave models and --data out")
    if wanted.engine or wanted.engine_options or wanted.provider:
        raise UserError("--shape runs on torch; leave --engine and --provider out, or export a bundle of that shape")
    return wanted


def _finish(
    report: "Report", conditions: "list[Condition]", output: Path, json_file: Path | None, bundle: str | None
) -> None:
    """Writes and prints the report, writes its choice into the bundle, then says what must not pass."""
    from lrkit.profile.measure.choice import write_choice
    from lrkit.profile.measure.conditions import failures

    _save(report, output, json_file)
    if bundle is not None and not report["partial"]:
        kept = write_choice(bundle, report).model_dump(exclude={"chosen"}, exclude_none=True)
        said = f"{bundle}: asked from now on with {', '.join(f'{key} {value}' for key, value in kept.items())}"
        beside_json(json_file, soft_wrap=True).print(said)
    if report["partial"]:
        raise KeyboardInterrupt(f"interrupted; the report of what was measured is in {output}")
    if found := failures(conditions, report["figures"]):
        raise LrkitError("; ".join(found))


def _choices(models: list[str], asked: "ModelChoice") -> "list[ModelChoice]":
    """`asked` for each model; each option goes to the kind of model it is for, and must fit at least one."""
    from lrkit.contract.bundle.folder import is_bundle

    if not models:
        raise UserError("no model was named; give a bundle, a checkpoint or a shipped name, as in lrkit profile tiny")
    kinds = [is_bundle(model) for model in models]
    if asked.provider is not None and not any(kinds):
        raise UserError("--provider is for bundles, and none was named; give --device for a checkpoint")
    if (asked.engine is not None or asked.engine_options) and not any(kinds):
        raise UserError("--engine runs bundles, and none was named; export the checkpoint first, or leave it out")
    if (asked.device is not None or asked.dtype is not None) and all(kinds):
        raise UserError("--device and --dtype are for checkpoints, and only bundles were named; give --provider")
    if asked.cuda_graphs and all(kinds):
        raise UserError("--cuda-graphs is for checkpoints; TensorRT takes --engine-option cuda_graphs=[speak] instead")
    of_bundles = replace(asked, device=None, dtype=None, cuda_graphs=False)
    of_checkpoints = replace(asked, provider=None, engine=None, engine_options={})
    return [
        replace(of_bundles if bundle else of_checkpoints, path=model)
        for model, bundle in zip(models, kinds, strict=True)
    ]


def _suite(name: str, overrides: list[str], runs: str, data: str | None) -> "Suite":
    from lrkit.profile.measure.suite import load_suite

    asked = [] if data is None else [f"samples.0.data={data}"]
    only = [run.strip() for run in runs.split(",") if run.strip()]
    return load_suite(name, [*asked, *overrides], only)


def _measure(
    choices: "list[ModelChoice]", suite: "Suite", sweep: list[str], plan: list[str], shape: str | None
) -> "Report":
    from lrkit.contract.settings import ReasonerSettings
    from lrkit.data.shapes import shape_samples
    from lrkit.profile.judge.sweep import parse_axes
    from lrkit.profile.measure.shape_model import open_shape
    from lrkit.profile.run import profile_models

    axes: Axes | None = parse_axes(sweep) if sweep else None
    command = shlex.join(["lrkit", *sys.argv[1:]]) if sys.argv[1:2] == ["profile"] else ""
    count = sum(chosen.count for chosen in suite.samples)
    samples = None if shape is None else shape_samples(shape, count)
    with ProfileProgress(count * suite.repeats) as progress:
        opened: list[ModelChoice | Model] = [*choices]
        if shape is not None:
            progress.stage(f"making {shape} with random weights")
            opened = [open_shape(shape, ReasonerSettings(), choices[0])]
        return profile_models(
            opened, suite, command=command, plan_for=plan, axes=axes, samples=samples, watcher=progress
        )


def _save(report: "Report", folder: Path, json_file: Path | None) -> None:
    from lrkit.profile.judge.sweep import replay_sentence
    from lrkit.profile.measure.choice import chosen_settings, how_to_export
    from lrkit.profile.report_file import write_report
    from lrkit.profile.run import save

    files = save(report, folder)
    if json_file == STDOUT:
        write_json(json_file, report)
    elif json_file is not None:
        write_report(report, json_file)
    console = beside_json(json_file, soft_wrap=True)
    table = Table(title="runs", title_justify="left")
    table.add_column("run", overflow="fold")
    for name in ("right", "AR steps", "latent", "median", "p95", "failed"):
        table.add_column(name, justify="right")
    for run in report["runs"]:
        s = run["summary"]
        figures = [percent(s["accuracy"]["value"]), number(s["ar_steps"]["mean"]), number(s["latent_steps"]["mean"])]
        times = [milliseconds(s["latency_sec"][key]) for key in ("median", "p95")]
        table.add_row(run["id"], *figures, *times, f"{s['failures']} of {s['answers']}")
    console.print(table)
    for item in report["skipped"]:
        console.print(f"{item['run']} was skipped: {item['reason']}")
    for sentence in report["headlines"]:
        console.print(sentence)
    if report["sweep"]:
        console.print(f"use {report['sweep']['use']}: {report['sweep']['why']}")
        settings = report["models"][0]["settings"]
        if report["sweep"]["use"] and (how := how_to_export(chosen_settings(report["sweep"]), settings)):
            console.print(how)
        if report["sweep"]["replay_against_cot"]:
            console.print(replay_sentence(report["sweep"]["replay_against_cot"]))
    console.print("report: " + ", ".join(str(file) for file in files))


def _compare(before: Path, after: Path, json_file: Path | None, models: list[str]) -> None:
    if models:
        raise UserError(f"--compare reads two reports and measures nothing; leave {models[0]} out")
    from lrkit.profile.pages.compare import compare_reports, render_comparison
    from lrkit.profile.report_file import read_report

    compared = compare_reports(read_report(before), read_report(after))
    beside_json(json_file, soft_wrap=True).print(render_comparison(compared))
    write_json(json_file, compared)
