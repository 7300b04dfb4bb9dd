"""Answers with one of several choices, by the logits that a program gives. Numpy only.

Place in the pipeline: `ProgramEngine.generate` with `AskOptions.candidates` -> `chooser_of` -> one run -> `chosen`.

- Graphs of the form step that give logits (`logits` of a target): choices are scored where the answer stands, in every
  mode.
- Any program in the mode direct: its prompt ends with the answer's marker, so the logits behind the prompt are those of
  the answer's first token. They score letters exactly, and tell apart whatever begins with different tokens.
- Otherwise a program gives no logits where the answer stands. It is then free, and the choice is found in its words.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from lrkit.contract.bundle.bundle_folder import Bundle
from lrkit.contract.bundle.io_spec import EMPTY
from lrkit.contract.bundle.manifest import ProgramEntry
from lrkit.contract.choice_speech import SpokenChoice, speak_choice
from lrkit.contract.choosing import Candidates, log_softmax, score_first
from lrkit.contract.generated import Generated, Mode
from lrkit.errors import BundleError, CapacityError
from lrkit.runtime.engines.common.protocol import AskOptions
from lrkit.runtime.engines.programs.step_session import Arrays, Speech, StepSession


class Chooser(Protocol):
    """How a run of a program chooses."""

    most: int | None
    """Most tokens to speak in the run; None: as many as were asked for."""
    more: Arrays
    """Names of further outputs of the run, which is filled with them."""
    speech: Speech | None
    """Speaks in place of greedy tokens; see `StepSession.run`."""

    def chosen(self, run: Generated) -> Generated:
        """What the run gave, with the most probable choice for its answer."""
        ...


def chooser_of(entry: ProgramEntry, options: AskOptions, bundle: Bundle) -> Chooser | None:
    """How the program chooses among the candidates; None where it cannot, or where there are none."""
    candidates = options.candidates
    if candidates is None:
        return None
    speak = entry.steps.get("speak")
    if speak is not None and any(one.name == "new_logits" for one in speak.spec.outputs):
        return _ByStep(candidates, options.mode, bundle)
    firsts = {ids[0] for ids in candidates.ids}
    apart = len(firsts) == len(candidates.ids)
    return _ByFirstToken(candidates, bundle) if options.mode == "direct" and apart else None


def _checked(logits: np.ndarray, bundle: Bundle) -> np.ndarray:
    """Log probabilities of words.

    Raises:
        BundleError: the logits are no finite numbers.
    """
    if not np.isfinite(logits.max()):  # the greatest of numbers of which one is NaN is NaN
        raise BundleError(
            f"{bundle.folder}: its program gives logits that are no finite numbers; do not use this bundle, or export "
            "it again"
        )
    return log_softmax(logits, bundle.manifest.tokens.latent)


@dataclass
class _ByFirstToken:
    candidates: Candidates
    bundle: Bundle
    most: int | None = 1
    more: Arrays = field(default_factory=lambda: {"prefill_logits": np.empty(0)})
    speech: Speech | None = None

    def chosen(self, run: Generated) -> Generated:
        """Raises DataError where a choice begins with a token that the program has no row for."""
        scored = score_first(self.candidates, _checked(self.more["prefill_logits"], self.bundle))
        tokens = list(self.candidates.ids[scored.best(self.candidates.choices.per_token)])
        return replace(run, token_ids=tokens, ar_steps=run.latent_steps, finished=True, scored=scored)


class _ByStep:
    def __init__(self, candidates: Candidates, mode: Mode, bundle: Bundle) -> None:
        self.most: int | None = None
        self.more: Arrays = {}
        self.speech: Speech | None = self._speak
        self._choose: Callable[[_StepPlace, int], SpokenChoice] = lambda start, most: speak_choice(
            start, mode, most, candidates
        )
        self._bundle = bundle
        self._found: SpokenChoice | None = None

    def _speak(self, session: StepSession, state: Arrays, most: int) -> Arrays:
        """Gives no speech, so that the run is an answer's; `chosen` has it."""
        held, fixed = session.begin_speech(state)
        # The prompt's own are called prefill_logits; latent steps give newer ones.
        logits = np.asarray(state.get("logits", state["prefill_logits"]))
        self._found = self._choose(_StepPlace(session, self._bundle, held, fixed, logits), most)
        nothing = np.full(session.speech_room, EMPTY, np.int64)
        return {
            "token_ids": nothing, "num_tokens": np.array(0), "finished": np.array(True), "spoken_steps": np.array(0),
        }  # fmt: skip

    def chosen(self, run: Generated) -> Generated:
        found = self._found
        assert found is not None, "a run speaks"
        tokens, passes = found.before + found.chosen, run.latent_steps + found.passes
        return replace(run, token_ids=tokens, ar_steps=passes, finished=True, scored=found.scored)


@dataclass(frozen=True)
class _StepPlace:
    """A `Place` behind the tokens that were fed."""

    session: StepSession
    bundle: Bundle
    held: Arrays
    fixed: Arrays
    logits: np.ndarray
    fed: int = 0

    def log_probabilities(self) -> np.ndarray:
        return _checked(self.logits, self.bundle)

    def after(self, token: int) -> "_StepPlace":
        """Raises CapacityError where there is no room for one more token."""
        room = self.session.speech_room
        if self.fed >= room:
            raise CapacityError(
                f"the choices need more than the {room} tokens that this bundle speaks (max_new_tokens); give shorter "
                "ones, or export again with a larger limit"
            )
        held, logits = self.session.feed_token(self.held, self.fixed, token)
        return replace(self, held=held, logits=logits, fed=self.fed + 1)
