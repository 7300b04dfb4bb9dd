"""`lrkit validate PATH`: check a data file, a file of values (recipe, sweep, target, suite, ...), a checkpoint or a
bundle.

Place in the pipeline: before `lrkit train` (data, recipe), after copying a checkpoint or a bundle. What is checked
follows from what PATH is: a .jsonl, .yaml or .json file, a folder, or the name of something shipped. Of a bundle the
digests, the schema and the programs are checked, and its recorded samples are run again; all else is read only.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import TaskProgressColumn, TimeRemainingColumn
from rich.table import Table

from lrkit.cli.shared.console import bars, beside_json
from lrkit.cli.shared.options import Download, Engine, EngineOption, Provider
from lrkit.cli.shared.tables import json_option, write_json
from lrkit.cli.shared.validate_config import CHECKS, check_config, kind_of_config
from lrkit.errors import UserError
from lrkit.resources import Kind, find_resource
from lrkit.summary import Summary

EXAMPLES = """
Examples:
  lrkit validate data.jsonl
  lrkit validate data.jsonl --checkpoint tiny
  lrkit validate "hub:LightChen2333/M3CoT#m3cot/test"
  lrkit validate recipe.yaml --json findings.json
  lrkit validate my-target.yaml
  lrkit validate tiny
  lrkit validate Qwen2-VL-2B-Instruct --quick
"""


def validate(
    path: Annotated[
        str, typer.Argument(help="A .jsonl file, a recipe, sweep, target or suite, a checkpoint or a bundle.")
    ],
    checkpoint: Annotated[
        str | None, typer.Option(help="Data only: count tokens, and check words, with this checkpoint's tokenizer.")
    ] = None,
    engine: Engine = None,
    engine_option: EngineOption = None,
    provider: Provider = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Checkpoints only: do not read the weights' values in search of NaN.")
    ] = False,
    download: Download = False,
    json_file: Annotated[Path | None, json_option("Write the findings to this file, good or bad.")] = None,
) -> None:
    """Check data, a recipe or other file of values, a checkpoint or a bundle, and name everything wrong with it."""
    kind, console = kind_of(path), beside_json(json_file)
    findings: dict[str, Any] = {"path": path, "kind": kind}
    try:
        if kind == "data":
            _check_data(path, checkpoint, findings, console)
        elif kind in CHECKS:
            console.print(check_config(kind, find_resource(kind, path), findings))
        elif kind == "bundle":
            _check_bundle(path, engine, engine_option or [], provider, findings, console)
        else:
            _check_checkpoint(path, findings, console, values=not quick)
        findings |= {"ok": True, "problems": []}
    except UserError as error:
        findings |= {"ok": False, "problems": str(error).splitlines()}
        raise
    finally:
        if "ok" in findings:
            write_json(json_file, findings)
    console.print(f"{path}: nothing wrong was found")


def kind_of(path: str) -> Kind | Literal["data", "checkpoint", "bundle"]:
    """What it is that can be checked.

    Raises:
        UserError: it is neither there nor the name of something shipped, or of a kind that cannot be checked.
    """
    from lrkit.contract.bundle.bundle_folder import is_bundle
    from lrkit.pretrained import hub_id_in
    from lrkit.resources import find_any, list_checkpoints

    given = Path(path)
    if path.startswith("hub:") and "#" in path:
        return "data"
    if is_bundle(given):
        return "bundle"
    if given.is_dir():
        return "checkpoint"
    suffix = given.suffix.lower()
    if suffix == ".jsonl":
        return "data"
    if suffix in {".yaml", ".yml"}:
        return kind_of_config(given)
    if given.name in {"bundle.json", "reasoner.json", "config.json", "run.json"} and given.is_file():
        raise UserError(f"{path}: is one file of a bundle or checkpoint; give its folder, {given.parent}")
    if suffix == ".json":
        return "shape"
    if given.is_file():
        hint = f"write hub:{path}#COLUMNS" if suffix in {".parquet", ".pq"} else "give a .jsonl, a .yaml or a folder"
        raise UserError(f"{path}: the ending {suffix!r} is not known; {hint}")
    if path in {resource.name for resource in list_checkpoints()}:
        return "checkpoint"
    if given.name == path and not suffix:
        kind = find_any(path).kind  # an unknown name ends here, with the known ones
        if kind == "checkpoint" or kind in CHECKS:
            return kind
        raise UserError(f"{path} is the name of {kind}, which are not checked; give another file, folder or name")
    if hub_id_in(path) is not None:
        return "checkpoint"  # it is not there, and whoever reads it says how to place one
    raise UserError(f"{path}: there is no such file or folder; check the path")


def _check_data(name: str, checkpoint: str | None, findings: dict[str, Any], console: Console) -> None:
    from lrkit.data.sources import scan_samples
    from lrkit.resources import resolve_checkpoint
    from lrkit.runtime.encode.processor import Processor

    processor = Processor.from_folder(resolve_checkpoint(checkpoint)) if checkpoint is not None else None
    path = Path(name)
    total = path.stat().st_size if path.is_file() else 0
    with bars(TaskProgressColumn(), TimeRemainingColumn()) as progress:
        task = progress.add_task(f"reading {path.name}", total=total)
        scan = scan_samples(name, processor, lambda size: progress.advance(task, size))
    findings["samples"] = len(scan.samples)
    findings["bad_lines"] = scan.num_bad_lines
    findings["lengths"] = {name: summary.to_dict() for name, summary in scan.lengths.items()}
    if scan.samples:
        console.print(_length_table(f"{path.name}: {len(scan.samples)} good lines", scan.lengths))
    scan.raise_if_bad()


def _length_table(title: str, lengths: dict[str, Summary]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("per line")
    columns = ("min", "median", "mean", "p90", "p99", "max")
    for column in columns:
        table.add_column(column, justify="right")
    for name, summary in lengths.items():
        table.add_row(name, *(f"{getattr(summary, column):.4g}" for column in columns))
    return table


def _check_checkpoint(path: str, findings: dict[str, Any], console: Console, values: bool) -> None:
    from lrkit.resources import resolve_checkpoint
    from lrkit.runtime.checks.checkpoint_files import check_checkpoint

    report = check_checkpoint(resolve_checkpoint(path), values)
    findings |= {"base": report.base, "plain": report.plain, "values_read": values}
    findings["files"] = {
        name: {"bytes": size, "tensors": report.tensors.get(name)} for name, size in report.sizes.items()
    }
    table = Table(title=f"{'plain Hugging Face model' if report.plain else 'checkpoint'} {path}", title_justify="left")
    for column in ("file", "tensors", "bytes"):
        table.add_column(column, justify="left" if column == "file" else "right")
    for name, size in report.sizes.items():
        table.add_row(name, str(report.tensors.get(name, "?")), f"{size:,}")
    console.print(table)
    report.raise_if_bad()


def _check_bundle(
    path: str, engine: str | None, options: list[str], provider: str | None, findings: dict[str, Any], console: Console
) -> None:
    from lrkit.runtime.checks.bundle_check import check_bundle
    from lrkit.runtime.engines.table import EngineChoice, parse_options

    report = check_bundle(path, EngineChoice.of(engine, parse_options(options, engine), provider=provider))
    manifest = report.bundle.manifest
    findings |= {"engine": report.engine, "provider": provider or report.place}
    findings["files"] = {name: entry.bytes for name, entry in manifest.files.items()}
    findings["programs"] = {role: entry.precision for role, entry in manifest.programs.items()}
    findings["samples"] = {"run": report.samples, "same": report.same}
    table = Table(title=f"bundle {path}: {manifest.name}, {report.bundle.num_bytes:,} bytes", title_justify="left")
    for column in ("file", "bytes"):
        table.add_column(column, justify="left" if column == "file" else "right")
    for name, size in findings["files"].items():
        table.add_row(name, f"{size:,}")
    console.print(table)
    console.print(f"{report.same} of {report.samples} recorded samples gave the recorded answer")
    report.raise_if_bad()
