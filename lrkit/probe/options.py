"""What a probe is asked to do. Torch-free."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from lrkit.errors import UserError, did_you_mean, one_line

Part = Literal[
    "zero",
    "mean",
    "noise",
    "donor",
    "looks",
    "shuffled",
    "truncated",
    "frozen",
    "patched",
    "sign",
    "replay",
    "routing",
    "words",
]
PARTS: tuple[Part, ...] = get_args(Part)
ALWAYS: tuple[Part, ...] = ("zero", "mean", "noise", "donor")
"""The verdict is made of these."""
PART_MEANINGS: dict[str, str] = {
    "zero": "zeros in place of every latent",
    "mean": "the mean over the questions, step by step",
    "noise": "a random direction of equal norm",
    "donor": "another question's latents",
    "looks": "the latents as they are, and the visual tokens that the donor replays",
    "shuffled": "the question's own latents in another order",
    "truncated": "no latent after step t",
    "frozen": "from step t on always the latent of step t",
    "patched": "another question's latent at step t alone",
    "sign": "another sign in the picture",
    "replay": "random visual tokens replayed",
    "routing": "routing switched off",
    "words": "what each latent says through the head",
}


@dataclass(frozen=True)
class ProbeOptions:
    """How to probe."""

    parts: tuple[Part, ...] = PARTS
    seed: int = 0
    """Of everything that is drawn: noise, orders, donors, signs."""
    batch_size: int = 50
    max_new_tokens: int | None = None
    """None: what a bundle was made for; 256 for a checkpoint."""
    max_pixels: int | None = None
    """Larger pictures are shrunk to it; None: the model's own limits."""


def parse_parts(names: Sequence[str]) -> tuple[Part, ...]:
    """Parts from "frozen,sign" or several such; those of the verdict are always among them.

    Raises:
        UserError: an unknown part, or none.
    """
    given = [name.strip() for text in names for name in text.split(",") if name.strip()]
    wrong = [name for name in given if name not in PARTS]
    if wrong:
        hint = did_you_mean(wrong[0], PARTS)
        raise UserError(f"unknown intervention {one_line(repr(wrong[0]), 60)}; give any of {', '.join(PARTS)}{hint}")
    if not given:
        raise UserError(f"no intervention was named; give any of {', '.join(PARTS)}, or leave the option out")
    return tuple(part for part in PARTS if part in given or part in ALWAYS)
