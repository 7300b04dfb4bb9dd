"""`Scene`: pictures that were read once, asked about any number of times. Torch-free.

    scene = reasoner.look("rooms.png")
    scene.ask("Take 3 hops. Which room are you in? Start in room 4")
    scene.follow_up("Take 2 hops. Which room are you in? Start here")
    scene.save("rooms.scene")

Place in the pipeline: `Reasoner.look`, `Reasoner.open_scene` -> `Scene` -> `answer_all` behind the engine's look.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from lrkit.contract.generated import Mode
from lrkit.contract.prompt import Turn
from lrkit.errors import DataError
from lrkit.pictures.input import ImageSource
from lrkit.pictures.load import Pictures
from lrkit.runtime.answer.answer import Answer
from lrkit.runtime.answer.answering import Asked, Clock, answer_all, check_mode
from lrkit.runtime.answer.arguments import ask_options, callback, file_path, question_text, question_texts
from lrkit.runtime.encode.processor import EncodedPrompt
from lrkit.runtime.engines.common.protocol import AskOptions, Engine
from lrkit.runtime.engines.common.stopping import CancelFlag, Stop
from lrkit.runtime.scenes.look_store import HeldLook, LookStore
from lrkit.runtime.scenes.scene_file import SceneFile, write_scene

Halting = Literal["adaptive", "fixed"]


class Scene:
    """Pictures that were read once. Several threads may `ask` one scene; each conversation of follow-ups is for one
    thread (`new_conversation`)."""

    def __init__(self, engine: Engine, held: HeldLook, prompt: EncodedPrompt, images: tuple[ImageSource, ...]) -> None:
        """Scenes come from `Reasoner.look` and `Reasoner.open_scene`."""
        self.engine = engine
        self.images = images
        """The pictures; empty where they were in a file and not given again."""
        self.turns: tuple[Turn, ...] = ()
        """The conversation so far, which `follow_up` goes on with: questions, and answers as they were spoken."""
        self._held = held
        self._prompt = prompt

    def ask(
        self,
        question: str,
        mode: Mode = "latent",
        *,
        max_new_tokens: int | None = None,
        max_latent_steps: int | None = None,
        halting: Halting | None = None,
        timeout: float | None = None,
        cancel: CancelFlag | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> Answer:
        """Answers one question about the pictures, as `Reasoner.ask` does, and begins a conversation with it. The
        phase `look` of `Answer.timings` is the time to have the state again where it was out of memory.

        Raises: as `Reasoner.ask`; DataError too where the scene's file is gone or has changed.
        """
        options = _options(mode, max_new_tokens, max_latent_steps, halting, timeout, cancel)
        return self._turn(question, (), options, on_text)

    def follow_up(
        self,
        question: str,
        mode: Mode = "latent",
        *,
        max_new_tokens: int | None = None,
        max_latent_steps: int | None = None,
        halting: Halting | None = None,
        timeout: float | None = None,
        cancel: CancelFlag | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> Answer:
        """Answers a question behind the earlier `turns`, and adds it to them. These are in its prompt as text, in the
        words of the model's chat template; their latents are not.

        Raises: as `ask`; UserError too where the model's prompt format has no follow-ups.
        """
        options = _options(mode, max_new_tokens, max_latent_steps, halting, timeout, cancel)
        return self._turn(question, self.turns, options, on_text)

    def ask_batch(
        self,
        questions: Sequence[str],
        mode: Mode = "latent",
        *,
        max_new_tokens: int | None = None,
        max_latent_steps: int | None = None,
        halting: Halting | None = None,
        timeout: float | None = None,
        cancel: CancelFlag | None = None,
    ) -> list[Answer]:
        """Answers several questions as one batch; the conversation stays as it is. `timings` and `timeout` are those of
        the whole batch. Raises as `ask`."""
        given = question_texts(questions)
        options = _options(mode, max_new_tokens, max_latent_steps, halting, timeout, cancel)
        return self._answers(given, (), options, None) if given else []

    def new_conversation(self) -> "Scene":
        """The same scene without turns; the state is shared."""
        return Scene(self.engine, self._held, self._prompt, self.images)

    def save(self, path: str | Path) -> None:
        """Writes what the look left, for `Reasoner.open_scene` with the same model in any process. Neither pictures nor
        questions are in the file.

        Raises:
            FileError: it cannot be written.
        """
        looked, _ = self._held.take(Stop())
        write_scene(file_path("path", path), self.engine, self._prompt, looked)

    def _turn(
        self, question: str, earlier: tuple[Turn, ...], options: AskOptions, on_text: Callable[[str], None] | None
    ) -> Answer:
        asked = question_text(question)
        answer = self._answers([asked], earlier, options, callback(on_text))[0]
        spoken = self.engine.processor.format.as_spoken(answer.text, options.mode)
        self.turns = (*earlier, Turn(asked, spoken))
        return answer

    def _answers(
        self,
        questions: Sequence[str],
        earlier: tuple[Turn, ...],
        options: AskOptions,
        on_text: Callable[[str], None] | None,
    ) -> list[Answer]:
        engine, clock = self.engine, Clock()
        check_mode(engine, options.mode)
        prompts = [engine.processor.encode_behind(self._prompt, question, earlier) for question in questions]
        clock.lap("preprocess")
        looked, seconds = self._held.take(options.stop)
        clock.lap("look")
        clock.seconds["look"] = seconds  # 0 where the state was at hand
        asked = [
            Asked(self.images, question, replace(prompt, looked=looked))
            for question, prompt in zip(questions, prompts, strict=True)
        ]
        return answer_all(engine, asked, options, on_text, clock)


def look_at(
    engine: Engine, store: LookStore, images: tuple[ImageSource, ...], max_pixels: int | None, stop: Stop
) -> Scene:
    """A scene of these pictures, looked at now. Raises as `Reasoner.look`."""
    prompt = engine.processor.encode_pictures(images, max_pixels)
    held = HeldLook(store, lambda when: engine.look(prompt, when))
    held.take(stop)
    return Scene(engine, held, prompt, images)


def open_scene(engine: Engine, store: LookStore, path: Path, images: tuple[ImageSource, ...]) -> Scene:
    """A scene from a file, read now. Raises as `Reasoner.open_scene`."""
    file = SceneFile(path, engine)
    if images and (sizes := Pictures(images).sizes) != file.prompt.sizes:
        shown = " and ".join(f"{width} x {height}" for width, height in file.prompt.sizes)
        given = " and ".join(f"{width} x {height}" for width, height in sizes)
        raise DataError(f"the pictures have {given} pixels and the scene's {shown}; give those that were looked at")
    held = HeldLook(store, lambda _: file.read())
    held.take(Stop())
    return Scene(engine, held, file.prompt, images)


def _options(
    mode: Mode,
    max_new_tokens: int | None,
    max_latent_steps: int | None,
    halting: Halting | None,
    timeout: float | None,
    cancel: CancelFlag | None,
) -> AskOptions:
    options = ask_options(mode, max_new_tokens, max_latent_steps, halting)
    return replace(options, stop=Stop.within(timeout, cancel))
