"""The host's loop around the three graphs of the form `step`: same inputs and outputs as one run of a `program`.
Torch-free.

Place in the pipeline: an engine calls `StepSession.run` where it would call an `onnxruntime.InferenceSession`; tokens
can be streamed while they are spoken.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lrkit.contract.bundle.io_spec import EMPTY, HALTING, WINDOWS, IoSpec
from lrkit.contract.carried import BeforeStep, Carried, changed
from lrkit.contract.stopwatch import Stopwatch
from lrkit.errors import BundleError
from lrkit.runtime.engines.common.stopping import current
from lrkit.runtime.engines.programs.answer_check import StepCheck, vocabulary_of

_AGAIN = "do not use this bundle, or export it again"
Arrays = dict[str, np.ndarray]
NUMPY_TYPES = {
    "int64": np.int64, "float32": np.float32, "float16": np.float16, "uint8": np.uint8, "bool": np.bool_,
}  # fmt: skip


class StepSession:
    """Drives prompt, think and speak. Thread-safe: nothing is kept between runs."""

    def __init__(
        self, sessions: Mapping[str, Any], specs: Mapping[str, IoSpec], whole: IoSpec, end_ids: Sequence[int]
    ) -> None:
        """`sessions`: onnxruntime sessions by step name, `specs` their inputs and outputs, `whole` that of an
        answer."""
        self._sessions, self._specs, self._whole, self._end_ids = sessions, specs, whole, end_ids
        self._shapes = {spec.name: spec.shape for spec in whole.outputs}
        self._checks = {name: StepCheck(name, spec) for name, spec in specs.items()}
        self._vocabulary = vocabulary_of(whole)

    def get_inputs(self) -> Sequence[Any]:
        """Of the prompt's graph, as onnxruntime gives them."""
        return self._sessions["prompt"].get_inputs()

    def run(
        self,
        names: Sequence[str],
        feed: Mapping[str, np.ndarray],
        on_token: Callable[[int], None] | None = None,
        watch: Stopwatch | None = None,
        before_step: BeforeStep | None = None,
        speech: "Speech | None" = None,
    ) -> list[np.ndarray]:
        """The outputs `names` of a whole answer; `on_token` gets each spoken token at once, `watch` the phases;
        `before_step` sees, and may change, what each latent step starts from. `speech` speaks in place of greedy
        tokens: from the session, the state and the most tokens.

        Raises:
            UserError: `before_step` gives other shapes.
        """
        watch = watch or Stopwatch()
        read = self._step("prompt", feed)
        watch.lap("prefill")
        state = {name: feed[name] for name in (WINDOWS,) if name in feed} | read
        think, fixed = bool(feed["think"]), bool(feed["fixed_latents"])
        most = min(int(feed["max_latent_steps"]), self._most_latents)
        state |= self._empty("think", state) if "think" in self._sessions else {}
        wants = bool(read["wants"][0])
        steps = 0
        visual = None if before_step is None or "free" not in read else np.flatnonzero(np.asarray(read["free"]))
        while think and steps < most and (fixed or wants):
            if before_step is not None:
                state |= _changed(before_step, steps + 1, state, visual)
            state |= self._new("think", state)
            wants, steps = bool(state["wants"][0]), steps + 1
            watch.step("think")
        watch.lap("think")
        if speech is None:
            out = self._speak(state, int(feed["max_new_tokens"]), on_token, watch)
        else:
            out = speech(self, state, int(feed["max_new_tokens"]))
        watch.lap("speak")
        why = "off" if not think else "fixed" if fixed else "limit" if wants else "decided"
        out |= {"latent_steps": np.array(steps), "halting": np.array(HALTING.index(why))}
        out["ar_steps"] = out["latent_steps"] + out["spoken_steps"]
        return [out[name] if name in out else np.asarray(state[name]) for name in names]

    @property
    def _most_latents(self) -> int:
        return int(self._shapes["latent_states"][0]) if "latent_states" in self._shapes else 0

    @property
    def speech_room(self) -> int:
        """Most tokens that can be spoken."""
        return int(self._shapes["token_ids"][0])

    def begin_speech(self, state: Arrays) -> tuple[Arrays, Arrays]:
        """What a state gives to speech: what each token changes, and what stays."""
        held = {"token": state["token"], "position": state["position"]}
        fixed = {name: state[name] for name in state if name.startswith("prompt_") or name == "length"}
        fixed |= {f"latent_{name}": state[name] for name in state if name.startswith(("key", "value"))}
        return held | self._empty("speak", held | fixed), fixed

    def feed_token(self, held: Arrays, fixed: Arrays, token: int) -> tuple[Arrays, np.ndarray]:
        """Feeds one token: what speech then holds, as arrays of their own, and the logits of the next word."""
        spec = self._specs["speak"]
        values = held | fixed | {"token": np.array([token], np.int64)}
        current().check()
        outputs = [output.name for output in spec.outputs]
        found = self._sessions["speak"].run(outputs, {given.name: values[given.name] for given in spec.inputs})
        self._checks["speak"](found)
        new = {name.removeprefix("new_"): np.asarray(one) for name, one in zip(outputs, found, strict=True)}
        return {name: new[name] for name in held if name in new}, new["logits"]

    def _speak(self, state: Arrays, most: int, on_token: Callable[[int], None] | None, watch: Stopwatch) -> Arrays:
        capacity = self.speech_room
        spoken: list[int] = []
        held, fixed = self.begin_speech(state)
        finished = False
        fed = 0
        while True:
            token = int(held["token"][0])
            if finished := token in self._end_ids:
                break
            if not 0 <= token < self._vocabulary:
                raise BundleError(
                    f"a step gives the token {token}, and the vocabulary has {self._vocabulary}; {_AGAIN}"
                )
            spoken.append(token)
            watch.step("speak")
            if on_token is not None:
                on_token(token)
            if len(spoken) >= min(most, capacity):
                break
            held |= self._new("speak", held | fixed)
            fed += 1
        ids = np.full(capacity, EMPTY, np.int64)
        ids[: len(spoken)] = spoken
        return {
            "token_ids": ids, "num_tokens": np.array(len(spoken)), "finished": np.array(finished),
            "spoken_steps": np.array(fed),
        }  # fmt: skip

    def _step(self, name: str, values: Mapping[str, np.ndarray]) -> Arrays:
        current().check()
        spec = self._specs[name]
        outputs = [output.name for output in spec.outputs]
        session = self._sessions[name]
        # Where a session can leave the state on its device, it is not copied to the host between steps.
        run = getattr(session, "run_on_device", session.run)
        found = run(outputs, {given.name: values[given.name] for given in spec.inputs})
        self._checks[name](found)
        return dict(zip(outputs, found, strict=True))

    def _new(self, name: str, values: Mapping[str, np.ndarray]) -> Arrays:
        return {key.removeprefix("new_"): value for key, value in self._step(name, values).items()}

    def _empty(self, name: str, given: Mapping[str, np.ndarray]) -> Arrays:
        """The states of a step that nothing has filled yet: counters at 0, caches and reports without content."""
        made: Arrays = {}
        for spec in self._specs[name].inputs:
            if spec.name in given:
                continue
            shape = [size for size in spec.shape if isinstance(size, int)]
            made[spec.name] = np.full(shape, EMPTY if spec.name == "replayed" else 0, NUMPY_TYPES[spec.dtype])
        return made


Speech = Callable[[StepSession, Arrays, int], Arrays]
"""From the session, the state and the most tokens to what an answer's outputs tell of speech."""


def _changed(before_step: BeforeStep, step: int, state: Arrays, visual: np.ndarray | None) -> Arrays:
    """The hidden state, and the saliency at the prompt's `visual` columns, as `before_step` leaves them."""
    hidden = np.asarray(state["hidden"])
    shown = visual is not None and len(visual) > 0
    saliency = np.array(state["saliency"]) if shown else None
    given = Carried(
        step,
        (0,),
        np.array(hidden, np.float32),
        None if saliency is None else saliency[visual][None].astype(np.float32),
    )
    found = changed(before_step, given)
    new = {"hidden": found.hidden.astype(hidden.dtype)}
    if saliency is not None and found.saliency is not None:
        saliency[visual] = found.saliency[0]
        new["saliency"] = saliency
    return new
