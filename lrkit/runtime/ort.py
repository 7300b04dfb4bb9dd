"""Runs a bundle on ONNX Runtime. Torch-free; onnxruntime itself is imported when a program is first loaded.

Place in the pipeline: lrkit/runtime/bundle.py -> `OrtEngine` -> lrkit/runtime/session.py.

A program answers one prompt from pixels to the last token in one run, so a batch is run prompt by prompt, and what is
streamed arrives when the run ends: `on_token` then gets the whole answer, token by token. The form `step` (steps.py)
streams the tokens of a single prompt as they are spoken.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from lrkit.errors import BundleError, UserError
from lrkit.model.generated import Generated, Halting, Mode, ReplayedToken
from lrkit.runtime.bundle import Bundle, open_bundle
from lrkit.runtime.engine import AskOptions, OnToken
from lrkit.runtime.feed import build_feed
from lrkit.runtime.io_spec import HALTING, IoSpec
from lrkit.runtime.limits import check_asked, check_prompt
from lrkit.runtime.manifest import ProgramEntry, Role
from lrkit.runtime.processor import EncodedPrompt, Processor
from lrkit.runtime.providers import choose_provider
from lrkit.runtime.steps import StepSession

# Large, and of no use to an answer.
_UNREAD = ("prefill_logits", "latent_states")


class Sessions:
    """One ONNX Runtime session per program of a bundle, made at first use and shared by all threads."""

    def __init__(
        self, bundle: Bundle, provider: str = "cpu", threads: int | None = None, config: Mapping[str, str] | None = None
    ) -> None:
        if threads is not None and threads < 1:
            raise UserError(f"threads is {threads}; it must be 1 or more")
        self.bundle = bundle
        self.provider = provider
        self._providers = choose_provider(provider)
        self._threads = threads
        self._config = dict(config or {})
        self._made: dict[Role, Any] = {}
        self._lock = threading.Lock()

    @property
    def loaded(self) -> tuple[Role, ...]:
        """Programs in memory."""
        return tuple(self._made)

    def of(self, role: Role) -> Any:
        """The `onnxruntime.InferenceSession` of that program.

        Raises:
            BundleError: the bundle has no such program, or its file is none or another than declared.
            UserError: the provider cannot be started on this machine.
        """
        with self._lock:
            if role not in self._made:
                self._made[role] = self._make(role)
            return self._made[role]

    def _make(self, role: Role) -> Any:
        entry = self.bundle.program(role)
        if not entry.steps:
            return self._session(entry.file, entry.spec)
        sessions = {name: self._session(step.file, step.spec) for name, step in entry.steps.items()}
        specs = {name: step.spec for name, step in entry.steps.items()}
        return StepSession(sessions, specs, entry.spec, self.bundle.manifest.tokens.eos)

    def _session(self, file: str, spec: IoSpec) -> Any:
        import onnxruntime

        path = self.bundle.folder / file
        try:
            session = onnxruntime.InferenceSession(str(path), self._options(), providers=self._providers)
        except Exception as error:  # onnxruntime's own classes have no common base below Exception
            message = f"{path}: ONNX Runtime cannot load it ({_first_line(error)}); copy the bundle again"
            raise BundleError(message) from error
        first = self._providers[0]
        wanted = first if isinstance(first, str) else first[0]
        if wanted not in session.get_providers():
            raise UserError(
                f"provider {self.provider!r} could not be started on this machine, which started "
                f"{', '.join(session.get_providers())}; check its driver and libraries, or use cpu"
            )
        if found := spec.differences(session.get_inputs(), session.get_outputs()):
            raise BundleError(
                f"{path}: is not the program that bundle.json declares ({found[0]}); copy the bundle again"
            )
        return session

    def _options(self) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        for key, value in self._config.items():
            options.add_session_config_entry(key, value)
        return options


class OrtEngine:
    """One program of a bundle. May be used by several threads at once."""

    name = "onnxruntime"

    def __init__(self, sessions: Sessions, processor: Processor, role: Role = "latent") -> None:
        self.sessions = sessions
        self.bundle = sessions.bundle
        self.processor = processor
        self.role: Role = role
        self.entry: ProgramEntry = self.bundle.program(role)
        self.num_layers = self.entry.num_layers
        self._outputs = [spec.name for spec in self.entry.spec.outputs if spec.name not in _UNREAD]

    @classmethod
    def from_bundle(
        cls,
        path: Path | str,
        provider: str = "cpu",
        threads: int | None = None,
        verify: bool = True,
        config: Mapping[str, str] | None = None,
    ) -> "OrtEngine":
        """Opens a bundle; its programs are loaded when first asked. `config` are ONNX Runtime's session entries.

        Raises:
            BundleError: see `open_bundle`.
            CheckpointError: its tokenizer or image settings cannot be read.
            UserError: a provider that this machine has not, or threads below 1.
        """
        bundle = open_bundle(path, verify)
        processor = Processor.from_folder(bundle.folder)
        processor.limits = bundle.manifest.limits
        return cls(Sessions(bundle, provider, threads, config), processor)

    def load(self) -> None:
        """Loads the program now instead of at the first question. Raises as `Sessions.of`."""
        self.sessions.of(self.role)

    def baseline(self, mode: Mode) -> "OrtEngine | None":
        """The engine of the bundle's program for `mode`; its session is shared by all who ask for it."""
        if mode == self.role:
            return self
        return OrtEngine(self.sessions, self.processor, mode) if mode in self.bundle.manifest.programs else None

    def generate(
        self, prompts: Sequence[EncodedPrompt], options: AskOptions, on_token: OnToken | None = None
    ) -> list[Generated]:
        """Greedy answers, one run per prompt; all prompts are checked before the first run. See the module about
        `on_token`.

        Raises:
            CapacityError: a prompt, max_new_tokens or max_latent_steps is above the bundle's limit.
            UserError: `ignore_end`.
        """
        if options.ignore_end:
            raise UserError("a program ends an answer by itself, so its length cannot be forced; give a checkpoint")
        feeds = [self._feed(prompt, options) for prompt in prompts]
        session = self.sessions.of(self.role)
        if on_token is not None and isinstance(session, StepSession) and len(feeds) == 1:
            return [self._run(session, feeds[0], lambda token: on_token([token]))]
        results = [self._run(session, feed) for feed in feeds]
        if on_token is not None:
            for row in zip_longest(*(result.token_ids for result in results)):
                on_token(list(row))
        return results

    def _feed(self, prompt: EncodedPrompt, options: AskOptions) -> dict[str, np.ndarray]:
        manifest, think = self.bundle.manifest, self.entry.settings.think
        ids = prompt.ids + self.processor.answer_prefix_ids if options.mode == "direct" else prompt.ids
        check_prompt(manifest.limits, len(ids), prompt.grids)
        most = check_asked("max_latent_steps", options.max_latent_steps, manifest.limits.max_latent_steps)
        return build_feed(
            ids,
            prompt.grids,
            prompt.patches,
            image_id=manifest.tokens.image,
            merge=manifest.merge_size,
            patch_values=self.processor.geometry.patch_dim,
            think=options.mode == "latent",
            fixed_latents=(options.halting or think.halting) == "fixed",
            max_latent_steps=min(most, think.max_latent_steps) if options.max_latent_steps is None else most,
            max_new_tokens=check_asked("max_new_tokens", options.max_new_tokens, manifest.limits.max_new_tokens),
        )

    def _run(
        self, session: Any, feed: dict[str, np.ndarray], on_token: Callable[[int], None] | None = None
    ) -> Generated:
        started = time.perf_counter()
        more = () if on_token is None else (on_token,)
        out: dict[str, np.ndarray] = dict(zip(self._outputs, session.run(self._outputs, feed, *more), strict=True))
        seconds = time.perf_counter() - started
        latent_steps = int(out["latent_steps"])
        halting: Halting = HALTING[int(out["halting"])]
        return Generated(
            token_ids=out["token_ids"][: int(out["num_tokens"])].tolist(),
            latent_steps=latent_steps,
            ar_steps=int(out["ar_steps"]),
            halting=halting,
            finished=bool(out["finished"]),
            prefilled_tokens=len(feed["input_ids"]),
            replayed=_replayed(out, latent_steps),
            routed_depths=self._depths(out),
            timings={"run": seconds},
        )

    def _depths(self, out: Mapping[str, np.ndarray]) -> dict[int, int]:
        if "routed_depths" not in out:
            return {}
        return dict(zip(self.entry.routed_layers, out["routed_depths"].sum(0).tolist(), strict=True))


def _replayed(out: Mapping[str, np.ndarray], latent_steps: int) -> list[list[ReplayedToken]]:
    """Per latent step taken; empty steps where nothing can be replayed, by this program or without a picture."""
    if "replayed" not in out:
        return [[] for _ in range(latent_steps)]
    rows = zip(out["replayed"][:latent_steps].tolist(), out["replay_weights"][:latent_steps].tolist(), strict=True)
    return [[ReplayedToken(index, weight) for index, weight in zip(*row, strict=True) if index >= 0] for row in rows]


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
