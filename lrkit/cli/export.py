"""`lrkit export CHECKPOINT`: the whole reasoner as one program, checked against torch, in a bundle."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from lrkit.cli.export_tables import proofs, sizes
from lrkit.cli.tables import write_json
from lrkit.errors import UserError
from lrkit.runtime.io_spec import Form

if TYPE_CHECKING:
    from lrkit.export.target import Target

EXAMPLES = """
Examples:

    lrkit export tiny --int4 -o tiny-int4

    lrkit export runs/my-run/last --target cpu-fp32 -o my-bundle

    lrkit export tiny --target cuda-fp16 limits.max_new_tokens=64 -o half

    lrkit export my-checkpoint --int4 --data held-out.jsonl -o mine
"""

FORMS = get_args(Form)
PACKAGES = ("torch", "transformers", "peft", "onnx", "onnx_ir", "onnxscript")


def export(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint folder, or a shipped name such as tiny.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes of the target, by dotted path.")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The bundle. [default: NAME-TARGET]")] = None,
    target: Annotated[str | None, typer.Option(help="A shipped target (see `lrkit ls`) or a YAML file.")] = None,
    int4: Annotated[bool, typer.Option("--int4", help="Short for --target cpu-int4.")] = False,
    form: Annotated[
        str, typer.Option(help="program: one graph with its loops inside; step: graphs that the host drives.")
    ] = "program",
    dialect: Annotated[str | None, typer.Option(help="ort or tensorrt, instead of the target's.")] = None,
    data: Annotated[str, typer.Option(help="Samples to check on: trail:main, ..., or a .jsonl file.")] = "trail:main",
    samples: Annotated[int, typer.Option(min=1, help="How many of them.")] = 500,
    baselines: Annotated[bool, typer.Option(help="Also the checkpoint's cot and direct baselines.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle of that name.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write sizes, errors and times to this file.")
    ] = None,
) -> None:
    """Write one program that holds the whole reasoner, prove it equal to torch, and pack it into a bundle."""
    from lrkit.errors import require

    if form not in FORMS:
        raise UserError(f"--form is {form!r}; it must be one of {', '.join(FORMS)}")
    name, asked = load_target(target, int4, ([f"dialect={dialect}"] if dialect else []) + (overrides or []))
    for package in PACKAGES:
        require(package, "export")
    from lrkit.evaluate.benchmarks import load_samples
    from lrkit.export.bundle import export_bundle
    from lrkit.resources import resolve_checkpoint

    folder = resolve_checkpoint(checkpoint)
    place = output or Path(f"{checkpoint.replace('/', '-') if '/' not in str(folder) else folder.name}-{name}")
    drawn = load_samples(data, samples)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("reading the checkpoint", total=None, count="")
        report = export_bundle(
            folder, place, asked, drawn, form=cast(Form, form), baselines=baselines, force=force,
            progress=lambda what, done, total: _show(progress, bar, what, done, total),
        )  # fmt: skip
    console = Console(highlight=False)
    console.print(sizes(report))
    console.print(proofs(report))
    console.print(f"bundle: {place}", markup=False)
    write_json(json_file, {
        "schema": 1, "kind": "export", "bundle": str(place), "seconds": report.seconds,
        "quantization_errors": report.quantization_errors, "manifest": report.manifest.model_dump(mode="json"),
    })  # fmt: skip


def load_target(name: str | None, int4: bool, overrides: list[str]) -> "tuple[str, Target]":
    """(name, target) of what was asked for.

    Raises:
        UserError: --int4 beside --target.
        ConfigError, UnknownNameError: no such target, or a wrong value in it.
    """
    from lrkit.config import load_config
    from lrkit.export.target import Target
    from lrkit.resources import find_target

    if int4 and name is not None:
        raise UserError(f"--int4 is short for --target cpu-int4, but --target {name} was given too; give one of them")
    chosen = name or ("cpu-int4" if int4 else "cpu-fp32")
    path = find_target(chosen)
    return path.stem, load_config(Target, path, overrides)


def _show(progress: Progress, bar: TaskID, what: str, done: int, total: int) -> None:
    count = f"{done} of {total}" if total else ""
    progress.update(bar, description=what, completed=done, total=total or None, count=count)
