"""Runs a checkpoint on torch. The only file of the runtime that imports torch; `Reasoner.from_checkpoint` loads it
late.

Place in the pipeline: lrkit/model/checkpoint.py -> TorchEngine -> lrkit/runtime/sdk.py.
"""

import os
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch

from lrkit.checkpoints.checkpoint_folder import base_of, baselines_of, read_info
from lrkit.checkpoints.trained_in import TrainedIn, known_dtype
from lrkit.contract.attention import Attention, check_attention
from lrkit.contract.generated import MODES, WITHOUT_LATENTS, Generated, GenerationLimits, Mode
from lrkit.contract.settings import ReasonerSettings
from lrkit.cores import find_cores
from lrkit.errors import UserError, one_line, shown
from lrkit.gpus import torch_can_use
from lrkit.model.build import build_reasoner, extra_state, load_extra_state
from lrkit.model.checkpoint import load_checkpoint
from lrkit.model.generate import generate, not_finite
from lrkit.model.open_backbone import use_attention
from lrkit.model.read import Look
from lrkit.model.reasoner import LatentReasoner
from lrkit.model.recorded import NOT_AT_ONCE, StepRecorder
from lrkit.runtime.checks.checkpoint_files import check_fit
from lrkit.runtime.encode.processor import EncodedPrompt, Processor
from lrkit.runtime.engines.common.model_counts import ModelCounts
from lrkit.runtime.engines.common.protocol import NEVER, AskOptions, OnToken, Phases
from lrkit.runtime.engines.common.stopping import Running, Stop
from lrkit.runtime.engines.torch.counts import count_reasoner
from lrkit.runtime.engines.torch.looked import TorchLooked, read_looked
from lrkit.runtime.engines.torch.prompt_batch import collate_prompts
from lrkit.runtime.engines.torch.vision_probe import VisionProbe
from lrkit.runtime.engines.torch.weights_digest import weight_files, weights_digest
from lrkit.runtime.engines.torch.word_head import TorchWordHead

DEFAULT_ATTENTION = Attention()
DEFAULT_MAX_NEW_TOKENS = 256
"""Longest answer where none is asked for."""


class TorchEngine:
    """A reasoner in memory, on one device."""

    name = "torch"
    bundle = None
    entry = None
    phases: Phases = "inside"
    _process: ClassVar[int | None] = None
    """Where an engine last ran."""

    def __init__(
        self,
        reasoner: LatentReasoner,
        processor: Processor,
        device: str = "cpu",
        baselines: dict[str, Path] | None = None,
        cuda_graphs: bool = False,
        asked: str | None = None,
        note: str | None = None,
        attention: Attention = DEFAULT_ATTENTION,
        files: Sequence[Path] = (),
    ) -> None:
        """`cuda_graphs` records latent steps and words by shape and launches each as one (recorded.py). `asked` is the
        number type that baselines are asked in too, None for each its own; `note` what a user should know; `files`
        are those of the weights, for `digest`. Raises as `check_device`, `check_attention` and `use_attention`."""
        check_device(device, cuda_graphs)
        used = str(reasoner.backbone.embedding_rows().dtype).removeprefix("torch.")
        check_attention(attention, device, used, cuda_graphs)
        check_recordable(reasoner.settings, cuda_graphs)
        self.reasoner = reasoner.to(device).eval()
        use_attention(self.reasoner.backbone, attention)
        self._attention = attention
        self.processor = processor
        self.device = device
        self.place = device
        self.num_layers = reasoner.backbone.num_layers
        self.note = note
        self._asked = asked
        self._baselines = baselines or {}
        self.modes: tuple[Mode, ...] = MODES
        self._recorder = StepRecorder(self.reasoner) if cuda_graphs else None
        self._files = tuple(files)
        self._digest: str | None = None

    @classmethod
    def from_checkpoint(
        cls,
        folder: Path,
        device: str = "cpu",
        dtype: str | None = None,
        cuda_graphs: bool = False,
        attention: Attention = DEFAULT_ATTENTION,
    ) -> "TorchEngine":
        """Loads a checkpoint folder, in the number type that it was trained in (None or "auto") or in `dtype`, such as
        "bfloat16"; `note` says where these differ.

        Raises:
            CheckpointError: the folder is missing, incomplete or damaged.
            UserError: an unknown device or dtype, CUDA graphs without a GPU, or kernels of `attention` that cannot run.
        """
        check_device(device, cuda_graphs)
        asked = known_dtype(dtype)
        check_attention(attention, device, asked, cuda_graphs)
        _heed_quota()
        cls._heed_fork(device)
        info = read_info(folder)
        trained = TrainedIn.of(info, base_of(folder, info))
        used = asked or trained.backbone
        check_attention(attention, device, used, cuda_graphs)
        loaded = load_checkpoint(folder, dtype=None if used is None else getattr(torch, used))
        loaded.reasoner.merge_adapter()
        note = None if used is None else trained.note(used)
        processor = Processor.from_folder(folder).see_for(loaded.reasoner.settings.replay)
        check_fit(processor, loaded.checked)
        baselines = baselines_of(folder, info)
        files = weight_files(folder, loaded.checked.base)
        engine = cls(loaded.reasoner, processor, device, baselines, cuda_graphs, asked, note, attention, files)
        if info["latent_id"] is None:
            engine.modes = WITHOUT_LATENTS
        return engine

    @property
    def cuda_graphs(self) -> bool:
        """Whether steps are recorded."""
        return self._recorder is not None

    @property
    def attention(self) -> str:
        """Kernels of attention: one name, or one for each part."""
        return str(self._attention)

    @property
    def products(self) -> None:
        """Those of the weights."""
        return None

    @property
    def dtype(self) -> str:
        """Number type of the weights, such as "bfloat16"."""
        return str(next(self.reasoner.model.parameters()).dtype).removeprefix("torch.")

    @property
    def settings(self) -> ReasonerSettings:
        """The reasoner's settings."""
        return self.reasoner.settings

    @property
    def threads(self) -> int:
        """The threads that torch uses now in the whole process."""
        return torch.get_num_threads()

    def use_threads(self, threads: int | None) -> None:
        """Sets the threads of everything that torch does in this process."""
        if threads is not None and torch.get_num_threads() != threads:
            torch.set_num_threads(threads)

    def counts(self) -> ModelCounts:
        """Counted weight by weight."""
        return count_reasoner(self.reasoner)

    def patience(self, tokens: int | None = None) -> None:
        """None: its loops are lrkit's own, and they end."""

    def begin_peak(self) -> None:
        """Resets torch's high-water mark."""
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()

    def peak_bytes(self) -> int | None:
        """What torch has allocated at most."""
        return int(torch.cuda.max_memory_allocated()) if self._on_gpu else None

    @property
    def _on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    def vision_probe(self) -> VisionProbe:
        """A probe of the backbone, which several engines may share."""
        return VisionProbe(self.reasoner.backbone, self.device)

    def word_head(self) -> TorchWordHead:
        """Its own head and embeddings."""
        return TorchWordHead(self.reasoner, self.device)

    def with_settings(self, settings: ReasonerSettings) -> "TorchEngine":
        """The same weights with another replay or without routing; the backbone is shared, not copied."""
        old = self.reasoner
        new = build_reasoner(old.backbone, settings, old.latent.token_id)
        load_extra_state(new, extra_state(old), missing_ok=True)
        dtype = next(old.model.parameters()).dtype
        graphs, attention = self.cuda_graphs, self._attention
        given: Any = {"cuda_graphs": graphs, "attention": attention, "files": self._files}
        processor = self.processor
        if settings.replay.fine_zoom != processor.zoom:
            processor = copy(processor).see_for(settings.replay)
        return TorchEngine(new.to(dtype), processor, self.device, **given)

    def with_adapter(self, name: str) -> "TorchEngine":
        """Always raises `UserError`."""
        raise UserError(
            f"adapters are switched in bundles, and this is a checkpoint; ask the checkpoint that has {shown(name, 60)}"
        )

    def with_cuda_graphs(self, wanted: bool) -> "TorchEngine":
        """The same weights with or without CUDA graphs. Raises as the constructor."""
        given = self.processor, self.device, self._baselines, wanted, self._asked, self.note, self._attention
        engine = TorchEngine(self.reasoner, *given, self._files)
        engine.modes = self.modes
        return engine

    def load(self) -> None:
        """Does nothing: the weights are loaded already."""

    def generate(
        self, prompts: Sequence[EncodedPrompt], options: AskOptions, on_token: OnToken | None = None
    ) -> list[Generated]:
        self._heed_fork(self.device)
        asked = [self.processor.asked_in(prompt, options.mode) for prompt in prompts]
        looks = self._looks(asked, options.stop)
        # Behind a look, a prompt is collated without its patches: they are not read again.
        asked = [prompt if looks is None else replace(prompt, patches=None) for prompt in asked]
        batch = collate_prompts(asked, self.processor.pad_id).to(self.device)
        most = DEFAULT_MAX_NEW_TOKENS if options.max_new_tokens is None else options.max_new_tokens
        end, *others = (-1,) if options.ignore_end else self.processor.end_ids
        limits = GenerationLimits(end, most, options.max_latent_steps, options.halting, tuple(others))
        with Running(options.stop) as running:
            running.check()
            given = limits, on_token, self._recorder, running.check, looks, options.before_step, options.candidates
            return generate(self.reasoner, batch, options.mode, *given)

    def look(self, prompt: EncodedPrompt, stop: Stop = NEVER) -> TorchLooked:
        self._heed_fork(self.device)
        pictures = replace(prompt, ids=prompt.ids[: prompt.picture_part])
        with Running(stop) as running, torch.inference_mode():
            running.check()
            look = self.reasoner.look(collate_prompts([pictures], self.processor.pad_id).to(self.device))
        if not bool(look.keys[-1][0].isfinite().all()):
            raise not_finite(self.reasoner)
        return TorchLooked(look)

    def looked_of(self, arrays: Mapping[str, np.ndarray], prompt: EncodedPrompt) -> TorchLooked:
        visual = prompt.ids[: prompt.picture_part].count(self.processor.image_id)
        return read_looked(arrays, self.reasoner, prompt.picture_part, visual)

    @property
    def digest(self) -> str:
        if self._digest is None:
            self._digest = weights_digest(self.reasoner, self._files)
        return self._digest

    def _looks(self, prompts: Sequence[EncodedPrompt], stop: Stop) -> list[Look] | None:
        """What to read the questions behind; None: read whole prompts. One look in a batch takes one for all."""
        if not any(prompt.looked for prompt in prompts):
            return None
        found = [prompt.looked if prompt.looked is not None else self.look(prompt, stop) for prompt in prompts]
        return [cast(TorchLooked, one).look for one in found]

    @classmethod
    def _heed_fork(cls, device: str) -> None:
        """Before torch runs. OpenMP's threads do not outlive a fork, and a child that waits for them never ends. It
        goes on with its own thread alone, as torch's data loaders do.

        Raises:
            UserError: the GPU was in use before the fork.
        """
        process = os.getpid()
        if cls._process not in (None, process):
            if torch.device(device).type == "cuda" and torch.cuda._is_in_bad_fork():  # pyright: ignore
                raise UserError(
                    "this process was forked from one that uses the GPU, which a fork cannot share; load the model "
                    'after the fork, or start processes by "spawn"'
                )
            torch.set_num_threads(1)
        TorchEngine._process = process

    def baseline(self, mode: Mode) -> "TorchEngine | None":
        folder = self._baselines.get(mode)
        if folder is None:
            return None
        return TorchEngine.from_checkpoint(folder, self.device, self._asked, self.cuda_graphs, self._attention)


def _heed_quota() -> None:
    """Torch counts the cores that it sees; more threads than a container's quota pays for only stop one another."""
    cores = find_cores()
    if cores.quota is not None and torch.get_num_threads() > cores.threads:
        torch.set_num_threads(cores.threads)


def check_device(name: str, cuda_graphs: bool = False) -> None:
    """Checks, before weights are loaded, that torch can run there.

    Raises:
        UserError: an unknown device, a GPU that torch does not see, or CUDA graphs on a device that is none.
    """
    try:
        kind = torch.device(name).type
    except RuntimeError as error:
        raise UserError(f"unknown device {one_line(repr(name), 80)}; give cpu, cuda or cuda:0") from error
    if kind == "cuda" and not torch_can_use():
        raise UserError(f"device {name!r} was asked for, but torch sees no GPU here; give cpu")
    if cuda_graphs and kind != "cuda":
        raise UserError(f"CUDA graphs are for GPUs, and the device is {name}; leave them out, or give device cuda")


def check_recordable(settings: ReasonerSettings, cuda_graphs: bool) -> None:
    """Raises `UserError` where latent steps that should be recorded cannot be."""
    if cuda_graphs and settings.replay.source == "fine":
        raise UserError(
            "cuda_graphs is on and replay.source is fine: the tower runs within a latent step, which cannot be "
            "recorded; leave cuda_graphs out"
        )
    if cuda_graphs and settings.think.latents == "parallel":
        raise UserError(NOT_AT_ONCE)
