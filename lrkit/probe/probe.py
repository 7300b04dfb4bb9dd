"""Probes a model: asks the same questions with its latents and with others in their place, and judges what that does.

Place in the pipeline: `Reasoner` + samples -> `probe_reasoner` -> a report -> report_files.py, lrkit/cli/probe.py.
Torch-free: a bundle is probed without torch.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lrkit.contract.generated import Mode
from lrkit.contract.sample import Sample
from lrkit.data.trail_changed import is_trail
from lrkit.errors import UserError
from lrkit.probe import interventions
from lrkit.probe.asking import Asking, Change, OnAnswers, Questions, Told
from lrkit.probe.donors import find_donors
from lrkit.probe.effects import accuracy_with, effect, follows_donor
from lrkit.probe.options import Part, ProbeOptions
from lrkit.probe.signs import change_signs
from lrkit.probe.spoken_latents import read_words, words_by_stopping
from lrkit.probe.verdict import REMOVED, Evidence, Verdict, judge
from lrkit.provenance import collect
from lrkit.runtime.answer.answering import check_mode
from lrkit.runtime.sdk import Reasoner

SCHEMA = 1
_NO_REPLAY = "nothing is replayed: by this model's settings, or without a picture"
Report = dict[str, Any]


def probe_reasoner(
    reasoner: Reasoner,
    samples: Sequence[Sample],
    options: ProbeOptions | None = None,
    *,
    name: str = "",
    data: str = "",
    on_answers: OnAnswers = lambda what, count: None,
) -> Report:
    """The report; docs/probe.md describes it. `name` and `data` say in it what was probed on what.

    Raises:
        UserError: a model without latents, a bundle that is not of the form step, or no samples.
        DataError: a sample cannot be encoded.
    """
    options = options or ProbeOptions()
    engine = reasoner.engine
    check_mode(engine, "latent")
    if engine.settings.think.max_latent_steps == 0:
        raise UserError(
            "this model takes no latent steps (think.max_latent_steps is 0), so there is nothing to probe; give a "
            "model that thinks in latents"
        )
    if not samples:
        raise UserError("there are no samples to ask; give 1 or more")
    how = Asking(options.batch_size, options.max_new_tokens, options.max_pixels, on_answers)
    run = _Run(reasoner, Questions(engine, samples, how), how, options)
    made = run.made()
    runs_on = {"engine": engine.name, "device": engine.place, "dtype": engine.dtype, "threads": engine.threads}
    head = {"schema": SCHEMA, "kind": "probe", "model": name, "data": data, "runs_on": runs_on}
    return head | made | {"provenance": collect()}


class _Run:
    """One probe under way."""

    def __init__(self, reasoner: Reasoner, questions: Questions, how: Asking, options: ProbeOptions) -> None:
        self._reasoner, self._questions, self._how, self._options = reasoner, questions, how, options
        self._seed = options.seed
        self._left_out: list[dict[str, str]] = []
        self._plain = questions.ask("latent")
        self._steps = {number: one.steps for number, one in self._plain.items() if one.steps}
        self._states = {number: self._plain[number].states for number in self._steps}
        self._donors = find_donors(questions, self._plain, self._seed)
        self._stopped: dict[int, dict[int, Told]] = {}

    def made(self) -> Report:
        """All parts, in the order of the report."""
        told = self._in_place_of_all()
        whole = {name: effect(self._plain, answers, self._donors) for name, answers in told.items()}
        direct = self._direct()
        verdict = self._verdict(told)
        followed = whole["donor"]["followed"]["value"]
        return {
            "verdict": verdict.verdict,
            "sentence": verdict.sentence,
            "decided": verdict.decided,
            "why": verdict.why,
            "more_samples": verdict.more_samples,
            "samples": len(self._plain),
            "seed": self._seed,
            "accuracy": {
                "latent": accuracy_with(self._plain, {}),
                "direct": None if direct is None else accuracy_with(direct, {}),
                **{name: accuracy_with(self._plain, told[name]) for name in ("zero", "noise", "donor", "mean")},
            },
            "followed": 0.0 if followed is None else followed,
            "thinking": len(self._steps),
            "with_donor": len(self._donors),
            "donors_share_the_picture": self._same_picture,
            "latent_steps": max(self._steps.values(), default=0),
            "latents": whole,
            "by_step": self._by_step(),
            "input": self._input(),
            "words": self._words(),
            "left_out": self._left_out,
        }

    @property
    def _same_picture(self) -> bool:
        return bool(self._donors) and all(donor.same_picture for donor in self._donors.values())

    @property
    def _replays(self) -> bool:
        return any(state.saliency is not None for states in self._states.values() for state in states)

    def _in_place_of_all(self) -> dict[str, dict[int, Told]]:
        """Name -> the answers with something else in place of all latents."""
        given = {number: donor.states for number, donor in self._donors.items()}
        changes: dict[str, Change] = {
            "zero": interventions.zero,
            "mean": interventions.mean_of(self._plain),
            "noise": interventions.noise(self._seed),
        }
        found = {name: self._questions.ask(name, change, self._steps) for name, change in changes.items()}
        with_donor = {number: self._steps[number] for number in given}
        found["donor"] = self._questions.ask("donor", interventions.donated(given), with_donor)
        if self._replays and self._same_picture:
            found["looks"] = self._questions.ask("looks", interventions.looks_of(given), with_donor)
        elif self._wants("looks"):
            self._leave_out("looks", f"{_NO_REPLAY}, or donors are about other pictures")
        several = {number: count for number, count in self._steps.items() if count > 1}
        if self._wants("shuffled"):
            change = interventions.shuffled(self._states, self._seed)
            found["shuffled"] = self._questions.ask("shuffled", change, several)
        return found

    def _direct(self) -> dict[int, Told] | None:
        mode: Mode = "direct"
        if mode not in self._questions.engine.modes:
            self._leave_out("direct", "this model is not asked for bare answers")
            return None
        asked = self._reasoner.baseline(mode).engine
        same = asked.processor is self._questions.engine.processor
        questions = self._questions if same else Questions(asked, self._questions.samples, self._how)
        return questions.ask(mode, mode=mode, engine=asked)

    def _verdict(self, told: Mapping[str, Mapping[int, Told]]) -> Verdict:
        pairs = list(self._donors)
        right = {name: [told[name][number].right for number in pairs] for name in REMOVED}
        followed, by_noise, by_looks = (
            [follows_donor(number, self._plain, told[name], self._donors) for number in pairs if name in told]
            for name in ("donor", "noise", "looks")
        )
        latent = [self._plain[number].right for number in pairs]
        return judge(Evidence(len(self._plain), latent, right, followed, by_noise, self._same_picture, by_looks))

    def _by_step(self) -> dict[str, Any]:
        """What is done to the steps from one on, or to one alone."""
        most = max(self._steps.values(), default=0)
        found: dict[str, Any] = {}
        if self._wants("truncated") or (self._wants("words") and self._questions.engine.word_head() is None):
            for kept in range(most):
                asked = {number: kept for number, count in self._steps.items() if count > kept}
                self._stopped[kept] = self._questions.ask(f"truncated {kept}", None, asked)
        if self._wants("truncated"):
            found["truncated"] = {str(kept): effect(self._plain, told) for kept, told in self._stopped.items()}
        if self._wants("frozen"):
            found["frozen"] = self._each(
                range(1, most), lambda at: interventions.frozen(self._states, at), at_end=False
            )
        if self._wants("patched"):
            given = {number: donor.states for number, donor in self._donors.items()}
            found["patched"] = self._each(range(1, most + 1), lambda at: interventions.donated(given, at), given)
        return found

    def _each(
        self,
        places: range,
        change_at: Callable[[int], Change],
        among: Mapping[int, Any] | None = None,
        at_end: bool = True,
    ) -> dict[str, Any]:
        """Step -> effect on the questions that reach it; without `at_end` on those that go beyond it."""
        found: dict[str, Any] = {}
        what = "frozen" if among is None else "patched"
        for place in places:
            asked = {
                number: count
                for number, count in self._steps.items()
                if count >= place + (not at_end) and (among is None or number in among)
            }
            told = self._questions.ask(f"{what} {place}", change_at(place), asked)
            found[str(place)] = effect(self._plain, told, None if among is None else self._donors)
        return found

    def _input(self) -> dict[str, Any]:
        """What is done to what the model sees."""
        found: dict[str, Any] = {}
        engine = self._questions.engine
        if self._wants("sign"):
            if all(is_trail(sample) for sample in self._questions.samples):
                found["sign"] = change_signs(self._questions, self._plain, self._seed)
            else:
                self._leave_out("sign", "only of trails is it known what another sign would change")
        if self._wants("replay"):
            if self._replays:
                told = self._questions.ask("replay", interventions.random_places(self._seed), self._steps)
                found["replay"] = effect(self._plain, told)
            else:
                self._leave_out("replay", _NO_REPLAY)
        if self._wants("routing"):
            if engine.settings.routing.depth == 0:
                self._leave_out("routing", "this model routes no tokens")
            elif engine.bundle is not None:
                self._leave_out("routing", "a program has its routing compiled in; probe the checkpoint")
            else:
                off = engine.settings.routing.model_copy(update={"depth": 0})
                changed = engine.with_settings(engine.settings.model_copy(update={"routing": off}))
                found["routing"] = effect(self._plain, self._questions.ask("routing", engine=changed))
        return found

    def _words(self) -> dict[str, Any] | None:
        if not self._wants("words"):
            return None
        head = self._questions.engine.word_head()
        if head is not None:
            return read_words(head, self._questions.engine.processor, self._questions.samples, self._plain)
        reason = "a program has its head and embeddings inside; words are those spoken when thinking stops"
        self._leave_out("ranks and nearest words", reason)
        return words_by_stopping(self._stopped, self._questions.samples)

    def _wants(self, part: Part) -> bool:
        return part in self._options.parts

    def _leave_out(self, part: str, reason: str) -> None:
        self._left_out.append({"part": part, "reason": reason})
