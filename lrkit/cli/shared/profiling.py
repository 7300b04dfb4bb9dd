"""What `lrkit profile` and `lrkit sweep` measure: models and suite from their words and options, and the measuring."""

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrkit.cli.shared.progress import ProfileProgress
from lrkit.errors import LrkitError, UserError
from lrkit.resources import random_shape

if TYPE_CHECKING:
    from lrkit.profile.judge.sweep import Axes
    from lrkit.profile.measure.cases import Model, ModelChoice
    from lrkit.profile.measure.conditions import Condition
    from lrkit.profile.measure.suite import Suite
    from lrkit.profile.report import Report

SuiteName = Annotated[str | None, typer.Option("--suite", help="A name of `lrkit ls suite`, or a file.")]
Runs = Annotated[str, typer.Option(help="Only these runs of the suite, separated by commas.")]
Data = Annotated[str | None, typer.Option(help="Questions of this .jsonl file or trail set instead.")]
Plan = Annotated[list[str] | None, typer.Option(help="Least times on this device, by datasheet; repeat.")]
FailIf = Annotated[list[str] | None, typer.Option(help="Exit code 2 if it holds, as latent.p95_ms > 500; repeat.")]
Output = Annotated[Path, typer.Option("-o", "--output", help="Folder of the report.")]
FOLDER = Path("runs/profile")
MODELS = "Bundles, checkpoints or shipped names; or random:SHAPE, a shape of `lrkit ls shape` with random weights."


def models_and_values(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Words without KEY= before them are models, and so is a file of such a name."""
    values = [word for word in words if re.match(r"[\w.]+=", word) and not Path(word).exists()]
    return [word for word in words if word not in values], values


def choose_suite(name: str, changes: Sequence[str], runs: str, data: str | None, models: Sequence[str]) -> "Suite":
    """The suite with its changes, and of its runs those that were named.

    Raises:
        ConfigError, UnknownNameError, UserError: no such suite, a wrong value in it, or no such run.
    """
    from lrkit.profile.measure.suite import load_suite

    if data is not None and any(random_shape(model) is not None for model in models):
        raise UserError("a random shape is profiled on a picture of its own; leave --data out")
    asked = [] if data is None else [f"samples.0.data={data}"]
    only = [run.strip() for run in runs.split(",") if run.strip()]
    return load_suite(name, [*asked, *changes], only)


def usual_suite(models: Sequence[str], otherwise: str) -> str:
    """The suite where none is named: that of shapes for random:SHAPE and for bundles of it, else `otherwise`.

    Raises:
        UserError: as `is_random`.
    """
    from lrkit.contract.bundle.bundle_folder import is_bundle, open_bundle
    from lrkit.profile.measure.shape_questions import shape_behind

    if is_random(models):
        return "2b-shape"
    made = [is_bundle(model) and shape_behind(open_bundle(model).manifest) is not None for model in models]
    return "2b-shape" if made and all(made) else otherwise


def is_random(models: Sequence[str]) -> bool:
    """Is it the one model of a shape with random weights?

    Raises:
        UserError: one among others.
    """
    shapes = [model for model in models if random_shape(model) is not None]
    if shapes and len(models) > 1:
        others = ", ".join(model for model in models if model != shapes[0])
        raise UserError(f"{shapes[0]} is profiled alone, on a picture of its own; leave {others} out")
    return bool(shapes)


def where_to_run(
    device: str | None,
    dtype: str | None,
    engine: str | None,
    engine_option: Sequence[str] | None,
    provider: str | None,
    threads: int | None,
    cuda_graphs: bool,
    attention: str | None = None,
) -> "ModelChoice":
    """The options of that group, for a model that is not named yet.

    Raises:
        UserError: an engine option that is no KEY=VALUE, or no name of attention's kernels.
    """
    from lrkit.contract.attention import read_attention
    from lrkit.profile.measure.cases import ModelChoice
    from lrkit.runtime.engines.table import parse_options

    options: dict[str, object] = {}
    for name, given in options_of(engine, engine_option or []).items():
        options |= parse_options(given, name)
    kernels = None if attention is None else read_attention(attention)
    return ModelChoice("", device, provider, threads, dtype, engine, options, cuda_graphs, kernels)


def choose_models(models: Sequence[str], asked: "ModelChoice") -> "list[ModelChoice]":
    """`asked` for each model; each option goes to the kind of model it is for, and must fit at least one.

    Raises:
        UserError: no model, or an option that is for none of them.
    """
    from lrkit.contract.bundle.bundle_folder import is_bundle

    if not models:
        raise UserError("no model was named; give a bundle, a checkpoint or a shipped name, as in lrkit profile tiny")
    if is_random(models):
        if asked.engine or asked.engine_options or asked.provider:
            raise UserError(f"{models[0]} runs on torch; leave --engine and --provider out, or export it first")
        return [replace(asked, path=models[0])]
    kinds = [is_bundle(model) for model in models]
    if asked.provider is not None and not any(kinds):
        raise UserError("--provider is for bundles, and none was named; give --device for a checkpoint")
    if (asked.engine is not None or asked.engine_options) and not any(kinds):
        raise UserError("--engine runs bundles, and none was named; export the checkpoint first, or leave it out")
    if (asked.device is not None or asked.dtype is not None) and all(kinds):
        raise UserError("--device and --dtype are for checkpoints, and only bundles were named; give --provider")
    if asked.cuda_graphs and all(kinds):
        raise UserError("--cuda-graphs is for checkpoints; TensorRT takes --engine-option cuda_graphs=[speak] instead")
    if asked.attention is not None and all(kinds):
        raise UserError("--attention is for checkpoints, and only bundles were named; leave it out")
    of_bundles = replace(asked, device=None, dtype=None, cuda_graphs=False, attention=None)
    of_checkpoints = replace(asked, provider=None, engine=None, engine_options={})
    found: list[ModelChoice] = []
    for model, bundle in zip(models, kinds, strict=True):
        found += [replace(one, path=model) for one in (_each_engine(of_bundles) if bundle else [of_checkpoints])]
    return found


def _each_engine(asked: "ModelChoice") -> "list[ModelChoice]":
    """A choice for each of the engines in "onnxruntime,openvino", with the options that it has."""
    from lrkit.runtime.engines.table import engine_row

    names = engines_in(asked.engine)
    if len(names) < 2:
        return [asked]
    known = {name: engine_row(name).options.model_fields for name in names}
    return [
        replace(
            asked, engine=name, provider=asked.provider if "provider" in known[name] else None,
            engine_options={key: value for key, value in asked.engine_options.items() if key in known[name]},
        )
        for name in names
    ]  # fmt: skip


def engines_in(engine: str | None) -> list[str]:
    """The names in "onnxruntime,openvino".

    Raises:
        UserError: one is named twice, or none.
    """
    if engine is None:
        return []
    names = [name.strip() for name in engine.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise UserError(f"--engine {engine!r} names none, or one twice; give names such as onnxruntime,openvino")
    return names


def options_of(engine: str | None, given: Sequence[str]) -> dict[str | None, list[str]]:
    """Each option with the first of the engines that has it; with the first of all where none does, which refuses
    it."""
    from lrkit.runtime.engines.table import engine_row

    names = engines_in(engine)
    if len(names) < 2:
        return {engine: [*given]}
    found: dict[str | None, list[str]] = {}
    for text in given:
        key = text.partition("=")[0].strip().split(".")[0]
        owner = next((name for name in names if key in engine_row(name).options.model_fields), names[0])
        found.setdefault(owner, []).append(text)
    return found


def measure(
    choices: "list[ModelChoice]", suite: "Suite", plan: Sequence[str] = (), axes: "Axes | None" = None
) -> "Report":
    """Measures and returns the report; Ctrl-C gives that of what was measured.

    Raises:
        UserError: a model, a sample set or a device sheet that is not there, or no run that could be measured.
    """
    from lrkit.contract.settings import ReasonerSettings
    from lrkit.profile.measure.shape_model import open_shape
    from lrkit.profile.measure.shape_questions import shape_questions
    from lrkit.profile.profile_models import profile_models

    count = sum(chosen.count for chosen in suite.samples)
    shape = random_shape(choices[0].path)
    samples = shape_questions(choices[0].path, suite)
    with ProfileProgress(count * suite.repeats) as progress:
        opened: list[ModelChoice | Model] = [*choices]
        if shape is not None:
            progress.stage(f"making {shape} with random weights")
            opened = [open_shape(shape, ReasonerSettings(), replace(choices[0], path=shape))]
        return profile_models(
            opened, suite, command=_command(), plan_for=plan, axes=axes, samples=samples, watcher=progress
        )


def refuse_held(conditions: "Sequence[Condition]", report: "Report") -> None:
    """Raises `LrkitError` for conditions of --fail-if that hold."""
    from lrkit.profile.measure.conditions import failures

    if held := failures(conditions, report.get("figures", {})):
        raise LrkitError("; ".join(held))


def _command() -> str:
    """The command line, for the report; none where a program called the verb."""
    return shlex.join(["lrkit", *sys.argv[1:]]) if sys.argv[1:2] in (["profile"], ["sweep"]) else ""
