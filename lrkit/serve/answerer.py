"""Answers questions of a server: which mode, whose model, and pictures that were looked at before. Torch-free.

Place in the pipeline: `Question` (chat_request.py) -> `Answerer.answer`, in a thread of desk.py -> `Answer`.

A conversation sends its pictures again with each question. They are known by their digest, and what the look left of
them is kept within a limit of bytes (lrkit/runtime/scenes), so that a further question costs what stands behind them.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from lrkit.contract.generated import MODES, Mode
from lrkit.contract.prompt import Turn
from lrkit.errors import UserError
from lrkit.runtime.answer.answer import Answer
from lrkit.runtime.answer.answering import Asked, Clock, answer_all
from lrkit.runtime.answer.arguments import ask_options
from lrkit.runtime.engines.common.stopping import CancelFlag, Stop
from lrkit.runtime.engines.programs.looks import outputs_left
from lrkit.runtime.scenes.scene import Scene
from lrkit.runtime.sdk import Reasoner
from lrkit.serve.chat_request import Effort, Question

MAX_SCENES = 256
MAX_PICTURE_BYTES = 64 << 20
"""Of the pictures of scenes: an entry keeps them, so that it can look again."""
DEFAULT_SPEECH = 256
"""Longest speech of a checkpoint where nothing else is said, in tokens."""


class Answerer:
    """A model and its baselines. Several threads may answer."""

    def __init__(self, reasoner: Reasoner, timeout: float | None, scene_bytes: int) -> None:
        """`timeout` in seconds, of one answer; `scene_bytes` for what was looked at, shared evenly by the model and its
        baselines, as each sees otherwise."""
        self._by_mode: dict[Mode, Reasoner] = {
            mode: reasoner.baseline(mode) for mode in MODES if mode in reasoner.engine.modes
        }
        self._stores = {one.scenes for one in self._by_mode.values()}
        for store in self._stores:
            store.limit = scene_bytes // len(self._stores)
        self._timeout = timeout
        self._scenes: OrderedDict[tuple[int, int | None, str], tuple[Scene, int]] = OrderedDict()
        self._lock = threading.Lock()
        self.looks = {"kept": 0, "made": 0}
        """Questions about pictures that were at hand, and that had to be looked at."""

    def prepare(self) -> None:
        """Loads what the first question would load."""
        for reasoner in self._by_mode.values():
            reasoner.prepare()

    @property
    def scene_bytes(self) -> int:
        """Held for pictures that were looked at."""
        return sum(store.bytes for store in self._stores)

    @property
    def modes(self) -> tuple[Mode, ...]:
        return tuple(self._by_mode)

    def answer(self, asked: Question, cancel: CancelFlag, on_text: Callable[[str], None] | None) -> tuple[Answer, str]:
        """The answer, and why it ended: stop, or length.

        Raises: as `Reasoner.ask`.
        """
        mode, steps = self._mode(asked)
        reasoner = self._by_mode[mode]
        options: dict[str, Any] = {
            "mode": mode, "max_latent_steps": asked.own.max_latent_steps if steps is None else steps,
            "halting": asked.own.halting, "max_new_tokens": self._longest(reasoner, asked.max_new_tokens),
            "timeout": self._timeout, "cancel": cancel, "on_text": on_text,
        }  # fmt: skip
        if asked.choices is not None:
            pictures = list(asked.pictures) or None
            answer = reasoner.ask(
                pictures, asked.text, max_pixels=asked.own.max_pixels, choices=asked.choices, **options
            )
        elif (scene := self._scene(reasoner, asked, cancel)) is not None:
            scene.turns = _turns(reasoner, asked, mode)
            answer = (scene.follow_up if scene.turns else scene.ask)(asked.text, **options)
        else:
            answer = _whole(reasoner, asked, options)
        return answer, "length" if answer.spoken_tokens >= options["max_new_tokens"] else "stop"

    def _mode(self, asked: Question) -> tuple[Mode, int | None]:
        """The mode, and the most latent steps where the effort says so."""
        modes = self.modes
        mode, steps = (asked.mode, None) if asked.mode else self._by_effort(asked.effort)
        if mode not in modes:
            why = f"reasoning_effort {asked.effort} is" if asked.mode is None else f"mode {mode} is"
            raise UserError(f"{why} not for this model, which has no {mode}; ask in {' or '.join(modes)}")
        return mode, steps

    def _by_effort(self, effort: Effort | None) -> tuple[Mode, int | None]:
        if effort is None:
            return self.modes[0], None
        if effort in ("none", "high"):
            return ("direct" if effort == "none" else "cot"), None
        if effort == "medium" or "latent" not in self._by_mode:
            return "latent", None
        most = self._by_mode["latent"].engine.settings.think.max_latent_steps
        return "latent", min(1, most) if effort == "minimal" else most // 2

    def _longest(self, reasoner: Reasoner, wanted: int | None) -> int:
        limits = reasoner.processor.limits
        most = DEFAULT_SPEECH if limits is None else limits.max_new_tokens
        return most if wanted is None else wanted if limits is None else min(wanted, most)

    def _scene(self, reasoner: Reasoner, asked: Question, cancel: CancelFlag) -> Scene | None:
        """Of the pictures, kept or looked at now; None without pictures, or where the model cannot look ahead."""
        if not asked.pictures or not _looks_ahead(reasoner):
            return None
        key = (id(reasoner.engine), asked.own.max_pixels, _digest(asked.pictures))
        with self._lock:
            if (found := self._scenes.get(key)) is not None:
                self._scenes.move_to_end(key)
                self.looks["kept"] += 1
                return found[0].new_conversation()
        scene = reasoner.look(
            list(asked.pictures), max_pixels=asked.own.max_pixels, timeout=self._timeout, cancel=cancel
        )
        with self._lock:
            self.looks["made"] += 1
            self._scenes[key] = (scene, sum(map(len, asked.pictures)))
            while len(self._scenes) > MAX_SCENES or self._picture_bytes() > MAX_PICTURE_BYTES:
                self._scenes.popitem(last=False)
        return scene.new_conversation()

    def _picture_bytes(self) -> int:
        return sum(size for _, size in self._scenes.values())


def _looks_ahead(reasoner: Reasoner) -> bool:
    engine = reasoner.engine
    able = not engine.settings.prune.active if engine.entry is None else bool(outputs_left(engine.entry.spec))
    return able and reasoner.processor.format.asks_behind_pictures


def _turns(reasoner: Reasoner, asked: Question, mode: Mode) -> tuple[Turn, ...]:
    spoken = reasoner.processor.format.as_spoken
    return tuple(Turn(question, spoken(said, mode)) for question, said in asked.earlier)


def _whole(reasoner: Reasoner, asked: Question, options: dict[str, Any]) -> Answer:
    """Reads the whole prompt: there is no picture, or the model cannot look ahead."""
    clock, engine = Clock(), reasoner.engine
    turns = _turns(reasoner, asked, options["mode"])
    prompt = reasoner.processor.encode_prompt(asked.pictures, asked.text, asked.own.max_pixels, turns)
    clock.lap("preprocess")
    given = ask_options(*(options[name] for name in ("mode", "max_new_tokens", "max_latent_steps", "halting")))
    given = replace(given, stop=Stop.within(options["timeout"], options["cancel"]))
    return answer_all(engine, [Asked(asked.pictures, asked.text, prompt)], given, options["on_text"], clock)[0]


def _digest(pictures: Sequence[bytes]) -> str:
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(len(picture).to_bytes(8, "little") + picture)
    return digest.hexdigest()
