"""Judges how far a program is from torch, and whether the comparison could show a wrong program at all.

Place in the pipeline: check.py collects the differences in `Found`; `judge` gives the verdict that the bundle keeps.

What proves a program:
    floats       numbers and spoken tokens: few samples show a wrong graph
    integers     rounding changes numbers and tokens, so right answers are counted. Where torch has next to none to
                 lose (too few samples, samples without answers, an untrained model), any program would pass that
                 bound; numbers and tokens are bounded instead, wider than for fp16
    integers whose values torch holds: numbers, as for floats

Of a tower that chooses words, the share chosen otherwise is bounded by itself, in every scheme. All the rest is
compared behind equal words (chosen_tokens.py).

How much is allowed is in the row of the scheme (lrkit/contract/schemes.py). What a program answers behind a look is
held against what it answers to the whole prompt: in float32 within 1e-5.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from lrkit.contract.bundle.manifest import Role, Validation
from lrkit.contract.schemes import Bounds, Tolerance
from lrkit.errors import ExportError
from lrkit.export.loss_bound import paired
from lrkit.export.phases.phase_errors import NORM, Errors

MIN_RIGHT = 20
"""Right answers that torch must have for a loss of 5% to be seen."""

PARTS = 1e-5
"""How far, in float32, an ask's numbers may be from those of the whole prompt, of the largest."""

TIE = 0.02
"""Two words further apart are no tie, however far numbers are off."""

ROUNDED_PARTS = 0.25
"""The same of integers whose row says nothing of numbers. Two models that have nothing in common are 1 off or more."""

Proof = Literal["numbers", "answers", "none"]


@dataclass
class Found:
    """Differences collected over the samples."""

    logits: list[float] = field(default_factory=list)
    states: list[float] = field(default_factory=list)
    first: dict[str, str] = field(default_factory=dict)
    """Kind of difference -> where it was first seen."""
    same: dict[str, int] = field(default_factory=dict)
    """Kind -> samples without a difference."""
    right: dict[str, int] = field(default_factory=lambda: {"torch": 0, "program": 0})
    paired: list[tuple[bool, bool]] = field(default_factory=list[tuple[bool, bool]])
    """Of each sample with an answer: whether torch, and whether the program, gave it."""
    phases: Errors = field(default_factory=Errors)
    """Relative errors in the Euclidean norm, by phase: prompt.logits, latent.1 ..., latent.last."""
    words: list[float] = field(default_factory=list[float])
    """Of each sample: the share of torch's words that the program says before the first that differs."""
    apart: list[float] = field(default_factory=list[float])
    """Of each sample whose answer parts from torch's behind as many latent steps: how far torch holds apart the two
    words (near_words.py)."""
    num_samples: int = 0
    num_answers: int = 0
    chosen: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    """Of each picture whose tokens were chosen: how many otherwise than by torch, of how many."""

    behind: list[float] = field(default_factory=list[float])
    """Of each sample that was also asked behind a look: largest relative error of logits and latent states, against the
    whole prompt's."""
    behind_torch: list[float] = field(default_factory=list[float])
    """The same against torch."""
    behind_otherwise: list[str] = field(default_factory=list[str])
    """What of these was chosen otherwise than for the whole prompt."""
    behind_apart: list[float] = field(default_factory=list[float])
    """Of each of these that chose other words alone: how far torch holds them apart, as `apart`."""

    @property
    def chosen_otherwise(self) -> float:
        """Visual tokens chosen otherwise, as a share of a picture's: that of the worst picture."""
        return max((count / size for count, size in self.chosen), default=0.0)

    @property
    def chosen_tokens(self) -> tuple[int, int]:
        """Visual tokens of all pictures: chosen otherwise, and all."""
        return sum(count for count, _ in self.chosen), sum(size for _, size in self.chosen)

    def chooses_within(self, share: float) -> bool:
        """Whether that is so for at most `share` of each picture's tokens, or for one."""
        return all(count <= max(1.0, share * size) for count, size in self.chosen)

    @property
    def off(self) -> float:
        """Largest relative error of logits and latent states."""
        return float(np.max([*self.logits, *self.states], initial=0.0))  # NaN where one is, which max() may pass over

    @property
    def agreement(self) -> dict[str, float]:
        """Kind -> part of the samples without a difference."""
        return {kind: same / max(1, self.num_samples) for kind, same in self.same.items()}

    @property
    def ties(self) -> int:
        """Answers that part where torch holds two words no further apart than the program's numbers are off, each of
        the two by as much."""
        return _ties(self.apart, self.off)

    @property
    def behind_ties(self) -> int:
        """The same of answers behind a look."""
        return _ties(self.behind_apart, float(np.max(self.behind_torch, initial=self.off)))

    @property
    def spoken_alike(self) -> float:
        """Part of the samples whose answers are torch's, or part from them at a tie."""
        same = self.same.get("spoken tokens")
        return 1.0 if same is None else (same + self.ties) / max(1, self.num_samples)

    @property
    def lost(self) -> float:
        """Right answers of torch that the program lost, as a part of all answers."""
        return (self.right["torch"] - self.right["program"]) / max(1, self.num_answers)


def _ties(apart: list[float], off: float) -> int:
    return sum(one <= min(2 * off, TIE) for one in apart)


def uncompared(why: str) -> Validation:
    """Of a program that was not compared with torch at all."""
    return Validation(
        passed=False, num_samples=0, tolerance={}, measured={"proof": "none"},
        tolerance_reason=f"NOTHING IS PROVEN: {why}, which was allowed",
    )  # fmt: skip


def judge(
    found: Found, tolerance: Tolerance, role: Role, *, rounded: bool = False, allow_unproven: bool = False
) -> Validation:
    """The verdict. `rounded` and `allow_unproven` as in `check_program`.

    Raises:
        ExportError: the program differs by more than allowed, or nothing is proven and that is not allowed.
    """
    allowed, reason = dict(tolerance.bounds), tolerance.reason
    if not found.chooses_within(tolerance.chosen_otherwise):
        raise ExportError(_too_many(found, tolerance, role))
    if found.lost > allowed["accuracy_drop"]:
        raise ExportError(_complaint(found, allowed, reason, role))
    _judge_scenes(found, tolerance, role)
    proof: Proof = "numbers"
    if "numbers" in allowed:
        if not _within(found, allowed, tolerance.every_choice):
            raise ExportError(_complaint(found, allowed, reason, role))
    elif rounded:
        allowed |= tolerance.held
        reason = tolerance.held_reason
        if not _within(found, tolerance.held):
            raise ExportError(_complaint(found, allowed, reason, role))
    elif found.right["torch"] >= MIN_RIGHT:
        proof = "answers"
    else:
        allowed |= tolerance.unanswered
        reason += f"; torch has {found.right['torch']} right answers to lose, so numbers and spoken tokens are bounded"
        if not _within(found, tolerance.unanswered):
            if not allow_unproven:
                raise ExportError(_unproven(found, role))
            proof, reason = "none", f"{tolerance.reason}; NOTHING IS PROVEN by these samples, which was allowed"
    if found.chosen:
        allowed |= {"chosen_otherwise": tolerance.chosen_otherwise}
        reason += f"; {tolerance.chosen_reason}"
    return Validation(
        passed=proof != "none", num_samples=found.num_samples, tolerance=allowed, tolerance_reason=reason,
        measured=_measured(found, proof),
    )  # fmt: skip


def _within(found: Found, allowed: Bounds, every_choice: bool = False) -> bool:
    agreed = min(found.agreement.values(), default=1.0) if every_choice else found.spoken_alike
    # A number that is none compares as false: it must not pass. Nor does a row that says nothing of numbers.
    within = found.off <= allowed.get("numbers", -1.0)
    return found.num_samples > 0 and within and agreed >= allowed.get("agreement", 0.0)


def _measured(found: Found, proof: Proof) -> dict[str, Any]:
    def part(who: str) -> float | None:
        return found.right[who] / found.num_answers if found.num_answers else None

    return {
        "prefill_logits": max(found.logits, default=0.0), "latent_states": max(found.states, default=0.0),
        "agreement": found.agreement, "ties": found.ties, "proof": proof,
        "accuracy_torch": part("torch"), "accuracy_program": part("program"),
        **_by_phase(found), **_lost(found), **_chosen(found), **_scenes(found),
    }  # fmt: skip


def _by_phase(found: Found) -> dict[str, Any]:
    """Errors by phase. A program gives no numbers of its speech, so there words are counted."""
    if not found.words:
        return {}
    speech = {"words_alike": float(np.mean(found.words)), "samples": len(found.words)}
    return {"phases": {"norm": NORM, **found.phases.summary(), "speech": speech}}


def _lost(found: Found) -> dict[str, Any]:
    return {"lost": paired(found.paired)} if found.paired else {}


def _judge_scenes(found: Found, tolerance: Tolerance, role: Role) -> None:
    """Raises `ExportError` where answers behind a look are not those of whole prompts."""
    if not found.behind:
        return
    # Integers round activations, and few tokens are rounded by other kernels than many: that flips near ties.
    rounded = {"numbers": tolerance.unanswered.get("numbers", ROUNDED_PARTS)}
    bounds = tolerance.bounds if "numbers" in tolerance.bounds else rounded
    most = PARTS if tolerance.every_choice else bounds["numbers"]
    other = len(found.behind_otherwise) - (0 if tolerance.every_choice else found.behind_ties)
    off, agreed = float(np.max(found.behind)), 1 - other / len(found.behind)
    if off <= most and agreed >= bounds.get("agreement", 0.0):
        return
    first = f", {found.behind_otherwise[0]}" if found.behind_otherwise else ""
    raise ExportError(
        f"behind a look at the pictures the {role} program's numbers are {off:.2e} from those of the whole prompt, "
        f"where {most:g} is allowed, and {agreed:.0%} of the answers are the same{first}; nothing was written: export "
        "with a finer precision, or with scenes=false"
    )


def _scenes(found: Found) -> dict[str, Any]:
    """Of answers behind a look; nothing where none were asked for."""
    if not found.behind:
        return {}
    same = 1 - len(found.behind_otherwise) / len(found.behind)
    numbers = {"numbers": max(found.behind), "numbers_torch": max(found.behind_torch)}
    return {"scenes": {"samples": len(found.behind), "agreement": same, "ties": found.behind_ties, **numbers}}


def _chosen(found: Found) -> dict[str, Any]:
    """Of visual tokens that are chosen; nothing where none are."""
    if not found.chosen:
        return {}
    otherwise, tokens = found.chosen_tokens
    return {"chosen_otherwise": {"tokens": otherwise, "of": tokens, "worst_picture": found.chosen_otherwise}}


def _complaint(found: Found, allowed: dict[str, float], reason: str, role: Role) -> str:
    bounds = ", ".join(f"{name} {value:g}" for name, value in allowed.items())
    return (
        f"the {role} program differs from torch by more than is allowed ({bounds}; {reason}): {_seen(found)}; nothing "
        "was written: export with a finer precision (--target cpu-fp32 is exact), or int4.block=32"
    )


def _too_many(found: Found, tolerance: Tolerance, role: Role) -> str:
    count, size = max(found.chosen, key=lambda picture: picture[0] / picture[1])
    return (
        f"the vision tower of the {role} program chooses {count} of the {size} visual tokens of a picture otherwise "
        f"than torch, where {tolerance.chosen_otherwise:.0%}, or one, are allowed ({tolerance.chosen_reason}); nothing "
        "was written: compare on other pictures (--data, --samples), or export a checkpoint whose codes lie apart"
    )


def _unproven(found: Found, role: Role) -> str:
    return (
        f"nothing proves the {role} program: torch has {found.right['torch']} right answers on {found.num_samples} "
        f"samples, where {MIN_RIGHT} show a loss, and the rest differs too much to tell ({_seen(found)}); give samples "
        "with answers that the model knows (--data, --samples), or --allow-unproven to write the bundle all the same"
    )


def _seen(found: Found) -> str:
    """What differs, in half a sentence."""
    parts = [f"prefill_logits by {max(found.logits, default=0.0):.2e}"]
    parts += [f"latent_states by {max(found.states):.2e}"] if found.states else []
    tokens = found.agreement.get("spoken tokens", 1.0)
    ties = f", {found.ties} part at a tie" if found.ties else ""
    parts += [f"{tokens:.0%} of the spoken answers are equal{ties}"]
    parts += [f"{kind} first at {where}"[:120] for kind, where in found.first.items()]
    if found.chosen:
        otherwise, tokens = found.chosen_tokens
        parts.append(f"{otherwise} of {tokens} visual tokens chosen otherwise")
    if found.num_answers:
        parts.append(f"right answers {found.right['program']} of {found.num_answers}, torch {found.right['torch']}")
    return ", ".join(parts)
