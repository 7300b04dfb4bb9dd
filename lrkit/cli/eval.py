"""`lrkit eval MODEL`: accuracy, autoregressive steps and latency of the modes on the same samples.

MODEL is a bundle (run without torch, on ONNX Runtime or by its TensorRT engines) or a checkpoint.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, TimeRemainingColumn

from lrkit.cli.shared.console import bars, beside_json, err
from lrkit.cli.shared.many_lines import Lines, Out, ShardLines, SkipBad, Where, Workers
from lrkit.cli.shared.options import AttentionOption, Device, Download, Dtype, Engine, EngineOption, Provider, Threads
from lrkit.cli.shared.tables import headline, json_option, modes_table, write_json
from lrkit.contract.generated import MODES, Mode
from lrkit.errors import UserError, shown

if TYPE_CHECKING:
    from lrkit.evaluate.evaluation import EvalOptions
    from lrkit.runtime.sdk import Reasoner

EXAMPLES = """
Examples:

    lrkit eval tiny

    lrkit eval tiny --data trail:main --data trail:faint --samples 500 --json report.json

    lrkit eval my-bundle --provider cpu --threads 2

    lrkit eval my-bundle --engine tensorrt-rtx --engine-option runtime_cache=kernels

    lrkit eval runs/my-run/last --data held-out.jsonl --modes latent,cot

    lrkit eval runs/my-run/last --data hub:LightChen2333/M3CoT#m3cot/test --choices scored

    lrkit eval my-bundle --data held-out.jsonl --modes latent,cot --engine ray --workers 4 -o measured
"""

SAMPLES_HELP = "Samples of each set. [default: 200; all with --out]"
DataOption = Annotated[
    list[str] | None, typer.Option(help="trail:main (long, faint, wide), a .jsonl, or hub:NAME#COLUMNS; repeat.")
]


def eval_checkpoint(
    model: Annotated[str, typer.Argument(help="A bundle, a checkpoint folder, or a shipped name such as tiny.")],
    data: DataOption = None,
    modes: Annotated[str | None, typer.Option(help="Of latent, cot, direct; with commas. [default: all]")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help=SAMPLES_HELP)] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples answered at once.")] = 50,
    latency_samples: Annotated[int, typer.Option(min=0, help="Samples timed one by one; 0 measures no latency.")] = 30,
    choices: Annotated[str, typer.Option(help="Samples with choices: said (found in the words) or scored.")] = "said",
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Longest speech.")] = None,
    max_latent_steps: Annotated[int | None, typer.Option(min=0, help="Instead of the model's own limit.")] = None,
    max_pixels: Annotated[int | None, typer.Option(min=1, help="Shrink larger pictures to so many pixels.")] = None,
    out: Out = None,
    workers: Workers = None,
    skip_bad: SkipBad = False,
    shard_lines: ShardLines = None,
    device: Device = None,
    dtype: Dtype = "auto",
    attention: AttentionOption = None,
    engine: Engine = None,
    engine_option: EngineOption = None,
    provider: Provider = None,
    threads: Threads = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the pictures drawn from a trail set.")] = 0,
    download: Download = False,
    json_file: Annotated[Path | None, json_option("Write all figures to this file.")] = None,
) -> None:
    """Measure accuracy, autoregressive steps and latency of the modes on the same samples."""
    from lrkit.evaluate.evaluation import EvalOptions

    where = Where(device, provider, threads, engine, engine_option, dtype, attention)
    named, way, limits = (
        None if modes is None else parse_modes(modes),
        _way(choices),
        (max_new_tokens, max_latent_steps),
    )
    options = EvalOptions(named or MODES, batch_size, latency_samples, *limits, max_pixels, choices=way)
    lines = Lines(None if data is None else data[0], out, workers, skip_bad, shard_lines, batch_size)
    if lines.are_measured(where, data or []):
        report = _measure_lines(model, lines, where, options, samples, beside_json(json_file))
    else:
        report = _measure(model, data or ["trail:main"], samples or 200, where, options, named, seed, json_file)
    write_json(json_file, report, precious=True)


def _measure(
    model: str, data: list[str], samples: int, where: Where, options: "EvalOptions", named: tuple[Mode, ...] | None,
    seed: int, json_file: Path | None,
) -> dict[str, Any]:  # fmt: skip
    """The report of samples that are all in memory; `named` None: all modes that the model has."""
    from lrkit.data.sources import load_samples
    from lrkit.evaluate.evaluation import evaluate
    from lrkit.provenance import collect

    console = beside_json(json_file)
    sets = {name: load_samples(name, samples, seed=seed) for name in data}
    reasoner = where.open(model)
    say_note(reasoner)
    chosen = named or reasoner.engine.modes
    options = replace(options, modes=chosen)
    place = where.device or where.provider or reasoner.engine.place
    runs_on = {"engine": reasoner.engine.name, "device": place, "threads": where.threads}
    runs_on |= {"dtype": reasoner.engine.dtype, "attention": reasoner.engine.attention}
    report: dict[str, Any] = {"schema": 1, "kind": "eval", "model": model, "runs_on": runs_on, "seed": seed, "sets": {}}
    for name, drawn in sets.items():
        with bars(MofNCompleteColumn(), TimeRemainingColumn()) as progress:
            tasks = {mode: progress.add_task(f"{name} {mode}", total=len(drawn)) for mode in chosen}
            done = evaluate(reasoner, drawn, options, lambda m, count, t=tasks, p=progress: p.advance(t[m], count))
        figures = done.to_dict()
        report["sets"][name] = figures
        _show(console, figures, f"{model} on {name}, {len(drawn)} samples")
    return {**report, **_first(report["sets"]), "provenance": collect()}


def _measure_lines(
    model: str, lines: Lines, where: Where, options: "EvalOptions", samples: int | None, console: Console
) -> dict[str, Any]:
    """The report of lines that are answered into a folder; latency is not measured."""
    from lrkit.provenance import collect

    how: Any = {name: getattr(options, name) for name in ("modes", "max_new_tokens", "max_latent_steps", "max_pixels")}
    done = lines.answer(model, where, choices=options.choices, scored=True, limit=samples, **how)
    runs_on = {**where.values(), "workers": lines.workers, "ray": where.on_ray}
    report = {"schema": 1, "kind": "eval", "model": model, "runs_on": runs_on, "answers": str(done.answers)}
    _show(console, done.figures, f"{model} on {lines.data}, {done.rows} lines")
    return {**report, "sets": {lines.data: done.figures}, **done.figures, "provenance": collect()}


def _way(choices: str) -> Literal["said", "scored"]:
    if choices not in ("said", "scored"):
        raise UserError(f"--choices is {shown(choices, 40)}; give said or scored")
    return choices


def _show(console: Console, figures: dict[str, Any], title: str) -> None:
    """One set: its table, the sentence below it, and on standard error what was shrunk for it."""
    console.print(modes_table(figures, title))
    if (sentence := headline(figures)) is not None:
        console.print(sentence)
    if any(mode["pictures_resized"] for mode in figures["modes"].values()):
        err(soft_wrap=True).print("note: pictures were shrunk to the model's limits; --json says how many")


def say_note(reasoner: "Reasoner") -> None:
    """On standard error: what a user should know of the model, such as that it was trained in another number type."""
    if reasoner.engine.note is not None:
        err(soft_wrap=True).print(f"note: {reasoner.engine.note}")


def parse_modes(text: str) -> tuple[Mode, ...]:
    """Modes from "latent,cot".

    Raises:
        UserError: an unknown mode, or none.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    wrong = [name for name in names if name not in MODES]
    if wrong or not names:
        raise UserError(f"unknown mode {', '.join(wrong) or text!r}; give any of {', '.join(MODES)}")
    return cast(tuple[Mode, ...], tuple(dict.fromkeys(names)))


def _first(sets: dict[str, dict[str, object]]) -> dict[str, object]:
    """The figures of the first set also stand at the top, where a script that asks one question finds them."""
    return next(iter(sets.values()))
