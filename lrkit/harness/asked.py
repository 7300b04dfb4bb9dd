"""What a harness hands over, checked: the model's arguments, how to generate, and the pictures. Imports no harness.

Place in the pipeline: lmms-eval -> lmms_eval_model.py -> here -> `Reasoner`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal, cast

from PIL import Image
from pydantic import Field

from lrkit.config import Config, load_config
from lrkit.contract.generated import Mode
from lrkit.errors import DataError, UserError, shown
from lrkit.pictures.input import ImageSource, kind_of
from lrkit.runtime.answer.answer import Answer

PICTURE_ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
"""Of paths that are pictures; other paths are films."""
_WITHOUT_EFFECT = {"top_p", "top_k", "seed", "image_aspect_ratio", "skip_special_tokens"}
"""Settings of tasks that change nothing about a greedy answer, or about how lrkit reads pictures."""


class ModelArgs(Config):
    """What `--model_args` takes."""

    pretrained: str = Field(min_length=1)
    """A bundle, a checkpoint folder, or a shipped name such as tiny."""
    mode: Mode = "latent"
    """latent, cot or direct."""
    reply: Literal["answer", "text"] = "answer"
    """answer: a task is given the answer alone, as it stands behind the marker, or the whole text where that names
    none; text: always the whole text."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """Longest speech, in place of the task's own: those count the answer alone, and a chain of thought needs more."""
    max_latent_steps: int | None = Field(default=None, ge=0)
    """In place of the model's own limit."""
    max_pixels: int | None = Field(default=None, ge=1)
    """Larger pictures are shrunk to it."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads."""
    provider: str | None = None
    """Of a bundle on ONNX Runtime: cpu, cuda, ..."""
    engine: str | None = None
    """Of a bundle: onnxruntime, openvino, tensorrt-rtx or tensorrt."""
    device: str | None = None
    """Of a checkpoint: cpu, cuda, cuda:1."""
    dtype: str | None = None
    """Of a checkpoint: float32, bfloat16 or float16."""
    adapter: str | None = None
    """Of a bundle with several: which one answers."""
    answers: str | None = None
    """A JSON lines file to write: each answer with its steps, replayed regions and timings."""
    batch_size: int = Field(default=1, ge=1)
    """Questions answered at once."""
    max_batch_size: int | None = None
    """Taken, and without effect: `batch_size` is not searched for."""


def model_args(given: Mapping[str, Any]) -> ModelArgs:
    """The arguments of the model; a harness gives some numbers as text.

    Raises:
        ConfigError: an unknown one, or a value that is not allowed.
    """
    values = {name: value for name, value in given.items() if value is not None}
    for name in ("batch_size", "max_batch_size"):
        text = values.get(name)
        if isinstance(text, str) and text.isascii() and text.isdigit() and len(text) < 10:
            values[name] = int(text)
    return load_config(ModelArgs, values, label="model_args")


@dataclass(frozen=True)
class Greedy:
    """How a task wants its text generated."""

    max_new_tokens: int | None
    """None: the model's own."""
    until: tuple[str, ...]
    """The text ends in front of the first of these."""

    def cut(self, text: str) -> str:
        """The text up to the first of `until`."""
        ends = [at for stop in self.until if (at := text.find(stop)) >= 0]
        return text[: min(ends)].rstrip() if ends else text


def greedy(kwargs: Mapping[str, Any], task: str) -> Greedy:
    """The `generation_kwargs` of a task.

    Raises:
        UserError: they ask for more than greedy text of a limited length.
    """
    left = {name: value for name, value in kwargs.items() if name not in _WITHOUT_EFFECT and value is not None}
    most, until = left.pop("max_new_tokens", None), left.pop("until", ())
    plain = {"do_sample": (False,), "temperature": (0,), "num_beams": (1,), "repetition_penalty": (1,)}
    for name, allowed in plain.items():
        if name in left and left.pop(name) not in allowed:
            raise UserError(
                f"the task {shown(task, 60)} asks for {name}={shown(kwargs[name], 30)}, and lrkit answers greedily; "
                f"give --gen_kwargs {name}={allowed[0]}, or another task"
            )
    if left:
        name = min(left)
        raise UserError(
            f"the task {shown(task, 60)} asks for {shown(name, 40)} in generation_kwargs, which lrkit does not know; "
            "it takes max_new_tokens and until, and answers greedily"
        )
    if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
        raise UserError(f"the task {shown(task, 60)} asks for max_new_tokens={shown(most, 30)}; give 1 or more")
    stops = (until,) if isinstance(until, str) else tuple(cast(Sequence[Any], until))
    if not all(isinstance(stop, str) for stop in stops):
        raise UserError(f"the task {shown(task, 60)} has an until that holds {kind_of(stops[0])}; give texts")
    return Greedy(most, tuple(stop for stop in stops if stop))


def pictures(visuals: Any, task: str) -> list[ImageSource]:
    """The pictures that a task gives with a question, however deep their list is.

    Raises:
        DataError: sound, a film, or something else that is no picture.
    """
    if visuals is None:
        return []
    if isinstance(visuals, Image.Image):
        return [visuals]
    if isinstance(visuals, str) and PurePath(visuals).suffix.lower() in PICTURE_ENDINGS:
        return [visuals]
    if isinstance(visuals, list | tuple):
        return [one for item in cast(Iterable[Any], visuals) for one in pictures(item, task)]
    kind = {str: "a film", dict: "sound"}.get(cast(type, type(visuals)), kind_of(visuals))
    raise DataError(f"the task {shown(task, 60)} asks about {kind}, and lrkit reads pictures; choose another task")


def scores_of(answer: Answer, task: str) -> list[tuple[float, bool]]:
    """(log probability, whether it is the greedy one) of each choice.

    Raises:
        UserError: they were not scored, or not whole.
    """
    choice = answer.choice
    if choice is None or choice.by != "scored" or choice.scores is None or choice.greedy is None:
        raise UserError(
            f"the task {shown(task, 60)} scores given continuations, and this bundle tells no probabilities of them in "
            f"the mode {answer.mode}; give mode=direct and answers of one token, the checkpoint, or another task"
        )
    return list(zip(choice.scores, choice.greedy, strict=True))
