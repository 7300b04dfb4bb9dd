"""`lrkit preflight THING`: what a target would reject or ignore in a program, without building anything.

The rules are data (export/rules/*.yaml); lrkit/export/preflight/findings.py applies them. As for `lrkit validate`, the
exit code is 0 where nothing is rejected and 2 where something is, or where the thing cannot be read; --json tells them
apart.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lrkit.cli.shared.console import err, out, printable
from lrkit.cli.shared.export_target import Arch, Changes, FormName, arch_names, check_form
from lrkit.cli.shared.tables import json_option, write_json
from lrkit.contract.bundle.bundle_folder import is_bundle
from lrkit.contract.bundle.io_spec import Form
from lrkit.contract.bundle.manifest import EngineKind
from lrkit.errors import ExportError, UnknownNameError, UserError, did_you_mean, require
from lrkit.resources import find_checkpoint, random_shape, resolve_checkpoint

if TYPE_CHECKING:
    from lrkit.export.preflight.ask_library import Opinion
    from lrkit.export.preflight.findings import Finding, Report
    from lrkit.export.preflight.opening import CheckedGraph
    from lrkit.export.preflight.rules import TargetName
    from lrkit.export.targets.target import Target

EXAMPLES = """
Examples:

    lrkit preflight tiny --target tensorrt-rtx --arch sm89

    lrkit preflight my-bundle

    lrkit preflight my-bundle --target jetson-thor

    lrkit preflight model.onnx --target tensorrt-10 --json findings.json
"""

MOST_NAMES = 3
"""Places of one rule that the table names; the JSON file has all."""


@dataclass(frozen=True)
class Asked:
    """What is to be looked at, and for which target."""

    thing: str
    """An ONNX file, a bundle or a checkpoint."""
    target: str | None
    """A target of the rules (tensorrt-rtx, ...) or a target file's name."""
    changes: Sequence[str]
    """Changes of the target that a checkpoint is built by."""
    int4: bool
    form: Form
    archs: tuple[str, ...]


def preflight(
    thing: Annotated[str, typer.Argument(help="A checkpoint, a shipped name (tiny), a bundle, or an .onnx file.")],
    overrides: Changes = None,
    target: Annotated[
        str | None,
        typer.Option(help="tensorrt-10, tensorrt-11, tensorrt-rtx, openvino, ort, or a target (see `lrkit ls`)."),
    ] = None,
    int4: Annotated[bool, typer.Option("--int4", help="A checkpoint: with weights of four bits.")] = False,
    form: FormName = "program",
    arch: Arch = None,
    json_file: Annotated[Path | None, json_option("Write the findings to this file.")] = None,
) -> None:
    """List what a target would reject or do badly in a program, before anything is exported or built.

    A bundle is held against what it was exported for, unless --target says otherwise; a checkpoint is built first, as
    an export would build it.
    """
    check_form(form)
    if random_shape(thing) is not None:
        raise UserError(f"{thing} has no program yet; export it, and give the bundle")
    check(Asked(thing, target, overrides or [], int4, cast(Form, form), arch_names(arch)), json_file)


def check(asked: Asked, json_file: Path | None) -> None:
    """Prints what is found, graph by graph.

    Raises:
        UserError: options that do not belong to a check, or a thing that cannot be read.
        ExportError: something would be rejected.
    """
    if asked.target is not None and not asked.target.strip():
        raise UserError(f"--target is empty; give {', '.join(_target_names())}, or a target file")
    for package in ("onnx", "onnx_ir"):
        require(package, "export")
    from lrkit.export.preflight.findings import check_graph
    from lrkit.export.preflight.rules import load_rules

    reports: list[Report] = []
    with _opened(asked) as (graphs, targets, archs):
        for graph in graphs:
            for target in targets or _own_targets(graph):
                reports.append(check_graph(graph, load_rules(target), archs, apart=True))
    rejected = [report for report in reports if report.rejected]
    write_json(json_file, {
        "schema": 1, "kind": "preflight", "thing": asked.thing, "ok": not rejected,
        "reports": [report.to_dict() for report in reports],
    })  # fmt: skip
    console = out()
    for report in reports:
        _print(console, report)
    if rejected:
        raise ExportError("\n".join(_verdict(asked.thing, report) for report in rejected))


Opened = tuple[list["CheckedGraph"], tuple["TargetName", ...], tuple[str, ...]]
"""(graphs, targets to hold them against, GPUs); no targets: each graph knows its own."""


@contextmanager
def _opened(asked: Asked) -> Generator[Opened]:
    from lrkit.export.preflight.findings import load_graph
    from lrkit.export.preflight.opening import graphs_of_bundle, graphs_of_checkpoint
    from lrkit.export.preflight.rules import load_rules

    file = Path(asked.thing)
    if find_checkpoint(asked.thing) is None and (is_bundle(file) or file.suffix == ".onnx" or file.is_file()):
        if asked.changes or asked.int4:
            raise UserError(f"{asked.thing} is built already, so its target cannot be changed; leave the changes out")
        if not is_bundle(file) and asked.target is None:
            raise UserError(
                f"say with --target what {asked.thing} is for; give {', '.join(_target_names())}, or a target file"
            )
        targets, archs = _targets_of_name(asked.target) if asked.target else ((), ())
        yield graphs_of_bundle(file) if is_bundle(file) else [load_graph(file)], targets, asked.archs or archs
        return
    target, targets, archs = target_to_build(asked)
    for name in targets:  # before the work of building, not after it
        load_rules(name).check_archs(asked.archs or archs)
    folder = resolve_checkpoint(asked.thing)
    # As Text: a status takes plain strings for markup.
    status = err().status(Text(printable(f"building {asked.thing} as {target.dialect}, {target.precision}")))
    with status, graphs_of_checkpoint(folder, target, asked.form) as graphs:
        status.stop()
        yield graphs, targets, asked.archs or archs


def _target_names() -> tuple["TargetName", ...]:
    from lrkit.export.preflight.rules import TARGETS

    return TARGETS


def _targets_of_name(name: str) -> "tuple[tuple[TargetName, ...], tuple[str, ...]]":
    """(targets of the rules, GPUs) of the name of a target of the rules, or of a target file."""
    from lrkit.export.preflight.rules import load_rules

    if name in _target_names():
        return (load_rules(name).target,), ()
    return _meant_for(_read_target(name))


def _read_target(name: str, changes: Sequence[str] = (), **values: Any) -> "Target":
    """A target file with `values` and then `changes`; where there is none, the message names the rules' targets too."""
    from lrkit.config import load_config
    from lrkit.export.targets.target import Target
    from lrkit.resources import find_target

    try:
        path = find_target(name)
    except UnknownNameError as error:
        known = _target_names()
        hint = did_you_mean(name, known)
        raise UnknownNameError(f"{error}; a check also takes {', '.join(known)}{hint}") from error
    plain = load_config(Target, path)
    return load_config(Target, {**plain.model_dump(mode="json"), **values}, changes)


def _meant_for(target: "Target") -> "tuple[tuple[TargetName, ...], tuple[str, ...]]":
    from lrkit.export.preflight.rules import targets_of

    engine = target.engine
    found = targets_of(target.dialect, engine and engine.kind, target.openvino is not None)
    return found, engine.archs if engine else ()


def _own_targets(graph: "CheckedGraph") -> "tuple[TargetName, ...]":
    """Those of a graph in a bundle: by its dialect and the engines of the target that it was exported for."""
    from lrkit.export.preflight.rules import targets_of

    assert graph.dialect is not None
    engine = graph.target.get("engine")  # of a bundle, so it may hold anything
    kind = engine.get("kind") if isinstance(engine, dict) else None
    openvino = graph.target.get("openvino") is not None
    return targets_of(graph.dialect, kind if kind in get_args(EngineKind) else None, openvino)


def target_to_build(asked: Asked) -> "tuple[Target, tuple[TargetName, ...], tuple[str, ...]]":
    """(target to build a checkpoint by, targets of the rules to hold it against, GPUs).

    Raises:
        ConfigError, UnknownNameError: no such target, or a wrong change of it.
    """
    from lrkit.export.preflight.rules import load_rules

    name = asked.target or ("cpu-int4" if asked.int4 else "cpu-fp32")
    of_rules = name in _target_names()
    file = load_rules(name).facts.export if of_rules else name
    # Without its engines: the question may be what an engine makes of another dialect.
    target = _read_target(file, [*(["precision=int4"] if asked.int4 else []), *asked.changes], engine=None)
    if of_rules:
        return target, _targets_of_name(name)[0], ()
    plain = _read_target(file)
    return target, *_meant_for(plain if plain.engine is not None else target)


def _print(console: Console, report: "Report") -> None:
    """One graph against one target."""
    from lrkit.export.preflight.rules import VERDICTS

    gpus = f" on {', '.join(report.archs)}" if report.archs else ""
    console.print(f"\n{report.graph}, {report.num_nodes} nodes, against {report.target}{gpus}")
    for verdict in VERDICTS:
        found = [finding for finding in report.findings if finding.verdict == verdict]
        if found:
            console.print(_table(report.target, verdict, found))
    if not report.rejected:
        console.print(f"nothing that {report.target} would reject was found")
    console.print(_told_by(report))


def _table(target: str, verdict: str, findings: "list[Finding]") -> Table:
    """One row per rule."""
    table = Table(title=f"{verdict}: {len(findings)}", title_justify="left")
    table.add_column("where", overflow="fold", ratio=2)
    table.add_column("why, and what to do", overflow="fold", ratio=3)
    table.add_column("rule", overflow="fold")
    by_rule: dict[str, list[Finding]] = {}
    for finding in findings:
        by_rule.setdefault(finding.rule, []).append(finding)
    for rule, found in by_rule.items():
        names = [f"{f.name} ({f.detail or f.operator})" for f in found[:MOST_NAMES]]
        more = [f"... and {len(found) - MOST_NAMES} more"] if len(found) > MOST_NAMES else []
        first = found[0]
        text = f"{first.reason} {first.instead}\n({first.basis} for {target}; {first.source})"
        table.add_row("\n".join(names + more), text, rule)
    return table


def _told_by(report: "Report") -> str:
    """What the real library says, and whether the rules say the same."""
    opinion = report.asked
    if opinion is None:
        return f"the library of {report.target} is not installed here: the rules alone were applied"
    if opinion.takes is None:
        return f"{opinion.who}: could not be asked ({_words(opinion)})"
    says = "takes it" if opinion.takes else f"refuses it: {_words(opinion)}"
    accord = "the rules say the same" if report.agrees else "the rules say otherwise; it knows better"
    builds = " (what only the builder refuses, it does not see)" if opinion.takes and opinion.stage == "parse" else ""
    warned = f"; it warns: {opinion.warnings[0]}" if opinion.warnings else ""
    return f"{opinion.who}: {says}{builds}; {accord}{warned}"


def _words(opinion: "Opinion") -> str:
    first = opinion.said[0] if opinion.said else None
    if first is None:
        return "no reason given"
    place = f" in {first.place}" if first.place else ""
    return f"{first.name}{place}: {first.text}" if first.name else first.text


def _verdict(thing: str, report: "Report") -> str:
    rules = ", ".join(dict.fromkeys(finding.rule for finding in report.rejected))
    number = len(report.rejected)
    places = "1 place" if number == 1 else f"{number} places"
    what = f"{report.target} would reject {report.graph} at {places} ({rules})"
    return f"{thing}: {what}; see the table for what to do instead"
