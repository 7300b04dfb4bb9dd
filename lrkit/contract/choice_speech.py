"""Speech that ends with one of several choices, on whatever engine. Torch-free.

Place in the pipeline: an engine thinks, then gives the place where it stands -> `speak_choice` -> `Generated`.
"""

from dataclasses import dataclass

from lrkit.contract.choosing import Candidates, Place, Scored, score
from lrkit.contract.generated import Mode


@dataclass(frozen=True)
class SpokenChoice:
    """Speech that ends with a choice."""

    before: list[int]
    """Tokens in front of the choice."""
    chosen: list[int]
    """Tokens of the most probable one."""
    passes: int
    """Forward passes, those of the scoring included."""
    scored: Scored


def speak_choice(start: Place, mode: Mode, most: int, candidates: Candidates) -> SpokenChoice:
    """Speaks greedily up to the answer's marker, at most `most` tokens, and scores the choices there.

    In the mode direct the marker stands in the prompt. Where none is said, the choices stand where an answer would:
    after latents at the beginning of the speech, since nothing but the answer need be said there; after spoken steps
    behind a marker that is put in. Raises as `score`, and what a `Place` raises.
    """
    spoken, place, marked, passes = list[int](), start, mode == "direct", 0
    if not marked:
        spoken, place, marked = _speak_to_marker(start, most, candidates)
        passes = len(spoken)
    if not marked and mode == "latent":
        spoken, place = [], start
    elif not marked:
        put_in = [*(candidates.separator if spoken else ()), *candidates.marker]
        for token in put_in:
            place = place.after(token)
        spoken, passes = spoken + put_in, passes + len(put_in)
    scored = score(candidates, place)
    best = scored.best(candidates.choices.per_token)
    return SpokenChoice(spoken, list(candidates.ids[best]), passes + scored.passes, scored)


def _speak_to_marker(place: Place, most: int, candidates: Candidates) -> tuple[list[int], Place, bool]:
    """Greedy tokens up to and with the marker, the place behind them, and whether the marker was said."""
    spoken: list[int] = []
    while len(spoken) < most:
        token = int(place.log_probabilities().argmax())
        if token in candidates.ends:
            break
        spoken.append(token)
        place = place.after(token)
        if tuple(spoken[-len(candidates.marker) :]) == candidates.marker:
            return spoken, place, True
    return spoken, place, False
