"""Turns models and a suite's runs into cases, each a `Reasoner` to ask and how. Torch is imported for checkpoints only.

Place in the pipeline: `lrkit profile MODEL...` + suite.py -> `make_cases` -> rounds.py.

A run that a model cannot do, or that would change nothing, is skipped, and the report says why.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lrkit.contract.attention import Attention
from lrkit.contract.bundle.io_spec import PAST
from lrkit.contract.generated import Mode
from lrkit.contract.settings import PruneSettings, ReasonerSettings
from lrkit.errors import UserError
from lrkit.profile.measure.meters import MemoryMeter
from lrkit.profile.measure.shape_questions import shape_behind
from lrkit.profile.measure.suite import RunSettings, Suite
from lrkit.runtime.engines.common.protocol import AskOptions, Engine
from lrkit.runtime.engines.common.stopping import Stop
from lrkit.runtime.engines.programs.patience import patience_with
from lrkit.runtime.sdk import Reasoner


@dataclass(frozen=True)
class ModelChoice:
    """A model to profile, and what to run it on."""

    path: str
    """Bundle, checkpoint or shipped name."""
    device: str | None = None
    """Checkpoints."""
    provider: str | None = None
    """Bundles."""
    threads: int | None = None
    """None: the engine decides."""
    dtype: str | None = None
    """Checkpoints: float32, bfloat16 or float16."""
    engine: str | None = None
    """Bundles: onnxruntime, openvino, tensorrt-rtx or tensorrt; None: the one that a bundle was made for."""
    engine_options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Bundles: the engine's own."""
    cuda_graphs: bool = False
    """Checkpoints on a GPU."""
    attention: Attention | None = None
    """Checkpoints; None: sdpa."""

    @property
    def name(self) -> str:
        """Short name in the report."""
        return Path(self.path).name or self.path


@dataclass
class Model:
    """An opened model."""

    choice: ModelChoice
    name: str
    reasoner: Reasoner
    load_seconds: float
    load_bytes: int | None
    """Resident memory that loading it took, all programs that were asked."""
    random_weights: bool = False
    """A shape: its settings are free, as nothing was trained for any of them."""
    dtype_reason: str | None = None
    """Why its number type was chosen, where lrkit chose it."""
    baselines: dict[tuple[Mode, int | None], Reasoner] = field(default_factory=dict[tuple[Mode, int | None], Reasoner])
    """By mode and, for bundles, threads."""


@dataclass
class Case:
    """One model asked in one way."""

    id: str
    """Name in the report: the run's, with the model's before it where there are several models."""
    model: int
    """Index of the model."""
    settings: RunSettings
    reasoner: Reasoner
    options: AskOptions
    threads: int | None
    """CPU threads to set before it is asked (torch); a bundle's session has its own."""
    note: str | None = None
    """What a reader must know about this run."""

    @property
    def engine(self) -> Engine:
        """What answers."""
        return self.reasoner.engine


@dataclass
class Cases:
    """All that is measured, and what is not."""

    cases: list[Case]
    skipped: list[dict[str, str]]
    """Run and reason."""


def open_model(choice: ModelChoice, name: str) -> Model:
    """Opens a model and loads its weights. Raises as `Reasoner.open`."""
    import time

    from lrkit.contract.bundle.bundle_folder import is_bundle

    memory = MemoryMeter()
    before, started = memory.resident(), time.perf_counter()
    if is_bundle(choice.path):
        if choice.dtype is not None:
            raise UserError(f"{choice.path} is a bundle, whose number type was chosen at export; leave --dtype out")
        reasoner = _open_bundle(choice, choice.threads).prepare()
    elif choice.provider is not None or choice.engine is not None:
        what = "provider" if choice.engine is None else "engine"
        raise UserError(f"{choice.path} is no bundle, and {what} is for bundles; give a device instead")
    else:
        kernels = None if choice.attention is None else choice.attention.model_dump()
        given = choice.path, choice.device or "cpu", choice.dtype, choice.cuda_graphs
        reasoner = Reasoner.from_checkpoint(*given, attention=kernels)
    seconds, after = time.perf_counter() - started, memory.resident()
    grown = after - before if after is not None and before is not None else None
    return Model(choice, name, reasoner, seconds, grown, _is_of_shape(reasoner))


def _is_of_shape(reasoner: Reasoner) -> bool:
    """Whether it is a bundle of random:SHAPE, whose weights end no answer but by chance."""
    bundle = reasoner.engine.bundle
    return bundle is not None and shape_behind(bundle.manifest) is not None


def _open_bundle(choice: ModelChoice, threads: int | None) -> Reasoner:
    return Reasoner.open(choice.path, choice.device, choice.provider, threads, choice.engine, choice.engine_options)


def unique_names(choices: Sequence[ModelChoice]) -> list[str]:
    """Short names that differ: a bundle on two engines is `bundle@onnxruntime` and `bundle@openvino`, any other second
    `bundle` is `bundle-2`."""
    names: list[str] = []
    engines: dict[str, set[str | None]] = {}
    for choice in choices:
        engines.setdefault(choice.path, set()).add(choice.engine)
    for choice in choices:
        own = f"{choice.name}@{choice.engine}" if choice.engine and len(engines[choice.path]) > 1 else choice.name
        name, count = own, 1
        while name in names:
            count += 1
            name = f"{own}-{count}"
        names.append(name)
    return names


def make_cases(models: Sequence[Model], suite: Suite) -> Cases:
    """Every run of the suite for every model, in the suite's order."""
    made, skipped = list[Case](), list[dict[str, str]]()
    for index, model in enumerate(models):
        for run in suite.runs:
            name = run.name if len(models) == 1 else f"{model.name}/{run.name}"
            reason = _why_not(model, run, suite)
            if reason is not None:
                skipped.append({"run": name, "reason": reason})
                continue
            reasoner, note = _asked(model, run)
            threads = run.threads or model.choice.threads or reasoner.engine.threads
            made.append(Case(name, index, run, reasoner, _options(run, suite, reasoner.engine), threads, note))
    if not made:
        raise UserError(f"no run is left to measure ({'; '.join(s['reason'] for s in skipped)}); name other runs")
    return Cases(made, skipped)


def patient(engine: Engine, options: AskOptions) -> AskOptions:
    """Options for one question, with the time after which a bundle's program counts as endless."""
    seconds = patience_with(engine, options.max_new_tokens)
    return options if seconds is None else replace(options, stop=Stop.within(seconds))


def _options(run: RunSettings, suite: Suite, engine: Engine) -> AskOptions:
    """A program cannot be told to go on past an end token; random weights say one by chance alone (`ended_early`)."""
    forced, most = suite.forced, run.max_new_tokens or suite.max_new_tokens
    if not forced.any:
        return AskOptions(run.mode, most, run.max_latent_steps, run.halting)
    steps, halting = run.max_latent_steps, run.halting
    if run.mode == "latent" and forced.latent_steps is not None:
        steps, halting = (forced.latent_steps if steps is None else steps), "fixed"
    if forced.answer_tokens is None:
        return AskOptions(run.mode, most, steps, halting)
    spoken = forced.answer_tokens + ((forced.cot_tokens or 0) if run.mode == "cot" else 0)
    return AskOptions(run.mode, spoken, steps, halting, ignore_end=engine.bundle is None)


def ended_early(case: Case, suite: Suite, spoken: Sequence[int | None]) -> str | None:
    """What a reader must know where answers are shorter than they were forced to be."""
    wanted = case.options.max_new_tokens
    if suite.forced.answer_tokens is None or wanted is None:
        return None
    short = sum(count is not None and count < wanted for count in spoken)
    return f"{short} of {len(spoken)} answers ended before their {wanted} tokens" if short else None


def _why_not(model: Model, run: RunSettings, suite: Suite) -> str | None:
    engine, settings = model.reasoner.engine, model.reasoner.engine.settings
    bundle = engine.bundle is not None
    if run.mode not in engine.modes:
        return f"the model has no latents, so it cannot be asked in the mode {run.mode}"
    if bundle and suite.forced.answer_tokens is not None and not model.random_weights:
        return "a trained bundle ends its answers itself; lengths are forced on checkpoints and bundles of random:SHAPE"
    if run.scene and (why := _without_scenes(engine)):
        return why
    if run.routing_depth == 0 and settings.routing.depth == 0:
        return "the model does not route, so this is the run without the change"
    if run.routing_depth and run.routing_depth != settings.routing.depth and not model.random_weights:
        return f"the model's routing was trained at depth {settings.routing.depth}; other depths are for random:SHAPE"
    if run.replay_tokens is not None and bundle and run.replay_tokens != settings.replay.num_tokens:
        return "a bundle has its replay built in; profile its checkpoint, or export one bundle for each number"
    if run.cuda_graphs is not None and not engine.place.startswith("cuda"):
        return "CUDA graphs are for a GPU"
    if run.cuda_graphs and model.choice.attention is not None and "text" in model.choice.attention.asked:
        return f"text attention {model.choice.attention.text} cannot be recorded as a CUDA graph"
    if run.cuda_graphs is not None and bundle:
        return "CUDA graphs of a bundle are chosen by --engine-option"
    if run.replay_tokens == 0 and settings.replay.num_tokens == 0:
        return "the model does not replay, so this is the run without the change"
    if run.routing_depth is not None and bundle and run.routing_depth != settings.routing.depth:
        return "a bundle has its routing built in; profile its checkpoint, or export one bundle for each depth"
    if (reason := _why_not_pruned(run, engine)) is not None:
        return reason
    alone = run.model_copy(update={"name": "x"}) == RunSettings(name="x", mode="latent", halting="fixed")
    if alone and settings.think.halting == "fixed":
        return "the model always takes its fixed number of steps, so this is the run without the change"
    return None


def _without_scenes(engine: Engine) -> str | None:
    """Why no question can be asked behind a look."""
    if engine.entry is not None and not any(one.name.startswith(PAST) for one in engine.entry.spec.inputs):
        return "the bundle was exported without scenes, so it reads a picture with each question"
    prunes = engine.settings.prune.after_layer is not None
    return "the model prunes visual tokens by the question, so nothing is left of a look" if prunes else None


def _why_not_pruned(run: RunSettings, engine: Engine) -> str | None:
    own, asked = engine.settings.prune, _pruning(run, engine.settings)
    if (run.prune_after, run.prune_keep) == (None, None):
        return None
    if asked.after_layer is None and run.prune_after is None and run.prune_keep != 1:
        return "the model prunes behind no layer; give prune_after too"
    if engine.bundle is not None and asked != own:
        return "a bundle has its pruning built in; profile its checkpoint, or export one bundle for each setting"
    return asked.problem(engine.num_layers)


def _pruning(run: RunSettings, settings: ReasonerSettings) -> PruneSettings:
    given = {"after_layer": run.prune_after, "keep": run.prune_keep}
    asked = settings.prune.model_copy(update={name: value for name, value in given.items() if value is not None})
    # Nothing is pruned: as it is, so that a bundle too has the point that others are compared with.
    return asked if asked.active or settings.prune.active else settings.prune


def _asked(model: Model, run: RunSettings) -> tuple[Reasoner, str | None]:
    """The reasoner to ask, and a note where it is not the one that the mode deserves."""
    threads = None if model.reasoner.engine.bundle is None else run.threads
    key = (run.mode, threads)
    if key not in model.baselines:
        start = model.reasoner
        if threads is not None:
            start = _open_bundle(model.choice, threads)
        model.baselines[key] = start.baseline(run.mode).prepare()
    reasoner, note = model.baselines[key], None
    if run.mode != "latent" and not model.random_weights and model.reasoner.engine.baseline(run.mode) is None:
        note = (
            f"the model declares no {run.mode} baseline, so its own weights were asked with the latent token masked; "
            f"train one and name it in reasoner.json under baselines.{run.mode}, and for a bundle export again"
        )
    changes = (run.replay_tokens, run.routing_depth, run.prune_after, run.prune_keep)
    if run.mode == "latent" and any(change is not None for change in changes):
        reasoner = with_settings(reasoner, run)
    if run.cuda_graphs is not None and reasoner.engine.cuda_graphs != run.cuda_graphs:
        reasoner = Reasoner(reasoner.engine.with_cuda_graphs(run.cuda_graphs))
    return reasoner, note


def with_settings(reasoner: Reasoner, run: RunSettings) -> Reasoner:
    """The same weights with another replay or pruning, or without routing."""
    engine = reasoner.engine
    settings = engine.settings
    if run.replay_tokens not in (None, settings.replay.num_tokens):
        replay = settings.replay.model_copy(update={"num_tokens": run.replay_tokens})
        # The distillation head serves training alone, and settings without replay may not have one.
        distill = settings.distill.model_copy(update={"weight": 0.0})
        settings = settings.model_copy(update={"replay": replay, "distill": distill})
    if run.routing_depth is not None:
        routing = settings.routing.model_copy(update={"depth": run.routing_depth})
        settings = settings.model_copy(update={"routing": routing})
    settings = settings.model_copy(update={"prune": _pruning(run, settings)})
    # A bundle has one setting, and can be asked with that.
    return reasoner if settings == engine.settings else Reasoner(engine.with_settings(settings))
