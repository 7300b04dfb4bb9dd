"""The verdict on latents, from paired figures: used, unused, or too few samples to tell. Torch-free.

Place in the pipeline: effects of the interventions -> `judge` -> the sentence at the top of the report. docs/probe.md
has the rule in words.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lrkit.contract.scoring import PairedComparison, compare_paired, wilson_interval

MARGIN = 0.05
"""An effect is nothing if its whole 95% interval is below it: 5 points."""
CARRY, IN_PART, UNUSED = (
    "these latents carry the answer",
    "these latents carry the answer, in part",
    "these latents are not used",
)
BY_LOOKS = (
    "these latents carry the answer by where they look: the visual tokens that another question replays lead to its "
    "answer, with its vectors or without"
)
UNGAINFUL = "these latents are not used for right answers: answers may move with them, but are right no more often"
MATTER = "other latents cost accuracy, but answers do not follow them: these latents matter, not what they say"
REMOVED = ("zero", "mean", "noise", "donor")
"""What is put in place of all latents."""


@dataclass(frozen=True)
class Verdict:
    """What the interventions say."""

    verdict: Literal["used", "unused"]
    decided: bool
    """False: the samples do not tell; `verdict` is then what the figures lean to."""
    sentence: str
    why: str
    more_samples: int | None
    """How many samples would tell, where these do not."""

    def to_dict(self) -> dict[str, Any]:
        """For the report."""
        return asdict(self)


@dataclass(frozen=True)
class Evidence:
    """Right and wrong answers to the same questions: those that think and have a donor."""

    samples: int
    """Of the run, with those that take no latent step."""
    latent: Sequence[bool]
    """As the model thinks."""
    removed: Mapping[str, Sequence[bool]]
    """By what is put in place of all latents; `REMOVED`."""
    followed: Sequence[bool]
    """With the donor's latents: did the answer become the donor's?"""
    control: Sequence[bool]
    """With noise: did it, by chance?"""
    same_picture: bool
    """Whether donors are about the same picture, so that their answers can be followed."""
    by_looks: Sequence[bool] = ()
    """With the donor's replayed tokens alone: did the answer become the donor's? Empty where nothing is replayed."""


def judge(evidence: Evidence) -> Verdict:
    """used: putting other latents in their place costs accuracy, and answers go where the donor's lead. unused: neither
    does, within `MARGIN`."""
    if not evidence.latent:
        why = "no question took a latent step that another question's latents could replace"
        return Verdict("unused", True, f"{UNUSED}: {why}", why, None)
    costs = {name: compare_paired(evidence.latent, right) for name, right in evidence.removed.items()}
    gain = compare_paired(evidence.followed, evidence.control)
    if _is_used(costs, gain, evidence):
        share = sum(evidence.followed) / len(evidence.followed)
        carried = not evidence.same_picture or share > 0.5
        why = _said(costs, gain, evidence)
        if carried and _by_looks(evidence):
            return Verdict("used", True, BY_LOOKS, why, None)
        return Verdict("used", True, CARRY if carried else IN_PART, why, None)
    if _is_nothing(costs["mean"]) and _is_nothing(costs["donor"]):
        moves = evidence.same_picture and not _is_nothing(gain)
        return Verdict("unused", True, UNGAINFUL if moves else UNUSED, _said(costs, gain, evidence), None)
    return _undecided(costs, gain, evidence)


def _is_used(costs: Mapping[str, PairedComparison], gain: PairedComparison, evidence: Evidence) -> bool:
    if not evidence.same_picture:
        # Latents of another picture lead nowhere that could be followed, but they look like latents.
        return _is_something(costs["donor"]) and _is_something(costs["mean"])
    removed = any(_is_something(costs[name]) for name in REMOVED if name != "donor")
    # A model that is never right has no accuracy to lose; its answers can still go with the latents.
    led, _ = wilson_interval(sum(evidence.followed), len(evidence.followed))
    return _is_something(gain) and ((removed and _is_something(costs["donor"])) or led > 0.5)


def _by_looks(evidence: Evidence) -> bool:
    """What a donor replays leads to its answer as often as its latents do, so that vectors add nothing."""
    followed, total = sum(evidence.by_looks), len(evidence.by_looks)
    if not total or wilson_interval(followed, total)[0] <= 0.5:
        return False
    return _is_nothing(compare_paired(evidence.followed, evidence.by_looks))


def _is_something(found: PairedComparison) -> bool:
    return found.low is not None and found.low > 0


def _is_nothing(found: PairedComparison) -> bool:
    return found.high is not None and found.high < MARGIN


def _undecided(costs: Mapping[str, PairedComparison], gain: PairedComparison, evidence: Evidence) -> Verdict:
    leaning = _point(gain if evidence.same_picture else costs["mean"]) > MARGIN and _point(costs["donor"]) > MARGIN
    why, asked = _said(costs, gain, evidence), evidence.samples
    verdict = "used" if leaning else "unused"
    if evidence.same_picture and _is_nothing(gain) and (_is_something(costs["donor"]) or _is_something(costs["mean"])):
        return Verdict(verdict, False, MATTER, why, None)
    # Intervals shrink with the square root of the number.
    wanted = [costs["mean"], costs["donor"], *([gain] if evidence.same_picture else [])]
    width = max((one.high or 0.0) - (one.low or 0.0) for one in wanted)
    more = max(2 * asked, min(100 * asked, round(asked * (width / MARGIN) ** 2)))
    said = f"{asked} samples are too few to tell whether these latents are used; ask for --samples {more}"
    return Verdict(verdict, False, said, why, more)


def _point(found: PairedComparison) -> float:
    return found.difference or 0.0


def _said(costs: Mapping[str, PairedComparison], gain: PairedComparison, evidence: Evidence) -> str:
    """The figures behind the verdict."""
    words = {"zero": "zeros", "mean": "their mean", "noise": "noise", "donor": "another question's"}
    parts = ", ".join(f"{words[name]} {_interval(found)}" for name, found in costs.items())
    share = sum(evidence.followed) / len(evidence.followed)
    followed = (
        f"{share:.1%} of {len(evidence.followed)} answers become the donor's, {_interval(gain)} more than with noise"
    )
    apart = (
        ""
        if evidence.same_picture
        else "; donors are about other pictures, so following them is no part of the verdict"
    )
    looks = sum(evidence.by_looks) / max(1, len(evidence.by_looks))
    looked = f"; {looks:.1%} with the visual tokens that the donor replays alone" if evidence.by_looks else ""
    return f"points of accuracy lost with other latents: {parts}; {followed}{looked}{apart}"


def _interval(found: PairedComparison) -> str:
    values = (found.difference, found.low, found.high)
    difference, low, high = (f"{100 * (value or 0.0):.1f}" for value in values)
    return f"{difference} ({low} to {high})"
