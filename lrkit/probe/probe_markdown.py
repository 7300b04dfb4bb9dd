"""A probe's report as Markdown."""

from collections.abc import Mapping
from typing import Any

from lrkit.probe.probe_rows import (
    HEAD,
    SIGN_HEAD,
    STEP_HEAD,
    WORD_HEAD,
    effect_rows,
    sentences,
    sign_rows,
    step_rows,
    word_rows,
)
from lrkit.profile.pages.markdown import percent, plain, table

Values = Mapping[str, Any]

_MOVED = "Distance: length of the difference over the length of the state, by latent step."


def render(report: Values) -> str:
    """The whole page; the sentence of the verdict is its first line."""
    parts = [
        f"# {plain(headline(report))}",
        f"Probe of {plain(report['model'])} on {plain(report['data'])}: {what_was_asked(report)}.",
        *map(plain, sentences(report)),
        table(("accuracy", *report["accuracy"]), [["", *(percent(value) for value in report["accuracy"].values())]]),
        "## Other latents",
        "Intervals are 95%; points lost are paired by question. Followed: the answer became the donor's.",
        table(HEAD, effect_rows(report)),
        *_part("Step by step", report["by_step"] and table(STEP_HEAD, step_rows(report))),
        *_part("Another sign in the picture", "sign" in report["input"] and _signs(report)),
        *_part("What each latent says", report["words"] and table(WORD_HEAD, word_rows(report))),
        *_part("Left out", "\n".join(f"- {plain(one['part'])}: {plain(one['reason'])}" for one in report["left_out"])),
    ]
    return "\n\n".join(parts) + "\n"


def _signs(report: Values) -> str:
    return f"{_MOVED}\n\n{table(SIGN_HEAD, sign_rows(report))}"


def _part(name: str, content: Any) -> list[str]:
    """Heading and content; nothing without content."""
    return [f"## {name}", content] if content else []


def headline(report: Values) -> str:
    """The verdict as a sentence."""
    return f"{report['sentence'][:1].upper()}{report['sentence'][1:]}"


def what_was_asked(report: Values) -> str:
    """Engine, number of questions and seed."""
    ran = report["runs_on"]
    where = "the same picture" if report["donors_share_the_picture"] else "any picture"
    return (
        f"{ran['engine']}, {ran['dtype']}, {ran['device']}; {report['samples']} questions, of which "
        f"{report['thinking']} take latent steps, at most {report['latent_steps']}, "
        f"and {report['with_donor']} have a donor on {where}; "
        f"seed {report['seed']}"
    )
