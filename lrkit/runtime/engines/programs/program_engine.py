"""Answers prompts by a bundle's programs, whatever runs them. Torch-free.

Place in the pipeline: lrkit/contract/bundle/bundle_folder.py -> `ProgramEngine` over `ProgramSessions` ->
lrkit/runtime/sdk.py. onnxruntime/engine.py gives sessions of ONNX Runtime, tensorrt/engine.py sessions of TensorRT
engines.

A program answers one prompt in one run, from pixels to the last token. So a batch is run prompt by prompt, and
streaming begins when the run ends: `on_token` then gets the whole answer, token by token. The form `step`
(step_session.py) streams the tokens of a single prompt as they are generated.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, Self

import numpy as np

from lrkit.contract.bundle.bundle_folder import Bundle, open_bundle
from lrkit.contract.bundle.io_spec import HALTING, LEFT
from lrkit.contract.bundle.limits import check_asked, check_prompt
from lrkit.contract.bundle.manifest import Defaults, ProgramEntry, Role
from lrkit.contract.carried import BeforeStep, of_sample
from lrkit.contract.generated import Generated, Halting, Mode
from lrkit.contract.settings import ReasonerSettings
from lrkit.contract.stopwatch import Stopwatch
from lrkit.errors import UserError, shown
from lrkit.families.table import DEFAULT
from lrkit.runtime.encode.processor import EncodedPrompt, Processor
from lrkit.runtime.engines.common.model_counts import ModelCounts
from lrkit.runtime.engines.common.protocol import NEVER, AskOptions, OnToken, Phases
from lrkit.runtime.engines.common.stopping import Running, Stop
from lrkit.runtime.engines.programs import patience
from lrkit.runtime.engines.programs.agreement import agree
from lrkit.runtime.engines.programs.answer_check import AnswerCheck
from lrkit.runtime.engines.programs.choosers import Chooser, chooser_of
from lrkit.runtime.engines.programs.counts import count_program
from lrkit.runtime.engines.programs.feed import build_feed
from lrkit.runtime.engines.programs.looks import (
    ProgramLooked,
    looked_from,
    outputs_left,
    read_looked,
    whole_reports,
)
from lrkit.runtime.engines.programs.program_sessions import ProgramSessions
from lrkit.runtime.engines.programs.run_reports import replayed_tokens, routed_tokens
from lrkit.runtime.engines.programs.step_session import StepSession

# Large, and of no use to an answer.
_UNREAD = ("prefill_logits", "latent_states", LEFT)
_NO_DEFAULTS = Defaults()


class ProgramEngine:
    """One program of a bundle. May be used by several threads at once.

    All that lrkit asks of an engine is here: a new one gives its `ProgramSessions`.
    """

    note: str | None = None
    threads: int | None = None
    """The sessions' own, chosen when they are made."""
    cuda_graphs: bool | None = None
    attention: str | None = None
    products: str | None = None
    adapter: str | None = None
    """Name of the adapter that runs; None: the program's own."""

    def __init__(self, sessions: ProgramSessions, processor: Processor, role: Role = "latent") -> None:
        self.sessions = sessions
        self.name = sessions.name
        self.bundle = sessions.bundle
        self.role: Role = role
        self.entry: ProgramEntry = self.bundle.program(role)
        self.processor = processor
        if (replay := self.entry.settings.replay).fine_zoom != processor.zoom:  # another program's pictures
            self.processor = copy(processor).see_for(replay)
        self.num_layers = self.entry.num_layers
        self.modes = self.bundle.manifest.modes
        self._outputs = [spec.name for spec in self.entry.spec.outputs if not spec.name.startswith(_UNREAD)]
        self._left = outputs_left(self.entry.spec)
        self._check = AnswerCheck(self.entry, self.bundle.manifest.tokens.image, str(self.bundle.folder))

    @property
    def dtype(self) -> str:
        """The precision that its program was exported with."""
        return self.entry.precision

    @property
    def place(self) -> str:
        """Where its sessions run."""
        return self.sessions.place

    @property
    def settings(self) -> ReasonerSettings:
        """Those that its program was exported with."""
        return self.entry.settings

    @property
    def phases(self) -> Phases:
        """The host's loop times the graphs of the form step; a single graph tells nothing."""
        return "host" if self.entry.steps else "differences"

    @classmethod
    def over(cls, path: Path | str, verify: bool, make: Callable[[Bundle], ProgramSessions]) -> Self:
        """Opens a bundle and its processor; `make` gives the sessions, whose programs are loaded when first asked.

        Raises:
            BundleError: see `open_bundle`.
            CheckpointError: its tokenizer or image settings cannot be read.
        """
        bundle = open_bundle(path, verify)
        sessions = make(bundle)
        processor = Processor.from_folder(bundle.folder, bundle.manifest.family or DEFAULT)
        agree(bundle, processor)
        processor.limits = bundle.manifest.limits
        return cls(sessions, processor, bundle.manifest.first_role)

    def load(self) -> None:
        """Loads the program now instead of at the first question. Raises as `ProgramSessions.of`."""
        with Running(Stop()):  # Ctrl-C is heard while it loads
            self._session()

    def _session(self) -> Any:
        if self.adapter is None:
            return self.sessions.of(self.role)
        return self.sessions.adapted(self.role, self.adapter)

    def with_adapter(self, name: str) -> Self:
        """The same program, run with another adapter; the session is shared.

        Raises:
            UserError: the program has none of that name.
        """
        known = self.entry.adapters
        if name not in known:
            has = f"has {', '.join(known)}" if known else "has none"
            raise UserError(
                f"{self.bundle.folder}: no adapter {shown(name, 60)}, its {self.role} program {has}; name one of "
                "these, or export the checkpoint again with --with-adapter NAME=CHECKPOINT"
            )
        made = copy(self)
        made.adapter = name
        return made

    def as_role(self, role: Role) -> Self:
        """The engine of another program of the bundle; sessions and processor are shared."""
        return type(self)(self.sessions, self.processor, role)

    def baseline(self, mode: Mode) -> Self | None:
        """The engine of the bundle's program for `mode`; its session is shared by all who ask for it."""
        if mode == self.role:
            return self
        return self.as_role(mode) if mode in self.bundle.manifest.programs else None

    def generate(
        self, prompts: Sequence[EncodedPrompt], options: AskOptions, on_token: OnToken | None = None
    ) -> list[Generated]:
        """Greedy answers, one run per prompt; all prompts are checked before the first run. See the module about
        `on_token`.

        Raises:
            CapacityError: a prompt, max_new_tokens or max_latent_steps is above the bundle's limit.
            UserError: `ignore_end`; `before_step`, where the program is none of the form step.
            BundleError: the program cannot be loaded, fails, or gives what no program gives.
            TimeoutExceeded, Cancelled: `options.stop` ended it.
        """
        if options.ignore_end:
            raise UserError("a program ends an answer by itself, so its length cannot be forced; give a checkpoint")
        if options.before_step is not None and not self.entry.steps:
            raise UserError(
                f"{self.bundle.folder}: its program takes all latent steps in one run, so nobody can look between; "
                "give a bundle of form: step (lrkit export CHECKPOINT --form step), or the checkpoint"
            )
        chooser = chooser_of(self.entry, options, self.bundle)
        if chooser is not None and chooser.most is not None:
            options = replace(options, max_new_tokens=chooser.most)
        feeds = [self.feed(prompt, options) for prompt in prompts]
        looks = [_look_of(prompt) for prompt in prompts]
        with Running(options.stop) as running:
            running.check()
            session = self._session()
            if chooser is not None:
                (feed,), (look,) = feeds, looks
                return [self._choose(session, feed, look, options, chooser, on_token)]
            if on_token is not None and isinstance(session, StepSession) and len(feeds) == 1:
                before = of_sample(options.before_step, 0)
                return [self._run(session, feeds[0], looks[0], lambda token: on_token([token]), before)]
            results = [
                self._run(session, feed, look, None, of_sample(options.before_step, sample))
                for sample, (feed, look) in enumerate(zip(feeds, looks, strict=True))
            ]
        if on_token is not None:
            for row in zip_longest(*(result.token_ids for result in results)):
                on_token(list(row))
        return results

    def look(self, prompt: EncodedPrompt, stop: Stop = NEVER) -> ProgramLooked:
        """Reads the first `picture_part` ids of a prompt and its pictures.

        Raises:
            UserError: the program was exported without scenes.
            CapacityError, BundleError: see `generate`.
            TimeoutExceeded, Cancelled: `stop` ended it.
        """
        self._require_scenes()
        ids = prompt.ids[: prompt.picture_part]
        feed = self.feed(replace(prompt, ids=ids, looked=None), AskOptions("cot", max_new_tokens=1, max_latent_steps=0))
        with Running(stop) as running:
            running.check()
            found = self._session().run(self._left, feed)
        out = {name: np.asarray(one) for name, one in zip(self._left, found, strict=True)}
        self._check.left(out, feed)
        return looked_from(self.entry.spec, ids, out)

    def looked_of(self, arrays: Mapping[str, np.ndarray], prompt: EncodedPrompt) -> ProgramLooked:
        """What `ProgramLooked.arrays` gave, for the picture part of `prompt`; it may come from a stranger.

        Raises:
            DataError: it is not what this program leaves of such pictures.
            UserError: the program was exported without scenes.
        """
        self._require_scenes()
        ids = prompt.ids[: prompt.picture_part]
        visual, routing = ids.count(self.bundle.manifest.tokens.image), self.entry.settings.routing
        return read_looked(arrays, self.entry.spec, ids, visual, len(self.entry.routed_layers), routing.depth)

    def _require_scenes(self) -> None:
        if not self._left:
            do = "export the checkpoint again with scenes=true"
            if self.entry.settings.prune.active:
                do = "export the checkpoint without pruning, which goes by the question"
            raise UserError(
                f"{self.bundle.folder}: its {self.role} program reads a picture with each question; to look once and "
                f"ask often, {do}"
            )

    @property
    def digest(self) -> str:
        """Of the program's files, as bundle.json declares them."""
        files = self.bundle.manifest.files
        names = [self.entry.file, self.entry.data, *(step.file for step in self.entry.steps.values())]
        names += [] if self.adapter is None else [self.entry.adapters[self.adapter].file]
        found = [f"{name} {files[name].sha256}" for name in names if name in files]
        return hashlib.sha256("\n".join(found).encode()).hexdigest()

    def patience(self, tokens: int | None = None) -> float:
        """Seconds for one question; see patience.py."""
        return patience.patience(self.bundle, self.role, tokens)

    def counts(self) -> ModelCounts:
        """Sizes of its program, as its bundle records them."""
        return count_program(self.bundle.manifest, self.entry)

    def use_threads(self, threads: int | None) -> None:
        """Nothing: threads are those of the sessions."""

    def begin_peak(self) -> None:
        """Nothing: what runs programs does not tell its memory."""

    def peak_bytes(self) -> int | None:
        return None

    def vision_probe(self) -> None:
        return None

    def word_head(self) -> None:
        return None

    def with_settings(self, settings: ReasonerSettings) -> Self:
        raise UserError("a program has its settings compiled in; export the checkpoint with others")

    def with_cuda_graphs(self, wanted: bool) -> Self:
        raise UserError("CUDA graphs of a bundle are chosen by its engine's options; leave them to these")

    def feed(self, prompt: EncodedPrompt, options: AskOptions) -> dict[str, np.ndarray]:
        """The arrays that the program reads for one prompt.

        Raises:
            CapacityError: see `generate`.
        """
        manifest, think = self.bundle.manifest, self.entry.settings.think
        # What the bundle was told to do by default gives way to what is asked for.
        given = manifest.defaults or _NO_DEFAULTS
        halting = options.halting or given.halting or think.halting
        steps = given.max_latent_steps if options.max_latent_steps is None else options.max_latent_steps
        ids, look = self.processor.asked_in(prompt, options.mode).ids, _look_of(prompt)
        patches = prompt.patches if look is None else None
        check_prompt(manifest.limits, len(ids), len(prompt.grids), 0 if patches is None else len(patches))
        most = check_asked("max_latent_steps", steps, manifest.limits.max_latent_steps)
        return build_feed(
            ids,
            prompt.grids,
            patches,
            geometry=self.processor.geometry,
            image_id=manifest.tokens.image,
            think=options.mode == "latent",
            fixed_latents=halting == "fixed",
            max_latent_steps=min(most, think.max_latent_steps) if steps is None else most,
            max_new_tokens=check_asked("max_new_tokens", options.max_new_tokens, manifest.limits.max_new_tokens),
            spec=self.entry.spec,
            past=None if look is None else look.past,
            windows=prompt.windows,
        )

    def _choose(
        self,
        session: Any,
        feed: dict[str, np.ndarray],
        look: ProgramLooked | None,
        options: AskOptions,
        chooser: Chooser,
        on_token: OnToken | None,
    ) -> Generated:
        """The answer of one prompt that is the most probable choice."""
        free = self._run(session, feed, look, before_step=of_sample(options.before_step, 0), chooser=chooser)
        chosen = chooser.chosen(free)
        if on_token is not None:
            for token in chosen.token_ids:
                on_token([token])
        return chosen

    def _run(
        self,
        session: Any,
        feed: dict[str, np.ndarray],
        look: ProgramLooked | None = None,
        on_token: Callable[[int], None] | None = None,
        before_step: BeforeStep | None = None,
        chooser: Chooser | None = None,
    ) -> Generated:
        started, watch = time.perf_counter(), Stopwatch()
        more, speech = ({}, None) if chooser is None else (chooser.more, chooser.speech)
        names = [*self._outputs, *more]
        if isinstance(session, StepSession):  # only the host's loop can tell phases apart and stream
            found = session.run(names, feed, on_token, watch, before_step, speech)
        else:
            found = session.run(names, feed)
        out: dict[str, np.ndarray] = dict(zip(names, found, strict=True))
        seconds = time.perf_counter() - started
        self._check(out, feed)
        more.update({name: out.pop(name) for name in more})
        if look is not None:
            out = whole_reports(out, look)
        latent_steps, window = int(out["latent_steps"]), self.settings.replay.fine_zoom**2
        halting: Halting = HALTING[int(out["halting"])]
        return Generated(
            token_ids=out["token_ids"][: int(out["num_tokens"])].tolist(),
            latent_steps=latent_steps,
            ar_steps=int(out["ar_steps"]),
            halting=halting,
            finished=bool(out["finished"]),
            prefilled_tokens=len(feed["input_ids"]) + (0 if look is None else look.num_tokens),
            replayed=replayed_tokens(out, latent_steps),
            routed_depths=self._depths(out),
            routed_tokens=routed_tokens(out, self.entry.routed_layers, latent_steps, window),
            tokens_per_window=window,
            timings={"run": seconds, **watch.seconds},
            step_seconds=watch.steps,
        )

    def _depths(self, out: Mapping[str, np.ndarray]) -> dict[int, int]:
        if "routed_depths" not in out:
            return {}
        return dict(zip(self.entry.routed_layers, out["routed_depths"].sum(0).tolist(), strict=True))


def _look_of(prompt: EncodedPrompt) -> ProgramLooked | None:
    """What the prompt's question is read behind; None where the prompt is read whole."""
    assert prompt.looked is None or isinstance(prompt.looked, ProgramLooked), "a look of another engine"
    return prompt.looked
