"""Validation while training: the model answers by itself, as in use, and accuracy is counted by chain length.

A stage that only reads signs, and the objective `vision`, have no answer to score, because the order of a reading is
free. There the share of right predictions under teacher forcing is measured instead.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

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


class Validator:
    """Validates one stage, always on the same samples, which are encoded once."""

    def __init__(
        self,
        stage: Stage,
        config: EvalConfig,
        source: Source,
        curriculum: Curriculum,
        processor: Processor,
        device: torch.device,
    ) -> None:
        self._stage = stage
        self._config = config
        self._curriculum = curriculum
        self._processor = processor
        self._device = device
        self._chains = stage.objective == "reason" and set(stage.tasks) != {"read"}
        self._samples: dict[int, list[Sample]] = {}
        self._held_out: list[Sample] = []
        if config.samples and self._chains:
            self._samples = source.validation(stage, config.samples)
        elif config.samples:
            self._held_out = source.held_out(stage, config.samples)
        self._prompts: dict[int, list[EncodedPrompt]] = {}

    def __call__(self, model: torch.nn.Module, reasoner: LatentReasoner, stop: Callable[[], bool]) -> Validation | None:
        """Figures of the model as it is; None when `stop` says so midway. Uses no random numbers."""
        if not self._chains:
            return self._classify(model)
        found = Validation()
        for length, samples in self._samples.items():
            spoken: list[Spoken] = []
            for start in range(0, len(samples), self._config.batch_size):
                if stop():
                    return None
                spoken += self._answer(reasoner, length, slice(start, start + self._config.batch_size))
            found.accuracy[str(length)] = sum(answer.right for answer in spoken) / max(1, len(spoken))
            found.latent_steps[str(length)] = sum(answer.latent_steps for answer in spoken) / max(1, len(spoken))
            found.answers += spoken[: self._config.show]
        return found

    def _answer(self, reasoner: LatentReasoner, length: int, part: slice) -> list[Spoken]:
        samples, prompts = self._samples[length][part], self._encoded(length)[part]
        batch = collate_prompts(prompts, self._processor.pad_id).to(self._device)
        ends = self._processor.end_ids
        limits = GenerationLimits(ends[0], self._config.max_new_tokens, more_ends=ends[1:])
        mode = self._stage.mode
        answers: list[Spoken] = []
        for sample, made in zip(samples, generate(reasoner, batch, mode, limits), strict=True):
            text = self._processor.decode(made.token_ids)
            right = says_right(self._processor.format.find_answer(text, mode), text, sample)
            answers.append(Spoken(sample, text, made.latent_steps, right))
        return answers

    def _encoded(self, length: int) -> list[EncodedPrompt]:
        if length not in self._prompts:
            made: list[EncodedPrompt] = []
            for sample in self._samples[length]:
                explicit = self._stage.latent_steps == 0
                with naming(sample):
                    earlier = earlier_turns(self._processor.format, sample, self._stage.spoken_steps, explicit)
                    prompt = self._processor.encode_prompt(sample.images, sample.question, earlier=earlier)
                made.append(self._processor.asked_in(prompt, self._stage.mode))
            self._prompts[length] = made
        return self._prompts[length]

    @torch.no_grad()
    def _classify(self, model: torch.nn.Module) -> Validation:
        """Share of right predictions, by read-out or of all weighted tokens."""
        if not self._held_out:
            return Validation()
        training = model.training
        model.eval()
        batches = [
            self._curriculum.collate(self._stage, self._held_out[start : start + self._config.batch_size]).to(
                self._device
            )
            for start in range(0, len(self._held_out), self._config.batch_size)
        ]
        counts: dict[str, list[tuple[float, float]]] = {}
        for batch in batches:
            for name, right, total in _right_counts(model, batch):
                counts.setdefault(name, []).append((right, total))
        model.train(training)
        return Validation({name: _share(pairs) for name, pairs in counts.items()})


def _right_counts(model: torch.nn.Module, batch: object) -> list[tuple[str, float, float]]:
    loss = model(batch)
    if isinstance(batch, TrainBatch):
        return [("read", float(loss.right_tokens), float(loss.num_tokens))]
    return [(name, float(right), float(total)) for name, (right, total) in loss.right_by_label.items()]


def _share(pairs: Sequence[tuple[float, float]]) -> float:
    return sum(right for right, _ in pairs) / max(1.0, sum(total for _, total in pairs))
