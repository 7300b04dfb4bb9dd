"""The rows of a probe's tables, for Markdown, HTML and the terminal alike."""

from collections.abc import Iterator, Mapping
from typing import Any

from lrkit.probe.options import PART_MEANINGS
from lrkit.profile.pages.markdown import interval, number, percent

Values = Mapping[str, Any]

HEAD = (
    "in place of the latents",
    "questions",
    "right before",
    "right",
    "points lost",
    "answers changed",
    "follow the donor",
)
STEP_HEAD = ("what", "step", "questions", "right", "points lost", "answers changed", "follow the donor")
SIGN_HEAD = ("sign of hop", "questions", "answers changed", "go where it leads", "distance by latent step")
WORD_HEAD = (
    "latent step", "states", "right room first", "mean rank of the right room", "words", "cosine to nearest word",
    "distance to it",
)  # fmt: skip


def effect_rows(report: Values) -> list[list[str]]:
    """What was put in place of all latents, and what was done to the input."""
    found = {PART_MEANINGS[name]: one for name, one in report["latents"].items()}
    found |= {PART_MEANINGS[name]: one for name, one in report["input"].items() if name != "sign"}
    return [
        [name, str(one["asked"]), percent(one["right_before"]["value"]), *_figures(one)] for name, one in found.items()
    ]


def step_rows(report: Values) -> list[list[str]]:
    """What was done from one step on, or at one step alone."""
    return [
        [PART_MEANINGS[name], step, str(one["asked"]), *_figures(one)]
        for name, by_step in report["by_step"].items()
        for step, one in by_step.items()
    ]


def sign_rows(report: Values) -> list[list[str]]:
    """Hop by hop: how far the states move when its sign is another."""
    return [
        [hop, str(one["asked"]), _share(one["changed"]), _share(one["followed"]),
         ", ".join(number(value, 2) for value in one["distance_by_step"])]
        for hop, one in report["input"]["sign"]["by_hop"].items()
    ]  # fmt: skip


def word_rows(report: Values) -> list[list[str]]:
    """Step by step: what the states say."""
    return [
        [step, str(one["states"]), percent(one["right_room_first"]), _rank(one["right_room_rank"]),
         ", ".join(f"{word} {share:.0%}" for word, share in one["words"]), *_nearest(one["nearest_word"])]
        for step, one in (report["words"] or {}).items()
    ]  # fmt: skip


def sentences(report: Values) -> Iterator[str]:
    """What stands below the first sentence."""
    yield f"{report['why'][:1].upper()}{report['why'][1:]}."
    sign = report["input"].get("sign")
    if sign is not None and sign["moved"]["at"]["states"]:
        moved = [number(sign["moved"][place]["distance"], 2) for place in ("before", "at", "after")]
        only = percent(sign["only_from_that_hop"]["value"])
        yield (
            f"Another sign in the picture moves the latent of its hop by {moved[1]} of its length, those after it by "
            f"{moved[2]}, those before it by {moved[0]}; in {only} of the questions by more than any before."
        )


def _rank(found: Values | None) -> str:
    return "-" if found is None else number(found["mean"], 2)


def _nearest(found: Values | None) -> list[str]:
    return ["-", "-"] if found is None else [number(found[key]["mean"], 2) for key in ("cosine", "distance")]


def _figures(one: Values) -> list[str]:
    followed = "-" if one["followed"] is None else _share(one["followed"])
    return [_share(one["right"]), interval(one["lost"], 100, 1), _share(one["changed"]), followed]


def _share(found: Values) -> str:
    """With its interval."""
    if found["value"] is None:
        return "-"
    return f"{percent(found['value'])} ({100 * found['low']:.1f} to {100 * found['high']:.1f})"
