"""Compares answers of a reasoner with rounded weights with those of the one in floats: errors by phase and by layer,
what was chosen otherwise, right answers, perplexity.

Place in the pipeline: answers.py answers -> `Comparison.add`, sample by sample -> `Comparison.report`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lrkit.contract.bundle.manifest import Limits, Role
from lrkit.contract.extract import is_correct
from lrkit.contract.scoring import compare_paired
from lrkit.export.phases.answers import Answered, answers
from lrkit.export.phases.phase_errors import NORM, Errors, off
from lrkit.model.reasoner import LatentReasoner
from lrkit.runtime.encode.processor import EncodedPrompt, Processor

BATCH = 250
"""Samples that are answered at once."""


@dataclass
class Comparison:
    """What was found so far."""

    processor: Processor
    role: Role
    errors: Errors = field(default_factory=Errors)
    layers: dict[str, list[list[float]]] = field(default_factory=dict[str, list[list[float]]])
    """Phase -> errors by layer, sample by sample."""
    same: dict[str, list[bool]] = field(default_factory=dict[str, list[bool]])
    """What is chosen -> whether both chose the same, sample by sample."""
    right: tuple[list[bool], list[bool]] = field(default_factory=lambda: ([], []))
    """Whether an answer was right: in floats, rounded."""
    lost: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    """Negative log likelihoods of the words: in floats, rounded."""

    def add(self, expected: Answered, seen: Answered, answer: str | None) -> None:
        """One sample: in floats, rounded, and the right answer where it is known."""
        for phase, states in expected.states.items():
            if phase in seen.states:
                self.errors.add(phase, seen.states[phase], states)
        steps = expected.said.latent_steps
        if steps and steps == seen.said.latent_steps:
            self.errors.add("latent.last", seen.states[f"latent.{steps}"], expected.states[f"latent.{steps}"])
        for phase, behind in expected.layers.items():
            if phase in seen.layers:
                pairs = zip(seen.layers[phase], behind, strict=True)
                self.layers.setdefault(phase, []).append([off(ours, theirs) for ours, theirs in pairs])
        for kind, same in _chosen_alike(expected, seen).items():
            self.same.setdefault(kind, []).append(same)
        for held, one in zip(self.lost, (expected, seen), strict=True):
            held += one.lost
        if answer:
            for held, one in zip(self.right, (expected, seen), strict=True):
                text = self.processor.decode(one.said.token_ids)
                held.append(is_correct(text, answer, self.processor.format, self.role))

    def report(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "norm": NORM, "samples": len(self.same.get("halting", [])), "phases": self.errors.summary(),
            "agreement": {kind: float(np.mean(same)) for kind, same in self.same.items()},
            "accuracy": self._accuracy(), "perplexity": self._perplexity(),
            "layers": {phase: np.mean(found, axis=0).tolist() for phase, found in self.layers.items()},
        }  # fmt: skip

    def _accuracy(self) -> dict[str, Any] | None:
        first, second = self.right
        if not first:
            return None
        lost = compare_paired(first, second).to_dict()
        return {"float": float(np.mean(first)), "rounded": float(np.mean(second)), "lost": lost}

    def _perplexity(self) -> dict[str, float]:
        """Of the words that the model in floats said."""
        first, second = (float(np.exp(np.mean(lost))) for lost in self.lost)
        return {"float": first, "rounded": second}


def _chosen_alike(expected: Answered, seen: Answered) -> dict[str, bool]:
    ours, theirs = seen.said, expected.said
    return {
        "halting": (ours.latent_steps, ours.halting) == (theirs.latent_steps, theirs.halting),
        "replayed": _replayed(seen) == _replayed(expected), "routed": ours.routed_depths == theirs.routed_depths,
        "spoken": ours.token_ids == theirs.token_ids,
    }  # fmt: skip


def _replayed(one: Answered) -> list[list[int]]:
    return [[token.index for token in step] for step in one.said.replayed]


def answered(
    reasoner: LatentReasoner, processor: Processor, prompts: Sequence[EncodedPrompt], role: Role, limits: Limits,
    expected: Sequence[Answered] | None = None, layers: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Answered]:  # fmt: skip
    """Answers batch by batch; words are those of `expected` where it is given."""
    found: list[Answered] = []
    for start in range(0, len(prompts), BATCH):
        part = slice(start, start + BATCH)
        words = None if expected is None else [one.words for one in expected[part]]
        found += answers(reasoner, processor, prompts[part], role, limits, words, layers)
        progress(len(found))
    return found


def compare(
    processor: Processor, role: Role, expected: Sequence[Answered], seen: Sequence[Answered],
    right: Sequence[str | None],
) -> Mapping[str, Any]:  # fmt: skip
    """The report on answers in floats, those of rounded weights to the same prompts, and the right ones."""
    comparison = Comparison(processor, role)
    for one, other, answer in zip(expected, seen, right, strict=True):
        comparison.add(one, other, answer)
    return comparison.report()
