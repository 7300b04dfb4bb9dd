"""What replay does for a model that looks closer: right answers with the windows it chooses and with others, and one
trace. Torch-free; a program must be of the form step.

Place in the pipeline: tiny/closer + trails on woven boards -> `show_looking_closer` -> `lrkit demo`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrkit.contract.scoring import accuracy
from lrkit.data.trail import trail_set
from lrkit.errors import UserError
from lrkit.files import replacing
from lrkit.pictures.load import load_image
from lrkit.probe.asking import Asking, OnAnswers, Questions
from lrkit.probe.interventions import random_places
from lrkit.runtime.answer.answer import Answer
from lrkit.runtime.sdk import Reasoner

_EXAMPLE_HOPS = 4
_EXAMPLE_SEED = 2026
_MAX_NEW_TOKENS = 8


@dataclass(frozen=True)
class LookingCloser:
    """Figures, and one answer drawn."""

    right: list[bool]
    """With the windows that each latent step chooses, by question."""
    right_at_random: list[bool]
    """The same questions with random windows, as many latent steps."""
    visual_tokens: int
    """Of the small picture, in the prompt."""
    window_tokens: int
    """Of one window of the full picture."""
    example: Answer
    expected: str
    """The right answer to the example."""
    picture: Path
    """The example's picture in full."""
    trace: Path
    """What the prompt reads of it, and the window of each latent step."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "samples": len(self.right),
            "accuracy": accuracy(self.right).to_dict(),
            "accuracy_with_random_windows": accuracy(self.right_at_random).to_dict(),
            "prompt_visual_tokens": self.visual_tokens,
            "window_tokens": self.window_tokens,
            "example": {"expected": self.expected, "answer": self.example.to_dict()},
        }


def show_looking_closer(
    reasoner: Reasoner, folder: Path, samples: int, seed: int = 0, on_answers: OnAnswers = lambda what, count: None
) -> LookingCloser:
    """Asks `samples` held-out woven boards twice, and one more for the example, whose pictures go to `folder`.

    Raises:
        UserError: the model does not look closer, or is a program that is not of the form step.
        FileError: the pictures cannot be written.
    """
    zoom = reasoner.engine.settings.replay.fine_zoom
    if zoom == 1:
        raise UserError("this model replays what its prompt has read; give one with replay.source fine: tiny/closer")
    how = Asking(batch_size=50, max_new_tokens=_MAX_NEW_TOKENS, max_pixels=None, on_answers=on_answers)
    questions = Questions(reasoner.engine, trail_set("woven", "test", samples, seed=seed), how)
    chosen = questions.ask("chosen windows")
    steps = {number: told.steps for number, told in chosen.items()}
    drawn = questions.ask("random windows", random_places(seed), steps)
    sample = trail_set("woven", "test", 1, seed=_EXAMPLE_SEED, hops=(_EXAMPLE_HOPS,))[0]
    example = reasoner.ask(sample.images, sample.question, max_new_tokens=_MAX_NEW_TOKENS)
    picture, trace = folder / "woven.png", folder / "closer.png"
    with replacing(picture) as place:
        load_image(sample.images[0]).save(place)
    example.save_trace(trace)
    right, at_random = ([one.right for one in told.values()] for told in (chosen, drawn))
    return LookingCloser(right, at_random, questions.num_visual[0], zoom**2, example, sample.answer, picture, trace)
