"""What a target rejects or ignores, as data: the rules of `export/rules/*.yaml`, read strictly.

Place in the pipeline: findings.py asks `load_rules` for those of one target and holds a program against them. A rule
names a matcher, a pure function over the graph (operators.py, loops.py, packed.py), and gives it values. What is
wrong, why, and how that is known stands in the YAML alone.
"""

from collections import Counter
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Literal, cast, get_args

from pydantic import Field, JsonValue, model_validator

from lrkit.config import Config, load_config
from lrkit.contract.bundle.manifest import Dialect, EngineKind
from lrkit.errors import ConfigError, UnknownNameError, UserError, did_you_mean, one_line
from lrkit.resources import find_rules, list_resources

TargetName = Literal["tensorrt-10", "tensorrt-11", "tensorrt-rtx", "openvino", "ort"]
TARGETS: tuple[TargetName, ...] = get_args(TargetName)

Verdict = Literal["rejected", "ignored", "slow", "note"]
"""rejected: no engine or session comes of it; ignored: taken, but part of it is not done; slow: works, but loses int4,
memory or speed; note: to be known."""
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)

Basis = Literal["measured", "documented", "inferred"]
"""How a rule is known for a target; `source` says where."""
Stage = Literal["parse", "build", "load"]
"""Where a program is rejected: TensorRT's parser or builder, or ONNX Runtime or OpenVINO as they load it."""
Where = Literal["anywhere", "top", "loop", "branch", "body"]
"""Which nodes a rule looks at: all, those of the outermost graph, those inside a Loop or Scan, inside a branch of an
If, or inside any of them."""
OPERATORS_ENDING = "-operators"
"""How the names of files end that hold tables of operators instead of rules."""


class Rule(Config):
    """One thing to look for."""

    id: str = Field(pattern=r"^[a-z0-9-]+$")
    """Its name, in reports and tests."""
    targets: dict[TargetName, Basis]
    """Targets it holds for, and how that is known."""
    verdict: Verdict
    """What the target does."""
    stage: Stage | None = None
    """Where it is rejected; null for the other verdicts."""
    match: str
    """Name of the matcher that finds it."""
    given: dict[str, JsonValue] = {}
    """Values for the matcher."""
    where: Where = "anywhere"
    """Which nodes it looks at."""
    archs: tuple[str, ...] = ()
    """GPUs it holds for, as sm75; empty: all."""
    reason: str
    """What the target does with it, in one sentence."""
    instead: str
    """What to do."""
    source: str
    """Where that is known from: the version it was measured on, or the document."""

    @model_validator(mode="after")
    def _stage_belongs_to_rejected(self) -> "Rule":
        if (self.verdict == "rejected") != (self.stage is not None):
            raise ValueError("a rule has a stage if its verdict is rejected, and none otherwise; mend the rule")
        return self


class TargetFacts(Config):
    """One target of a rule file."""

    description: str
    """What it is, in one sentence."""
    dialect: Dialect
    """The dialect that lrkit writes for it."""
    export: str
    """The target file by which a checkpoint is built to be checked, where none is named."""
    archs: tuple[str, ...] = ()
    """GPUs it can build for, as sm89; empty: not known here."""


class RuleFile(Config):
    """One file of `export/rules`."""

    description: str
    """One sentence, shown by `lrkit ls`."""
    targets: dict[TargetName, TargetFacts]
    """Targets whose rules it holds."""
    rules: tuple[Rule, ...]
    """In the order of the report."""


class OperatorTable(Config):
    """Which operators a target has an importer for, and for which types of their first input."""

    description: str
    """One sentence, shown by `lrkit ls`."""
    source: str
    """Document and version."""
    types: dict[str, tuple[str, ...]]
    """Name of a set of types -> ONNX's names of them."""
    operators: dict[str, tuple[str, ...]]
    """Name of a set of types -> operators that take it."""
    unsupported: tuple[str, ...]
    """Operators that the document names as not supported."""
    contributed: tuple[str, ...]
    """Operators of other domains, DOMAIN::NAME, that were built."""
    also: dict[str, tuple[str, ...]]
    """Operator -> types that the document leaves out and the builder took."""
    refused: dict[str, tuple[str, ...]]
    """Operator -> types that the document names and the parser refused."""
    since: dict[str, str]
    """Operator -> first release of TensorRT that has it; others are older than 10.1."""

    def types_of(self, operator: str) -> frozenset[str] | None:
        """Types of the first input; None for an operator that is not in the table."""
        return self._by_operator.get(operator)

    @cached_property
    def _by_operator(self) -> dict[str, frozenset[str]]:
        return {
            operator: (frozenset(self.types[name]) | set(self.also.get(operator, ())))
            - set(self.refused.get(operator, ()))
            for name, operators in self.operators.items()
            for operator in operators
        }


@dataclass(frozen=True)
class RuleSet:
    """The rules of one target."""

    target: TargetName
    facts: TargetFacts
    rules: tuple[Rule, ...]

    def check_archs(self, archs: tuple[str, ...]) -> None:
        """Refuses GPUs that the target cannot build for.

        Raises:
            UserError: there is such a one, or the target is no GPU's.
        """
        if archs and self.target in ("ort", "openvino"):
            raise UserError(f"{', '.join(archs)} are GPUs, and the rules of {self.target} are a CPU's; leave them out")
        wrong = [arch for arch in archs if self.facts.archs and arch not in self.facts.archs]
        if wrong:
            known = self.facts.archs
            raise UserError(
                f"{self.target} cannot build for {', '.join(wrong)}; it knows {', '.join(known)}"
                f"{did_you_mean(wrong[0], known)}"
            )


def load_rules(target: str) -> RuleSet:
    """The rules of a target, from all files of `export/rules`.

    Raises:
        UnknownNameError: no such target; the message lists the known ones.
        ConfigError: a file is wrong.
    """
    found = [(name, file) for name, file in rule_files().items() if target in file.targets]
    if not found:
        raise UnknownNameError(
            f"unknown target {one_line(repr(target), 80)}; rules are there for {', '.join(TARGETS)}"
            f"{did_you_mean(target, TARGETS)}"
        )
    name = cast(TargetName, target)
    rules = tuple(rule for _, file in found for rule in file.rules if name in rule.targets)
    return RuleSet(name, found[0][1].targets[name], rules)


def targets_of(dialect: Dialect, engine: EngineKind | None, openvino: bool = False) -> tuple[TargetName, ...]:
    """The targets that a program is meant for, by its dialect, the engines asked for beside it, and whether OpenVINO is
    to run it."""
    if dialect == "ort":
        return ("ort",)
    if openvino:
        return ("openvino",)
    if engine is None:
        return ("tensorrt-rtx", "tensorrt-11", "tensorrt-10")
    return ("tensorrt-rtx",) if engine == "tensorrt-rtx" else ("tensorrt-11", "tensorrt-10")


@cache
def rule_files() -> dict[str, RuleFile]:
    """Name -> content of every file of rules.

    Raises:
        ConfigError: a file is wrong, or an id stands twice.
    """
    paths = [r.path for r in list_resources("rules") if not r.path.stem.endswith(OPERATORS_ENDING)]
    files = {path.stem: load_config(RuleFile, path) for path in paths}
    counts = Counter(rule.id for file in files.values() for rule in file.rules)
    if twice := sorted(name for name, count in counts.items() if count > 1):
        raise ConfigError(f"{paths[0].parent}: the rules {', '.join(twice)} stand there twice; give each its own id")
    for name, file in files.items():
        for rule in file.rules:
            if strange := sorted(set(rule.targets) - set(file.targets)):
                raise ConfigError(
                    f"{name}: rule {rule.id} names {', '.join(strange)}; name only what the file declares under targets"
                )
    return files


@cache
def load_operators(name: str) -> OperatorTable:
    """The table of operators of that name. Raises as `load_config` and `find_rules`."""
    return load_config(OperatorTable, Path(find_rules(name)))
