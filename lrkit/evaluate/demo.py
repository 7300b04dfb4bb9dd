"""The demonstration behind `lrkit demo`: the shipped model on pictures it has never seen, three ways, and one trace.

Place in the pipeline: assets/tiny + trail data -> figures, one worked example, trace.png.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrkit.data.trail import trail_set
from lrkit.evaluate.run import EvalOptions, Evaluation, OnProgress, evaluate
from lrkit.model.generated import MODES, Mode
from lrkit.runtime.answer import Answer
from lrkit.runtime.session import Reasoner

_EXAMPLE_HOPS = 4
_EXAMPLE_SEED = 2026


@dataclass(frozen=True)
class Demonstration:
    """What the demo shows."""

    evaluation: Evaluation
    example: dict[Mode, Answer]
    expected: str
    """The right answer to the example."""
    picture: Path
    """The example's picture, to ask further questions about."""
    trace: Path
    """The example's picture with the regions each latent step replayed."""

    def to_dict(self) -> dict[str, Any]:
        """The evaluation's figures and the example, for JSON."""
        example = {mode: answer.to_dict() for mode, answer in self.example.items()}
        return {**self.evaluation.to_dict(), "example": {"expected": self.expected, "answers": example}}


def demonstrate(
    checkpoint: str, folder: Path, samples: int, latency_samples: int, on_progress: OnProgress | None = None
) -> Demonstration:
    """Asks `samples` held-out pictures in the three modes, and one more for the example; writes its pictures to
    `folder`."""
    reasoner = Reasoner.from_checkpoint(checkpoint)
    options = EvalOptions(batch_size=50, latency_samples=latency_samples)
    evaluation = evaluate(reasoner, trail_set("main", "test", samples), options, on_progress)
    sample = trail_set("main", "test", 1, seed=_EXAMPLE_SEED, hops=(_EXAMPLE_HOPS,))[0]
    example = {mode: reasoner.baseline(mode).ask(sample.images, sample.question, mode) for mode in MODES}
    folder.mkdir(parents=True, exist_ok=True)
    picture, trace = folder / "rooms.png", folder / "trace.png"
    board = sample.images[0]
    assert not isinstance(board, Path | str)
    board.save(picture)
    example["latent"].save_trace(trace)
    return Demonstration(evaluation, example, sample.answer, picture, trace)
