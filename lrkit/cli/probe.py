"""`lrkit probe MODEL`: whether its latents do anything, by putting others in their place."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from lrkit.cli.shared.console import beside_json, err
from lrkit.cli.shared.options import AttentionOption, Device, Download, Dtype, Engine, EngineOption, Provider, Threads
from lrkit.cli.shared.progress import ExportProgress
from lrkit.cli.shared.tables import json_option, percent, write_json
from lrkit.files import check_writable

EXAMPLES = """
Examples:

    lrkit probe tiny

    lrkit probe tiny --samples 1000 --seed 1 --json probe.json

    lrkit probe my-bundle --engine openvino --modes patched,sign

    lrkit probe runs/my-run/last --data held-out.jsonl --batch 8 -o runs/my-probe
"""
_PARTS = (
    "zero, mean, noise, donor (always); looks, shuffled, truncated, frozen, patched, sign, replay, routing, words; "
    "with commas, or repeat. [default: all]"
)


def probe(
    model: Annotated[
        str, typer.Argument(help="A bundle of the form step, a checkpoint folder, or a shipped name such as tiny.")
    ],
    data: Annotated[str, typer.Option(help="trail:main (long, faint, wide) or a .jsonl.")] = "trail:main",
    samples: Annotated[int, typer.Option(min=1, help="Questions asked.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Of the questions and of all that is drawn.")] = 0,
    modes: Annotated[list[str] | None, typer.Option("--modes", "--mode", help=f"Interventions: {_PARTS}")] = None,
    batch: Annotated[int, typer.Option("--batch", "--batch-size", min=1, help="Questions asked at once.")] = 50,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the report.")] = Path("runs/probe"),
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Longest speech.")] = None,
    max_pixels: Annotated[int | None, typer.Option(min=1, help="Shrink larger pictures to so many pixels.")] = None,
    device: Device = None,
    dtype: Dtype = "auto",
    attention: AttentionOption = None,
    engine: Engine = None,
    engine_option: EngineOption = None,
    provider: Provider = None,
    threads: Threads = None,
    download: Download = False,
    json_file: Annotated[Path | None, json_option("Write the report here too.")] = None,
) -> None:
    """Find out whether latents carry the answer: put zeros, noise or another question's latents in their place, and
    change a sign in the picture."""
    from lrkit.data.sources import load_samples
    from lrkit.probe.options import PARTS, ProbeOptions, parse_parts
    from lrkit.probe.probe import probe_reasoner
    from lrkit.probe.report_files import save
    from lrkit.runtime.engines.table import parse_options
    from lrkit.runtime.sdk import Reasoner

    parts = PARTS if modes is None else parse_parts(modes)
    check_writable(output, folder=True)
    drawn = load_samples(data, samples, seed=seed)
    options = parse_options(engine_option or [], engine)
    reasoner = Reasoner.open(model, device, provider, threads, engine, options, dtype, attention)
    if reasoner.engine.note is not None:
        err(soft_wrap=True).print(f"note: {reasoner.engine.note}")
    asked = ProbeOptions(parts, seed, batch, max_new_tokens, max_pixels)
    with ExportProgress() as progress:
        counted = _Counted(progress)
        report = probe_reasoner(reasoner, drawn, asked, name=model, data=data, on_answers=counted)
    files = save(report, output)
    _show(report, json_file)
    beside_json(json_file, soft_wrap=True).print("report: " + ", ".join(map(str, files)))
    write_json(json_file, report, precious=True)


class _Counted:
    """Says how many answers have come, of what and in all."""

    def __init__(self, progress: ExportProgress) -> None:
        self._progress, self._counts = progress, dict[str, int]()

    def __call__(self, what: str, count: int) -> None:
        self._counts[what] = self._counts.get(what, 0) + count
        self._progress(f"{what}: {self._counts[what]} answers, {sum(self._counts.values())} in all", 0, 0)


def _show(report: dict[str, Any], json_file: Path | None) -> None:
    from lrkit.probe.options import PART_MEANINGS
    from lrkit.probe.probe_markdown import what_was_asked
    from lrkit.probe.probe_rows import sentences

    console = beside_json(json_file, soft_wrap=True)
    console.print(report["sentence"])
    table = Table(title=what_was_asked(report), title_justify="left")
    table.add_column("latents")
    table.add_column("accuracy", justify="right")
    for name, share in report["accuracy"].items():
        table.add_row(PART_MEANINGS.get(name, name), percent(share))
    console.print(table)
    for sentence in sentences(report):
        console.print(sentence)
    for one in report["left_out"]:
        console.print(f"{one['part']} was left out: {one['reason']}")
