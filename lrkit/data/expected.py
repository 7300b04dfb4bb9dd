"""What the samples of a data set are like where they are not at hand: for plans of training. Assumptions, not
measurements.

Place in the pipeline: `DataSource.expected` -> lrkit/train/plan. `lrkit train --plan --assume data.samples=...`
replaces a value.
"""

from typing import Annotated

from pydantic import Field

from lrkit.config import Config

_Side = Annotated[int, Field(ge=1, le=16384)]
_Tokens = Annotated[int, Field(ge=0, le=1_000_000)]


class Expected(Config):
    """A sample of a data set, all alike."""

    samples: int = Field(default=10_000, ge=1)
    """Training samples."""
    pictures: float = Field(default=1.0, ge=0.0, le=64.0)
    """Pictures of a sample, on average."""
    picture: tuple[_Side, _Side] = (640, 480)
    """Width and height of a picture in pixels."""
    question_tokens: _Tokens = 60
    """Tokens of the prompt beside the pictures: question, choices, and what the chat template adds."""
    steps: int = Field(default=4, ge=0, le=1000)
    """Explicit steps of a chain."""
    step_tokens: _Tokens = 25
    """Tokens of a step."""
    answer_tokens: int = Field(default=8, ge=1, le=1_000_000)
    """Tokens of the answer with what introduces it, and the end token."""
