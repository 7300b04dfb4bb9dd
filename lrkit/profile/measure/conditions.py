"""Conditions on a report's figures, for CI: `lrkit profile --fail-if "latent.p95_ms > 500"`."""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lrkit.errors import UserError, did_you_mean, shown

Figures = Mapping[str, Mapping[str, float | int | None]]

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt,
}  # fmt: skip
_HOW = "write it as in 'latent.p95_ms > 500'"
_FORM = re.compile(r"\s*(\S+)\.(\w+)\s*(>=|<=|>|<)\s*([-+]?[0-9.]+(?:[eE][-+]?\d+)?)\s*")


@dataclass(frozen=True)
class Condition:
    """`run.figure OP number`."""

    text: str
    run: str
    figure: str
    sign: str
    bound: float

    def check(self, figures: Figures) -> str | None:
        """A sentence where the condition holds, None where it does not.

        Raises:
            UserError: no such run or figure, or one that is unknown here.
        """
        if self.run not in figures:
            known = ", ".join(figures)
            raise UserError(f"--fail-if {shown(self.text)}: no run {shown(self.run)}; the report has {known}")
        row = figures[self.run]
        if self.figure not in row:
            hint = did_you_mean(self.figure, row)
            figure = shown(self.figure)
            raise UserError(f"--fail-if {shown(self.text)}: no figure {figure}; there are {', '.join(row)}{hint}")
        value = row[self.figure]
        if value is None:
            raise UserError(f"--fail-if {shown(self.text)}: it is unknown in this report; ask another")
        return f"{self.text} (it is {value:.6g})" if _OPERATORS[self.sign](value, self.bound) else None


def parse_condition(text: str) -> Condition:
    """A condition from its text.

    Raises:
        UserError: another form.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise UserError(f"--fail-if {shown(text)}: is no condition; {_HOW}, with >, <, >= or <=")
    try:
        bound = float(match[4])
    except ValueError as error:
        raise UserError(f"--fail-if {shown(text)}: {shown(match[4])} is no number; {_HOW}") from error
    return Condition(text.strip(), match[1], match[2], match[3], bound)


def failures(conditions: Sequence[Condition], figures: Figures) -> list[str]:
    """The conditions that hold, one sentence each. Raises as `Condition.check`."""
    return [found for condition in conditions if (found := condition.check(figures)) is not None]
