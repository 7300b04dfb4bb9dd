"""The measuring loop: every case answers the same samples, interleaved, and each answer is a row that is kept.

Place in the pipeline: cases.py -> `measure` -> statistics.py -> profile/report.py.

All cases answer a sample before the next one, in an order that rotates, so that a change of the machine's speed meets
all of them. An answer that fails is a row with its error. Ctrl-C ends the loop, and what was measured stays.
"""

import gc
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from lrkit.contract.extract import says_right
from lrkit.contract.generated import Generated
from lrkit.contract.sample import Sample
from lrkit.errors import StoppedError, one_line
from lrkit.profile.measure.asked_prompt import PromptMaker
from lrkit.profile.measure.cases import Case, patient
from lrkit.profile.measure.differences import Difference, difference_runs
from lrkit.profile.measure.meters import EnergyMeter, MemoryMeter
from lrkit.profile.measure.phases import vision_probes
from lrkit.profile.measure.suite import Suite
from lrkit.runtime.engines.common.protocol import Probe


class Watcher(Protocol):
    """Is told how far the measuring is."""

    def stage(self, text: str) -> None:
        """What begins now."""
        ...

    def answered(self, case: str) -> None:
        """The case of that id was just asked."""
        ...


class _Nobody:
    """Watches nothing."""

    def stage(self, text: str) -> None:
        pass

    def answered(self, case: str) -> None:
        pass


@dataclass
class Row:
    """One answer of one case; None where a figure is unknown or, after an error, was never measured."""

    sample: str
    repeat: int
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    """total; preprocess; where the engine tells them also vision (torch), prefill, think, speak and other."""
    first_token_seconds: float | None = None
    """From the question to the first spoken token; None for a program that gives all tokens at once."""
    look_seconds: float | None = None
    """Of the look before the question, where the run is asked of a scene; no part of `seconds`."""
    latent_step_seconds: list[float] = field(default_factory=list[float])
    token_seconds: list[float] = field(default_factory=list[float])
    """Until each spoken token was out, since the one before (the first: since the thinking ended)."""
    ar_steps: int | None = None
    latent_steps: int | None = None
    spoken_tokens: int | None = None
    replayed_tokens: int | None = None
    prefilled_tokens: int | None = None
    patches: int | None = None
    """Of all pictures, before merging."""
    pictures: int | None = None
    depths: dict[str, int] = field(default_factory=dict[str, int])
    """Layer -> routed token-depths executed."""
    token_depths: dict[int, list[list[int]]] = field(default_factory=dict[int, list[list[int]]])
    """Layer -> chunk -> passes of each token; in the report only as the run's depth map."""
    visual: list[bool] = field(default_factory=list[bool])
    """Which tokens of the prompt are visual; not in the report either."""
    halting: str | None = None
    finished: bool | None = None
    correct: bool | None = None
    """None where lengths were forced; an answer that failed is wrong."""
    answer: str | None = None
    rss_peak_bytes: int | None = None
    rss_growth_bytes: int | None = None
    device_peak_bytes: int | None = None
    energy_joule: float | None = None
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON; times rounded to a tenth of a microsecond, empty lists left out."""
        kept = replace(self, token_depths={}, visual=[])
        values = {key: value for key, value in asdict(kept).items() if value not in ([], {})}
        values["seconds"] = {key: round(value, 7) for key, value in self.seconds.items()}
        for key in ("latent_step_seconds", "token_seconds"):
            if key in values:
                values[key] = [round(value, 7) for value in values[key]]
        return values


@dataclass
class Session:
    """Everything that was measured."""

    rows: dict[str, list[Row]]
    """By case id, in the order of measuring."""
    differences: dict[str, list[Difference]]
    """Bundles: what differences.py found, one entry per sample."""
    energy_source: str | None = None
    repeats: int = 0
    """Done of the suite's; fewer where its budget was spent."""
    partial: bool = False
    """Ctrl-C ended it early."""


def measure(cases: Sequence[Case], samples: Sequence[Sample], suite: Suite, watcher: Watcher | None = None) -> Session:
    """Asks every sample in every case, `suite.repeats` times; see the module's docstring."""
    watcher = watcher or _Nobody()
    device = next((case.engine.place for case in cases if case.engine.place.startswith("cuda")), "cpu")
    energy, memory = EnergyMeter(device), MemoryMeter()
    session = Session({case.id: [] for case in cases}, {}, energy.source)
    scored = not suite.forced.any
    collecting = gc.isenabled()
    try:
        with vision_probes(cases) as probes:
            watcher.stage("warming up")
            for case in list(cases) * suite.warmup:
                _ask(case, samples[0], 0, probes.get(case.id), energy, memory, scored)
            gc.freeze()
            gc.disable()
            watcher.stage("asking")
            for repeat in _repeats(suite):
                for turn, sample in enumerate(samples):
                    for case in _rotated(cases, turn + repeat):
                        row = _ask(case, sample, repeat, probes.get(case.id), energy, memory, scored)
                        session.rows[case.id].append(row)
                        watcher.answered(case.id)
                    gc.collect()
                session.repeats = repeat + 1
            watcher.stage("telling phases apart")
            difference_runs(cases, samples[: suite.phase_samples], suite.phase_runs, session.differences)
    except KeyboardInterrupt:
        session.partial = True
    finally:
        gc.unfreeze()
        if collecting:
            gc.enable()
    return session


def _repeats(suite: Suite) -> Iterator[int]:
    """0, 1, ... as long as the budget lasts; a further repeat begins only if the last one's time is left."""
    started = begun = time.perf_counter()
    for repeat in range(suite.repeats):
        now = time.perf_counter()
        if repeat and suite.budget_sec is not None and 2 * now - begun - started > suite.budget_sec:
            return
        begun = now
        yield repeat


def _rotated(cases: Sequence[Case], turn: int) -> list[Case]:
    start = turn % len(cases)
    return [*cases[start:], *cases[:start]]


def _ask(
    case: Case,
    sample: Sample,
    repeat: int,
    probe: Probe | None,
    energy: EnergyMeter,
    memory: MemoryMeter,
    scored: bool,
) -> Row:
    """One answer, end to end: picture and question in, text out."""
    row = Row(sample.id, repeat)
    case.engine.use_threads(case.threads)
    case.engine.begin_peak()
    if probe is not None:
        probe.take()
    memory.start()
    maker = PromptMaker(case, sample)
    try:
        maker.look()
        energy.start()
        started = time.perf_counter()
        prompt = maker.encode()
        encoded = time.perf_counter()
        result = case.engine.generate([prompt], patient(case.engine, case.options))[0]
        said = case.reasoner.processor.decode(result.token_ids)
        total = time.perf_counter() - started
    except StoppedError:  # a program that never ends would not end for the next sample either
        raise
    except Exception as error:  # whatever an engine raises: the other cases and samples go on
        row.error = f"{type(error).__name__}: {one_line(error)}"
        row.correct = False if scored else None
        return row
    row.energy_joule, row.look_seconds = energy.stop(), maker.look_seconds
    row.rss_peak_bytes, row.rss_growth_bytes = memory.stop()
    row.device_peak_bytes = case.engine.peak_bytes()
    row.patches = 0 if prompt.patches is None else len(prompt.patches)
    row.pictures = len(prompt.grids)
    if result.routed_tokens:
        read = case.reasoner.processor.asked_in(prompt, case.options.mode)
        row.visual = [token == case.reasoner.processor.image_id for token in read.ids]
    _fill(row, result, encoded - started, total, None if probe is None else probe.take())
    row.answer = case.reasoner.processor.format.find_answer(said, case.options.mode)
    row.correct = says_right(row.answer, said, sample) if scored else None
    return row


def _fill(row: Row, result: Generated, preprocess: float, total: float, vision: float | None) -> None:
    row.seconds = {"total": total, "preprocess": preprocess}
    inside = result.timings
    if "prefill" in inside:
        phases = {name: inside[name] for name in ("prefill", "think", "speak")}
        if vision is not None:
            phases = {"vision": vision, **phases, "prefill": inside["prefill"] - vision}
        row.seconds |= {name: seconds for name, seconds in phases.items() if name != "think" or result.latent_steps}
        row.seconds["other"] = total - preprocess - sum(phases.values())
    row.latent_step_seconds = result.step_seconds.get("think", [])
    row.token_seconds = result.step_seconds.get("speak", [])
    if row.token_seconds:
        row.first_token_seconds = preprocess + inside["prefill"] + inside["think"]
        row.first_token_seconds += row.token_seconds[0]
    row.ar_steps, row.latent_steps = result.ar_steps, result.latent_steps
    row.spoken_tokens, row.prefilled_tokens = len(result.token_ids), result.prefilled_tokens
    row.replayed_tokens = result.replayed_tokens
    row.depths = {str(layer): depth for layer, depth in result.routed_depths.items()}
    row.token_depths = result.routed_tokens
    row.halting, row.finished = result.halting, result.finished
