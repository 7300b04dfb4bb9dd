"""What an export asks before it compares anything with torch: would the builder of its engines take these programs?

Place in the pipeline: export/target_engines.py calls `refusal` as soon as the programs are written. The rules of
export/rules/*.yaml look for what is known to fail; NVIDIA's parser, in a process of its own, has the last word on what
it reads. Both take seconds. The comparison with torch, and a build that fails, take minutes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrkit.contract.bundle.manifest import EngineKind, ProgramEntry, Role
from lrkit.errors import ExportError
from lrkit.export.preflight.ask_library import MAJORS
from lrkit.export.preflight.findings import Finding, check_graph
from lrkit.export.preflight.opening import CheckedGraph
from lrkit.export.preflight.rules import RuleSet, load_rules, targets_of
from lrkit.export.tensorrt.jobs import Plan, Progress, check_programs, graphs_of, parse_program
from lrkit.runtime.engines.tensorrt.library import installed_version

Programs = Mapping[Role, ProgramEntry]


def refusal(folder: Path, programs: Programs, target: Mapping[str, Any], plan: Plan, progress: Progress) -> str | None:
    """Why no engine can be built from the programs in `folder`, as one sentence; None where nothing speaks against it.

    `target` holds the values of the target file. The parser is asked where its package is installed, which `plan` says.
    """
    try:
        check_programs(programs, plan.archs)
        for role, entry in programs.items():
            for graph, file, _ in graphs_of(entry):
                name = role if graph == "program" else f"{role}.{graph}"
                progress(f"asking {plan.kind} about {name}", 0, 0)
                checked = CheckedGraph(name, folder / file, target, entry.dialect)
                found = findings(checked, plan.kind, plan.archs)
                parse_program(folder, file, plan)
                # What the parser has just taken, no rule about parsing knows better.
                if wrong := [finding for finding in found if finding.stage != "parse"]:
                    raise ExportError(sentence(plan.kind, name, wrong[0]))
    except ExportError as error:
        return str(error)
    return None


def doubts(folder: Path, programs: Programs, target: Mapping[str, Any], kind: EngineKind) -> list[str]:
    """What the rules alone have against programs whose engines will be built on another machine, a sentence each."""
    said: list[str] = []
    for role, entry in programs.items():
        for graph, file, _ in graphs_of(entry):
            name = role if graph == "program" else f"{role}.{graph}"
            found = findings(CheckedGraph(name, folder / file, target, entry.dialect), kind, ())
            said += [sentence(kind, name, finding) for finding in found[:1]]
    return said


def findings(graph: CheckedGraph, kind: EngineKind, archs: tuple[str, ...]) -> list[Finding]:
    """What every release in question would reject, by the rules of one of them."""
    reports = [
        check_graph(graph, rules, tuple(arch for arch in archs if arch in rules.facts.archs), really=False).rejected
        for rules in _rule_sets(kind)
    ]
    return min(reports, key=len)


def _rule_sets(kind: EngineKind) -> list[RuleSet]:
    """Of the installed major version, or of all where none is installed."""
    version = installed_version(kind)
    major = None if version is None else int(version.partition(".")[0])
    names = targets_of("standard", kind)
    mine = [name for name in names if MAJORS[name] in (None, major)]
    return [load_rules(name) for name in mine or names]


def sentence(kind: EngineKind, graph: str, finding: Finding) -> str:
    """One finding as one sentence."""
    seen = f" ({finding.detail})" if finding.detail else ""
    reason, instead = (f"{text[:1].lower()}{text[1:].rstrip('.')}" for text in (finding.reason, finding.instead))
    return f"{kind} refuses the {graph} program at {finding.name}{seen}, as {reason}; {instead} [{finding.rule}]"
