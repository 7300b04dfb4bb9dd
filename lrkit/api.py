"""Train, export, evaluate, probe and profile from a program: what the verbs of the command line do, a function each.

    from lrkit import Reasoner, evaluate_model, export_model, profile_models, train_recipe

    checkpoint = train_recipe("trail-latent", "runs/mine", ["seed=1"])
    bundle = export_model(checkpoint, "mine-int4", "cpu-int4")
    print(evaluate_model(bundle.folder, samples=200).to_dict()["modes"]["latent"]["accuracy"])
    report = profile_models([checkpoint, bundle.folder], "latency")
    answer = Reasoner.load(bundle.folder).ask("rooms.png", "Take 4 hops. Which room are you in? Start in room 3")

Recipes, targets, suites and models are named as on the command line: a shipped name or a path. `changes` are its
KEY=VALUE words, by dotted path, such as "optimizer.lr=3e-4". Every error that lrkit raises on purpose is an
`LrkitError`. This module imports neither numpy nor torch; the functions import what they need, and raise
`MissingExtraError`, with the pip command, where it is not installed.
"""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrkit.errors import UserError, require

if TYPE_CHECKING:
    from lrkit.contract.bundle.bundle_folder import Bundle
    from lrkit.contract.generated import Mode
    from lrkit.contract.sample import Sample
    from lrkit.evaluate.evaluation import Evaluation
    from lrkit.export.targets.target import Target
    from lrkit.profile.report import Report
    from lrkit.runtime.sdk import Reasoner
    from lrkit.train.recipe import Recipe

NameOrPath = str | PathLike[str]


def train_recipe(
    recipe: "NameOrPath | Recipe",
    output: NameOrPath | None = None,
    changes: Sequence[str] = (),
    *,
    resume: bool = False,
    quiet: bool = True,
) -> Path:
    """Trains a recipe into the folder `output` (default: runs/NAME) and returns the folder of its last checkpoint.

    With `resume` it goes on with the run in the folder, with the same losses as if it had never stopped, or starts it
    where there is none. `quiet` shows no progress.

    Raises:
        ConfigError, UnknownNameError: no such recipe, or a wrong value in it, with a line for each problem.
        UserError: the recipe cannot be run, the folder holds another run, or disk or memory are full.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the run is saved.
    """
    from lrkit.train.recipe import Recipe, as_written, load_recipe

    asked = load_recipe(as_written(recipe) if isinstance(recipe, Recipe) else str(recipe), changes)
    from lrkit.train.checks import PACKAGES

    for package in PACKAGES:
        require(package, "train")
    from lrkit.train.run import train

    return train(asked, Path(output) if output is not None else Path("runs") / asked.name, resume=resume, quiet=quiet)


def export_model(
    checkpoint: NameOrPath,
    output: NameOrPath,
    target: "NameOrPath | Target" = "cpu-fp32",
    changes: Sequence[str] = (),
    *,
    samples: "Sequence[Sample] | None" = None,
    force: bool = False,
    allow_unproven: bool = False,
) -> "Bundle":
    """Writes the bundle of a checkpoint into `output`: one program that holds the whole reasoner, compared with torch.

    `samples`, unseen in training, are what the program is compared on (default: 500 pictures of trail:main). An
    existing bundle is replaced when `force` is set. Samples that prove nothing of the program end the export, unless
    `allow_unproven` is set. TensorRT engines are built where the target asks for them.

    Raises:
        ConfigError, UnknownNameError: no such target, or a wrong value in it.
        CheckpointError: the checkpoint cannot be read.
        ExportError: no program can be built, it differs from torch or is unproven, or `output` is taken.
        FileError: something cannot be written, as when the disk is full.
    """
    from lrkit.config import load_config
    from lrkit.export.targets.target import Target
    from lrkit.resources import find_target

    chosen = target.model_dump(mode="json") if isinstance(target, Target) else find_target(str(target))
    asked = load_config(Target, chosen, changes)
    for package in ("torch", "transformers", "peft", "onnx", "onnx_ir", "onnxscript"):
        require(package, "export")
    from lrkit.contract.bundle.bundle_folder import open_bundle
    from lrkit.data.sources import load_samples
    from lrkit.export.bundle import export_bundle

    asked_on = load_samples("trail:main", 500) if samples is None else samples
    name, place = str(checkpoint), Path(output)
    report = export_bundle(name, place, asked, asked_on, force=force, allow_unproven=allow_unproven)
    return open_bundle(report.folder, verify=False)


def evaluate_model(
    model: "NameOrPath | Reasoner",
    data: NameOrPath | None = None,
    *,
    samples: int = 200,
    latency_samples: int = 30,
    modes: Sequence[str] = (),
) -> "Evaluation":
    """Asks a bundle, a checkpoint or a `Reasoner` the same samples in every mode.

    `data` is trail:main (the default), another trail set, or a .jsonl file; `samples` of them are taken. The first
    `latency_samples` are asked once more, one by one: latencies are end to end, in seconds. `modes` are latent, cot and
    direct; left out, all that the model has. `Evaluation.to_dict()` holds accuracies as shares with 95% intervals, mean
    steps, median latencies, and the ratios of cot to latent.

    Raises:
        UserError: no such model or data, bad lines in it, or an unknown mode.
        StoppedError: a bundle's program seems to have no end.
    """
    from lrkit.data.sources import load_samples
    from lrkit.evaluate.evaluation import EvalOptions, evaluate
    from lrkit.runtime.answer.arguments import known_mode, whole_number
    from lrkit.runtime.sdk import Reasoner

    whole_number("samples", samples, 1)
    whole_number("latency_samples", latency_samples, 0)
    reasoner = model if isinstance(model, Reasoner) else Reasoner.open(str(model))
    drawn = load_samples("trail:main" if data is None else str(data), samples)
    named: tuple[Mode, ...] = tuple(known_mode(mode) for mode in modes)
    return evaluate(reasoner, drawn, EvalOptions(named or reasoner.engine.modes, latency_samples=latency_samples))


def profile_models(
    models: NameOrPath | Sequence[NameOrPath],
    suite: NameOrPath = "smoke",
    changes: Sequence[str] = (),
    *,
    output: NameOrPath | None = None,
    threads: int | None = None,
) -> "Report":
    """Measures a model, or several, by a suite: accuracy, steps, latency by phase, memory and ceilings of each mode.

    Returns the report, as profiles/README.md describes it: times in seconds, sizes in bytes, unknown values None. With
    `output` that folder gets report.json, report.md and report.html. `threads` are CPU threads of one operator.

    Raises:
        ConfigError, UnknownNameError: no such suite, or a wrong value in it.
        UserError: a model or a sample set that is not there, or no run that could be measured.
        FileError: the report cannot be written.
    """
    from lrkit.profile.measure.cases import ModelChoice
    from lrkit.profile.measure.suite import load_suite
    from lrkit.profile.profile_models import profile_models as measure
    from lrkit.profile.profile_models import save

    asked = load_suite(str(suite), changes)
    if not models:
        raise UserError("no model was named; give a bundle, a checkpoint or a shipped name, as in ['tiny']")
    named = [models] if isinstance(models, str | PathLike) else models
    report = measure([ModelChoice(str(model), threads=threads) for model in named], asked)
    if output is not None:
        save(report, Path(output))
    return report


def probe_model(
    model: "NameOrPath | Reasoner",
    data: NameOrPath | None = None,
    *,
    samples: int = 200,
    seed: int = 0,
    parts: Sequence[str] = (),
    output: NameOrPath | None = None,
) -> dict[str, Any]:
    """Puts zeros, noise and another question's latents in place of a model's own, and says whether they carry its
    answers.

    `model` is a bundle of the form step, a checkpoint or a `Reasoner`; `data` as for `evaluate_model`. `parts` are
    interventions as `lrkit probe --modes` names them; left out, all. Returns the report that docs/probe.md describes:
    shares between 0 and 1 with 95% intervals, unknown values None. With `output` that folder gets report.json,
    report.md and report.html.

    Raises:
        UserError: no such model or data, a model without latents, a bundle of the form program, or an unknown part.
        FileError: the report cannot be written.
    """
    from lrkit.data.sources import load_samples
    from lrkit.probe.options import PARTS, ProbeOptions, parse_parts
    from lrkit.probe.probe import probe_reasoner
    from lrkit.probe.report_files import save
    from lrkit.runtime.answer.arguments import whole_number
    from lrkit.runtime.sdk import Reasoner

    whole_number("samples", samples, 1)
    whole_number("seed", seed, 0)
    chosen = ProbeOptions(parse_parts(parts) if parts else PARTS, seed)
    reasoner = model if isinstance(model, Reasoner) else Reasoner.open(str(model))
    asked_on = "trail:main" if data is None else str(data)
    name = "" if isinstance(model, Reasoner) else str(model)
    report = probe_reasoner(reasoner, load_samples(asked_on, samples, seed=seed), chosen, name=name, data=asked_on)
    if output is not None:
        save(report, Path(output))
    return report


def check_bundle(bundle: NameOrPath) -> list[str]:
    """What is wrong with a bundle, one sentence each: digests, schema, programs, and the answers to recorded samples.

    Raises:
        BundleError: it cannot be opened at all.
    """
    from lrkit.runtime.checks.bundle_check import check_bundle as check

    return check(Path(bundle)).problems
