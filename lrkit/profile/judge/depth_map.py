"""Routed depth by layer and token: where in a prompt and in its latent steps tokens pass again through a layer.

Place in the pipeline: rows of measure/rounds.py -> `depth_map` -> profile/report.py -> charts.py's heat map.

Answers differ in length. So each chunk (the prompt, then each latent step) is cut into as many equal pieces as the map
has columns for it. Where no answer has more tokens than that, a column is a token. In a latent step the last column is
the latent, and those before it were replayed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

PROMPT_COLUMNS = 48
STEP_COLUMNS = 8
MOST_STEPS = 8
"""Later latent steps are left out of the map."""

TokenDepths = Mapping[int, Sequence[Sequence[int]]]
"""Layer -> chunk -> passes of each token: `Generated.routed_tokens`."""


def depth_map(answers: Sequence[TokenDepths], visual: Sequence[Sequence[bool]]) -> dict[str, Any] | None:
    """Mean extra passes of a token, by layer and column; None where no answer says.

    `visual` tells for each answer which tokens of its prompt are visual ones; the map has their share per column.
    """
    told = [(answer, seen) for answer, seen in zip(answers, visual, strict=True) if answer]
    if not told:
        return None
    layers = sorted(told[0][0])
    longest = max(len(answer[layers[0]]) for answer, _ in told)
    chunks = [_chunk(number, layers, [answer for answer, _ in told]) for number in range(min(longest, MOST_STEPS + 1))]
    columns = len(chunks[0]["passes"][0])
    chunks[0]["visual"] = np.mean([_pieces(np.array(seen, float), columns) for _, seen in told], 0).round(3).tolist()
    return {"layers": layers, "chunks": chunks, "latent_steps_left_out": max(0, longest - 1 - MOST_STEPS)}


def _chunk(number: int, layers: Sequence[int], answers: Sequence[TokenDepths]) -> dict[str, Any]:
    """One chunk of all answers that have it."""
    having = [answer for answer in answers if len(answer[layers[0]]) > number]
    shortest = min(len(answer[layers[0]][number]) for answer in having)
    longest = max(len(answer[layers[0]][number]) for answer in having)
    cut = _prompt_pieces if number == 0 else _step_pieces
    passes = [np.mean([cut(answer[layer][number], shortest) for answer in having], 0) for layer in layers]
    return {
        "name": "prompt" if number == 0 else f"step {number}",
        "answers": len(having),
        "tokens": [shortest, longest],
        "passes": [row.round(4).tolist() for row in passes],
    }


def _prompt_pieces(passes: Sequence[int], shortest: int) -> np.ndarray:
    return _pieces(np.array(passes, float), min(shortest, PROMPT_COLUMNS))


def _step_pieces(passes: Sequence[int], shortest: int) -> np.ndarray:
    """Replayed tokens in pieces, then the latent by itself."""
    replayed = _pieces(np.array(passes[:-1], float), min(shortest - 1, STEP_COLUMNS - 1))
    return np.append(replayed, float(passes[-1]))


def _pieces(values: np.ndarray, count: int) -> np.ndarray:
    """The mean of each of `count` equal parts."""
    return np.array([part.mean() for part in np.array_split(values, count)]) if count else np.zeros(0)
