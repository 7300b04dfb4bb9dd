"""Encoded questions to answers: asks an engine, streams the words, and says where the model looked. Torch-free.

Place in the pipeline: runtime/sdk.py and runtime/scenes/scene.py encode -> `answer_all` -> `Answer`.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from lrkit.contract.choosing import Candidates, Choices, Scored
from lrkit.contract.extract import choice_in
from lrkit.contract.generated import Generated, Mode
from lrkit.errors import UserError
from lrkit.families.protocols import Size
from lrkit.pictures.input import ImageSource
from lrkit.runtime.answer.answer import Answer, Choice
from lrkit.runtime.answer.regions import Region, token_regions
from lrkit.runtime.encode.processor import EncodedPrompt, Processor
from lrkit.runtime.engines.common.protocol import AskOptions, Engine


@dataclass(frozen=True)
class Asked:
    """One question, encoded."""

    images: tuple[ImageSource, ...]
    question: str
    prompt: EncodedPrompt


class Clock:
    """Seconds of what happens around an engine, from the beginning of a question."""

    def __init__(self) -> None:
        self._started = self._marked = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        """Ends `phase`, which began at the last lap."""
        now = time.perf_counter()
        self.seconds[phase], self._marked = now - self._marked, now

    def all(self) -> dict[str, float]:
        """The phases, and `total`."""
        return {**self.seconds, "total": time.perf_counter() - self._started}


def check_mode(engine: Engine, mode: Mode) -> None:
    """Refuses a mode that the model does not have.

    Raises:
        UserError: naming those that it has.
    """
    if mode not in engine.modes:
        raise UserError(
            f"this model has no latents, so it cannot be asked in the mode {mode}; ask in the mode "
            f"{' or '.join(engine.modes)}, or train it first (`lrkit train RECIPE init=FOLDER`)"
        )


def answer_all(
    engine: Engine,
    asked: Sequence[Asked],
    options: AskOptions,
    on_text: Callable[[str], None] | None,
    clock: Clock,
) -> list[Answer]:
    """Answers encoded questions as one batch. `clock` holds the phases so far. Raises as `Engine.generate`."""
    speaker = None if on_text is None else _Speaker(engine.processor, on_text)
    results = engine.generate([one.prompt for one in asked], options, speaker)
    if speaker is not None:
        speaker.finish()
    outer = clock.all()
    return [
        _answer(engine, one, result, options, {**result.timings, **outer})
        for one, result in zip(asked, results, strict=True)
    ]


def answer_each(
    engine: Engine,
    asked: Sequence[Asked],
    options: AskOptions,
    candidates: Sequence[Candidates | None],
    on_text: Callable[[str], None] | None,
    clock: Clock,
) -> list[Answer]:
    """Answers encoded questions one after the other, each with its own candidates. Raises as `Engine.generate`."""
    found: list[Answer] = []
    for one, among in zip(asked, candidates, strict=True):
        found += answer_all(engine, [one], replace(options, candidates=among), on_text, clock)
    return found


def _answer(engine: Engine, asked: Asked, result: Generated, options: AskOptions, timings: dict[str, float]) -> Answer:
    said = engine.processor.decode(result.token_ids)
    answer = engine.processor.format.find_answer(said, options.mode)
    choice = None if options.candidates is None else choice_of(options.candidates.choices, result.scored, answer, said)
    return Answer(
        text=said,
        answer=answer,
        choice=choice,
        mode=options.mode,
        latent_steps=result.latent_steps,
        spoken_tokens=len(result.token_ids),
        ar_steps=result.ar_steps,
        prefilled_tokens=result.prefilled_tokens,
        replayed_tokens=result.replayed_tokens,
        depths=tuple(result.routed_depths.get(layer, 0) for layer in range(engine.num_layers)),
        step_depths=_step_depths(result),
        read_sizes=_read_sizes(engine.processor, asked.prompt),
        halting=result.halting,
        regions=tuple(_regions(engine.processor, asked.prompt, result)),
        timings=timings,
        resized=asked.prompt.resized,
        dtype=engine.dtype,
        question=asked.question,
        images=asked.images,
    )


def choice_of(choices: Choices, scored: Scored | None, answer: str | None, said: str) -> Choice:
    """The most probable choice, or without scores the one that the answer names; where no answer is marked, the one
    that all that was said names."""
    if scored is None:
        index = choice_in(said if answer is None else answer, choices.texts)
        return Choice(index, None if index is None else choices.texts[index], "said")
    index = scored.best(choices.per_token)
    scores = scored.scores(choices.per_token)
    return Choice(index, choices.texts[index], scored.by, scores, scored.greedy, scored.passes)


def _step_depths(result: Generated) -> tuple[int, ...]:
    """Extra passes of each latent step."""
    if not result.routed_tokens:
        return ()
    steps = range(1, result.latent_steps + 1)  # chunk 0 is the prompt
    return tuple(sum(sum(chunks[step]) for chunks in result.routed_tokens.values()) for step in steps)


def _read_sizes(processor: Processor, prompt: EncodedPrompt) -> tuple[Size, ...]:
    if processor.zoom == 1:
        return ()
    used = {one.image: one.used for one in prompt.resized}
    geometry = prompt.geometry or processor.geometry
    full = [used.get(image) or geometry.seen_size(*size) for image, size in enumerate(prompt.sizes)]
    return tuple((width // processor.zoom, height // processor.zoom) for width, height in full)


def _regions(processor: Processor, prompt: EncodedPrompt, result: Generated) -> list[tuple[Region, ...]]:
    steps: list[tuple[Region, ...]] = []
    for step in result.replayed:
        total = sum(token.weight for token in step) or 1.0
        shares = [token.weight / total for token in step]
        indices = [token.index for token in step]
        steps.append(tuple(token_regions(indices, prompt.grids, processor.geometry, prompt.sizes, shares)))
    return steps


class _Speaker:
    """Turns streamed tokens into text: what the decoded text has gained since the last token."""

    def __init__(self, processor: Processor, on_text: Callable[[str], None]) -> None:
        self._processor = processor
        self._on_text = on_text
        self._ids: list[int] = []
        self._said = ""

    def __call__(self, tokens: list[int | None]) -> None:
        if tokens[0] is None:
            return
        self._ids.append(tokens[0])
        text = self._processor.decode(self._ids)
        # A token may end in the middle of a character; wait for the rest.
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            self._say(text)

    def finish(self) -> None:
        """Gives out what waited for the rest of a character, so that all parts together are the whole answer."""
        self._say(self._processor.decode(self._ids))

    def _say(self, text: str) -> None:
        if len(text) > len(self._said):
            self._on_text(text[len(self._said) :])
            self._said = text
