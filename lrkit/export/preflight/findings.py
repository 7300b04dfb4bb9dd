"""Holds an ONNX program against the rules of a target: what it would reject, ignore or slow down, and where.

    program --preflight_graph--> View --matchers by rule--> findings --the real parser, where it is there--> Report

Place in the pipeline: `lrkit preflight THING` (lrkit/cli/preflight.py) opens the thing by opening.py and
calls `check_graph`. Rules are data: export/rules/*.yaml, read by rules.py.
"""

import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lrkit.errors import ConfigError, UserError, did_you_mean, one_line
from lrkit.export.preflight import loops, operators, packed
from lrkit.export.preflight.ask_library import Opinion, ask
from lrkit.export.preflight.opening import CheckedGraph
from lrkit.export.preflight.rules import Basis, Rule, RuleSet, Stage, Verdict
from lrkit.export.preflight.view import Hit, Hits, View

Matcher = Callable[..., Hits]
MATCHERS: dict[str, Matcher] = {
    function.__name__: function
    for function in (
        operators.attribute_missing, operators.attribute_value, operators.computes_in_type,
        operators.constant_above, operators.dynamic_input,
        operators.dynamic_sizes, operators.foreign_domain, operators.input_given, operators.input_length,
        operators.input_twice, operators.input_rank, operators.input_type, operators.input_varies,
        operators.made_type, operators.operator, operators.operator_floor, operators.operator_missing,
        operators.operator_since, operators.operator_type, operators.opset_outside, operators.output_used,
        operators.stored_type, operators.target_option, operators.trailing_empty_input, operators.type_used,
        loops.branch_rank, loops.cache_axis, loops.cache_elsewhere, loops.condition_read, loops.growing_state,
        loops.iteration_read, loops.scan_output, loops.trip_missing, packed.block_axis, packed.block_size,
        packed.crosses_branch, packed.float_copy, packed.fusion, packed.odd_volume,
        packed.outer_weight, packed.quantized_elsewhere, packed.scale_type, packed.shared_by_loop,
        packed.shared_side_by_side, packed.uneven_blocks, packed.zero_point,
    )
}  # fmt: skip
"""What a rule may name as `match`."""

UNEXPECTED = "refused"
"""Id of the finding that stands for a refusal of the real library which no rule foresaw."""


@dataclass(frozen=True)
class Finding:
    """One place in a program, and what the target does with it."""

    rule: str
    """Id of the rule."""
    verdict: Verdict
    stage: Stage | None
    """Where a rejected program is rejected."""
    name: str
    """Full name of the node, with the loops and branches around it; or of an input or constant."""
    operator: str
    detail: str
    """What was seen there."""
    reason: str
    instead: str
    basis: Basis
    """How the rule is known for this target."""
    source: str


@dataclass(frozen=True)
class Report:
    """What was found in one graph."""

    graph: str
    """Its name: model.onnx, latent, latent.think, ..."""
    target: str
    archs: tuple[str, ...]
    num_nodes: int
    findings: tuple[Finding, ...]
    asked: Opinion | None
    """What the real library says; None where it is not installed, or was not asked."""
    agrees: bool | None
    """Whether that is what the rules say of its stage; None where there is nothing to compare."""

    @property
    def rejected(self) -> list[Finding]:
        """Findings for which no engine or session would come of the program."""
        return [finding for finding in self.findings if finding.verdict == "rejected"]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON report."""
        return {**asdict(self), "ok": not self.rejected}


def check_graph(
    graph: CheckedGraph, rules: RuleSet, archs: tuple[str, ...] = (), really: bool = True, apart: bool = False
) -> Report:
    """Holds one graph against the rules of a target.

    `archs` are the GPUs it is meant for, as sm89: rules that hold for some GPUs only are notes where none is given.
    `really` also asks the library itself, where it is installed: TensorRT's parser, or ONNX Runtime; with `apart` in a
    process of its own.

    Raises:
        UserError: no ONNX program, one that contradicts itself, or a GPU that the target cannot build for.
        ConfigError: a rule that is wrong.
    """
    rules.check_archs(archs)
    view = graph.view()
    findings = [finding for rule in rules.rules for finding in _apply(graph, rule, rules, view, archs)]
    opinion = ask(rules.target, graph.path, view, apart) if really else None
    agrees: bool | None = None
    if opinion is not None and opinion.takes is not None:
        foreseen = any(f.verdict == "rejected" and f.stage == opinion.stage for f in findings)
        agrees = opinion.takes is not foreseen
        if not opinion.takes and not foreseen:
            findings += _unforeseen(opinion)
    return Report(graph.name, rules.target, archs, len(view.sites), tuple(findings), opinion, agrees)


def _apply(graph: CheckedGraph, rule: Rule, rules: RuleSet, view: View, archs: tuple[str, ...]) -> list[Finding]:
    matcher = bound(rule)
    try:
        hits = [hit for hit in matcher(view) if hit.site is None or hit.site.is_at(rule.where)]
    except Exception as error:  # attributes of the wrong kind, numbers that cannot be: whatever a stranger wrote
        raise UserError(
            f"{graph.path}: contradicts itself, so that the rule {rule.id} cannot be applied ({one_line(error)}); "
            "mend it"
        ) from error
    basis = rule.targets[rules.target]
    found = [_finding(rule, basis, hit) for hit in hits]
    if not rule.archs:
        return found
    concerned = [arch for arch in archs if arch in rule.archs]
    if concerned:
        return [replace(f, reason=f"{', '.join(concerned)}: {f.reason}") for f in found]
    text = f"Refused for {', '.join(rule.archs)}: {rule.reason}"
    return [] if archs else [replace(f, verdict="note", stage=None, reason=text) for f in found]


def _finding(rule: Rule, basis: Basis, hit: Hit) -> Finding:
    return Finding(
        rule.id, rule.verdict, rule.stage, hit.name, hit.operator, hit.detail, rule.reason, rule.instead, basis,
        rule.source,
    )  # fmt: skip


def _unforeseen(opinion: Opinion) -> list[Finding]:
    """Refusals that no rule explains: the library knows better."""
    return [
        Finding(
            UNEXPECTED, "rejected", opinion.stage, said.name, said.operator, said.place, said.text,
            "Write it otherwise; and tell lrkit, whose rules do not have it.", "measured", opinion.who,
        )
        for said in opinion.said
    ]  # fmt: skip


def bound(rule: Rule) -> Matcher:
    """The matcher of a rule with the rule's values.

    Raises:
        ConfigError: no such matcher, or values that it does not take.
    """
    matcher = MATCHERS.get(rule.match)
    if matcher is None:
        raise ConfigError(
            f"rule {rule.id}: match is {rule.match!r}, which is no matcher{did_you_mean(rule.match, MATCHERS)}; known "
            f"are {', '.join(sorted(MATCHERS))}"
        )
    try:
        inspect.signature(matcher).bind(None, **rule.given)
    except TypeError as error:
        raise ConfigError(f"rule {rule.id}: {rule.match}: {error}; correct `given`") from error
    return lambda view: matcher(view, **rule.given)


def load_graph(path: Path) -> CheckedGraph:
    """One ONNX file as a graph to check.

    Raises:
        UserError: there is no such file.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; give an ONNX file, a bundle or a checkpoint")
    return CheckedGraph(path.name, path)
