"""Validation while training: the model answers by itself, as in use, and accuracy is counted by chain length.

A stage that only reads signs, and the objective `vision`, have no answer to score, because the order of a reading is
free. There the share of right predictions under teacher forcing is measured instead.

Each process of a run answers its part of the samples. `joined` puts the parts together: each sample counts once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator

from lrkit.contract.extract import says_right
from lrkit.contract.generated import GenerationLimits
from lrkit.contract.sample import Sample, naming
from lrkit.data.collate import TrainBatch, earlier_turns
from lrkit.data.sources import Source
from lrkit.model.generate import generate
from lrkit.model.reasoner import LatentReasoner
from lrkit.runtime.encode.processor import EncodedPrompt, Processor
from lrkit.runtime.engines.torch.prompt_batch import collate_prompts
from lrkit.train.curriculum import Curriculum
from lrkit.train.recipe import EvalConfig
from lrkit.train.stage import Stage
from lrkit.train.together import gathered


@dataclass(frozen=True)
class Spoken:
    """One validation answer."""

    sample: Sample
    text: str
    latent_steps: int
    right: bool


@dataclass
class Validation:
    """One validation's figures."""

    accuracy: dict[str, float] = field(default_factory=dict)
    """Chain length, or name of what was classified -> share that is right."""
    latent_steps: dict[str, float] = field(default_factory=dict)
    """Chain length -> mean number of latent steps."""
    answers: list[Spoken] = field(default_factory=list)
    """Answers to show; chains alone have any."""

    @property
    def newest(self) -> float:
        """Accuracy of the longest chains."""
        return list(self.accuracy.values())[-1] if self.accuracy else 0.0

    @property
    def mean(self) -> float:
        """Mean over lengths."""
        return sum(self.accuracy.values()) / len(self.accuracy) if self.accuracy else 0.0


Answered = tuple[str, int, bool]
"""One answer of a process: `text`, `latent_steps` and `right` of a `Spoken`."""


@dataclass
class Part:
    """What one process found of a validation."""

    answers: dict[int, list[Answered]] = field(default_factory=dict)
    """Chain length -> of its samples, in order."""
    counts: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """Name of what was classified -> (right, all) of each batch."""


class Validator:
    """Validates one stage, always on the same samples, which are encoded once."""

    def __init__(
        self,
        stage: Stage,
        config: EvalConfig,
        source: Source,
        curriculum: Curriculum,
        processor: Processor,
        accelerator: Accelerator,
    ) -> None:
        self._stage = stage
        self._config = config
        self._curriculum = curriculum
        self._processor = processor
        self._accelerator = accelerator
        self._device = accelerator.device
        self._own = slice(accelerator.process_index, None, accelerator.num_processes)
        self._chains = stage.objective == "reason" and set(stage.tasks) != {"read"}
        self._samples: dict[int, list[Sample]] = {}
        self._held_out: list[Sample] = []
        if config.samples and self._chains:
            self._samples = source.validation(stage, config.samples)
        elif config.samples:
            self._held_out = source.held_out(stage, config.samples)
        self._prompts: dict[int, list[EncodedPrompt]] = {}

    def __call__(self, model: torch.nn.Module, reasoner: LatentReasoner, stop: Callable[[], bool]) -> Part | None:
        """What the model as it is makes of this process's samples; None when `stop` says so midway. Uses no random
        numbers."""
        if not self._chains:
            return self._classify(model)
        part = Part()
        for length, samples in self._samples.items():
            spoken: list[Answered] = []
            for start in range(0, len(samples[self._own]), self._config.batch_size):
                if stop():
                    return None
                spoken += self._answer(reasoner, length, slice(start, start + self._config.batch_size))
            part.answers[length] = spoken
        return part

    def joined(self, own: Part | None) -> Validation | None:
        """The figures of all processes' parts; None where one was stopped. All processes take part."""
        parts = [part for part in gathered(self._accelerator, own) if part is not None]
        if len(parts) < self._accelerator.num_processes:
            return None
        if not self._chains:
            names = dict.fromkeys(name for part in parts for name in part.counts)
            pairs = {name: [pair for part in parts for pair in part.counts.get(name, [])] for name in names}
            return Validation({name: _share(counted) for name, counted in pairs.items()})
        found = Validation()
        for length, samples in self._samples.items():
            answers = [part.answers[length] for part in parts]
            spoken = [
                Spoken(sample, *answers[number % len(parts)][number // len(parts)])
                for number, sample in enumerate(samples)
            ]
            found.accuracy[str(length)] = sum(answer.right for answer in spoken) / max(1, len(spoken))
            found.latent_steps[str(length)] = sum(answer.latent_steps for answer in spoken) / max(1, len(spoken))
            found.answers += spoken[: self._config.show]
        return found

    def _answer(self, reasoner: LatentReasoner, length: int, part: slice) -> list[Answered]:
        samples, prompts = self._samples[length][self._own][part], self._encoded(length)[part]
        batch = collate_prompts(prompts, self._processor.pad_id).to(self._device)
        ends = self._processor.end_ids
        limits = GenerationLimits(ends[0], self._config.max_new_tokens, more_ends=ends[1:])
        mode = self._stage.mode
        answers: list[Answered] = []
        for sample, made in zip(samples, generate(reasoner, batch, mode, limits), strict=True):
            text = self._processor.decode(made.token_ids)
            right = says_right(self._processor.format.find_answer(text, mode), text, sample)
            answers.append((text, made.latent_steps, right))
        return answers

    def _encoded(self, length: int) -> list[EncodedPrompt]:
        if length not in self._prompts:
            made: list[EncodedPrompt] = []
            for sample in self._samples[length][self._own]:
                explicit = self._stage.latent_steps == 0
                with naming(sample):
                    earlier = earlier_turns(self._processor.format, sample, self._stage.spoken_steps, explicit)
                    prompt = self._processor.encode_prompt(sample.images, sample.question, earlier=earlier)
                made.append(self._processor.asked_in(prompt, self._stage.mode))
            self._prompts[length] = made
        return self._prompts[length]

    @torch.no_grad()
    def _classify(self, model: torch.nn.Module) -> Part:
        """Right predictions, by read-out or of all weighted tokens."""
        held_out, part = self._held_out[self._own], Part()
        training = model.training
        model.eval()
        batches = [
            self._curriculum.collate(self._stage, held_out[start : start + self._config.batch_size]).to(self._device)
            for start in range(0, len(held_out), self._config.batch_size)
        ]
        for batch in batches:
            for name, right, total in _right_counts(model, batch):
                part.counts.setdefault(name, []).append((right, total))
        model.train(training)
        return part


def _right_counts(model: torch.nn.Module, batch: object) -> list[tuple[str, float, float]]:
    loss = model(batch)
    if isinstance(batch, TrainBatch):
        return [("read", float(loss.right_tokens), float(loss.num_tokens))]
    return [(name, float(right), float(total)) for name, (right, total) in loss.right_by_label.items()]


def _share(pairs: Sequence[tuple[float, float]]) -> float:
    return sum(right for right, _ in pairs) / max(1.0, sum(total for _, total in pairs))
