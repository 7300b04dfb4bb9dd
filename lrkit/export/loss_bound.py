"""`--max-loss POINTS`: how many right answers a program may lose against torch, as a share of the same questions, and
how many questions it takes to see that.

Both answer every question, so the loss is paired: right in torch alone, less right in the program alone, over all. An
export fails where that is more than the bound. A set that loses nothing shows, in 19 of 20 cases, that less than
1 - 0.05^(1/n) of all is lost, with n questions; so with fewer than need be for this to be the bound, nothing could be
shown, and the export does not begin.

Place in the pipeline: the verb and bundle.py check the set (`enough`), check.py the comparison (`judge_loss`).
"""

import math
from collections.abc import Sequence
from typing import Any

from lrkit.contract.bundle.manifest import Role
from lrkit.contract.sample import Sample
from lrkit.contract.scoring import compare_paired
from lrkit.errors import ExportError, UserError

_UNSEEN = 0.05
"""How often a loss of exactly the bound may go unseen."""


def check_points(points: float) -> float:
    """Raises `UserError` where a bound, in points of accuracy, is none."""
    if not 0 < points <= 100:
        why = ", and no number of samples shows that nothing is lost" if points == 0 else ""
        raise UserError(
            f"--max-loss is {points:g}{why}; give points of accuracy, more than 0 and at most 100, as in --max-loss 0.5"
        )
    return points


def needed(points: float) -> int:
    """Questions with answers by which a loss of so many points would be seen."""
    share = points / 100
    return 1 if share >= 1 else math.ceil(math.log(_UNSEEN) / math.log1p(-share))


def enough(points: float | None, samples: Sequence[Sample]) -> None:
    """Raises `ExportError` where a bound was given and the samples cannot show a loss of it."""
    if points is None:
        return
    check_points(points)
    answered, wanted = sum(bool(one.answer) for one in samples), needed(points)
    if answered < wanted:
        raise ExportError(
            f"--max-loss {points:g} needs {wanted:,} samples with answers to see such a loss, and {answered:,} were "
            "given; give more (--data, --samples), allow a larger loss, or leave --max-loss out"
        )


def paired(right: Sequence[tuple[bool, bool]]) -> dict[str, Any]:
    """For bundle.json, of samples (right in torch, right in the program): points lost, with their 95% interval."""
    found = compare_paired([first for first, _ in right], [second for _, second in right])
    points = {name: None if value is None else round(100 * value, 4) for name, value in (
        ("points", found.difference), ("low", found.low), ("high", found.high),
    )}  # fmt: skip
    return {**points, "only_torch": found.only_first, "only_program": found.only_second, "samples": found.total}


def judge_loss(right: Sequence[tuple[bool, bool]], points: float, role: Role) -> None:
    """Raises `ExportError` where a program loses more than allowed, or torch has less than that to lose."""
    known, total = sum(first for first, _ in right), len(right)
    if known * 100 <= points * total:
        raise ExportError(
            f"--max-loss {points:g} cannot be judged: torch's {role} model answers {known} of {total} samples right, "
            "so no program could lose more; give samples that the model knows (--data)"
        )
    found, own = paired(right), sum(second for _, second in right)
    if found["points"] > points:
        raise ExportError(
            f"the {role} program loses {found['points']:.2f} points of accuracy, where --max-loss allows {points:g}: "
            f"of {total:,} answers {known:,} are right in torch and {own:,} in the program (95% interval of the loss "
            f"{found['low']:.2f} to {found['high']:.2f}); nothing was written: export with a finer precision, "
            "int4.block=32, --int4-method gptq, or --keep-sensitive"
        )
