"""A recipe: everything that decides a training run, as frozen values with all cross-field checks. Torch-free.

    train/recipes/NAME.yaml + overrides -> Recipe -> lrkit.train.run

`lrkit train trail-latent optimizer.lr=3e-4` reads the shipped file and changes one value. Problems are found
here, together, before a weight or a picture is touched.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializeAsAny, WrapValidator, model_validator

from lrkit.config import Config, load_config
from lrkit.contract.attention import Attention, AttentionChoice
from lrkit.contract.settings import ReasonerSettings
from lrkit.data.sources import DataSource, read_data
from lrkit.data.trail_source import TrailData
from lrkit.families.table import DEFAULT, FamilyName
from lrkit.resources import find_recipe
from lrkit.train.loading import LoaderConfig
from lrkit.train.stage import MOST_AT_ONCE, ConfigT, Name, OptimizerConfig, Stage, Weight, raise_together
from lrkit.train.trackers import TrackerName

SCHEMA_VERSION = 1
Trainable = Literal["full", "tower", "lora"]


class FreshBackbone(Config):
    """A model with random weights and the tokenizer of the data set."""

    family: FamilyName = DEFAULT
    """Whose model it is."""
    hidden_size: int = Field(default=128, ge=8)
    """Width of the language model, and of a visual token."""
    intermediate_size: int = Field(default=384, ge=8)
    """Width inside the gated feed-forward layer."""
    num_layers: int = Field(default=4, ge=1)
    """Layers of the language model."""
    num_heads: int = Field(default=4, ge=1)
    """Attention heads."""
    num_kv_heads: int = Field(default=2, ge=1)
    """Heads of keys and values, shared by groups of query heads."""
    max_positions: int = Field(default=1024, ge=64)
    """Longest sequence in positions."""
    vision_depth: int = Field(default=2, ge=1)
    """Blocks of the vision tower."""
    vision_width: int = Field(default=64, ge=8)
    """Width of the vision tower."""
    vision_heads: int = Field(default=4, ge=1)
    """Attention heads of the vision tower."""
    vision_mlp_ratio: int = Field(default=2, ge=1)
    """Feed-forward width of the vision tower, in vision widths."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems: list[str] = []
        if self.hidden_size % self.num_heads or (self.hidden_size // self.num_heads) % 4:
            problems.append(
                f"hidden_size {self.hidden_size} over num_heads {self.num_heads} must be a multiple of 4 per head; "
                "change one of them"
            )
        if self.num_heads % self.num_kv_heads:
            problems.append(f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads}")
        if self.vision_width % self.vision_heads or (self.vision_width // self.vision_heads) % 4:
            problems.append(
                f"vision_width {self.vision_width} over vision_heads {self.vision_heads} must be a multiple of 4 "
                "per head; change one of them"
            )
        return raise_together(self, problems)


class EvalConfig(Config):
    """Validation while training: the model generates without being told the right tokens."""

    every: int = Field(default=0, ge=0)
    """Updates between validations; 0 validates at the end of each stage only."""
    samples: int = Field(default=128, ge=0)
    """Validation samples of each chain length; 0 turns validation off."""
    batch_size: int = Field(default=64, ge=1, le=MOST_AT_ONCE)
    """Samples generated at once."""
    max_new_tokens: int = Field(default=160, ge=1)
    """Most generated tokens of an answer."""
    show: int = Field(default=3, ge=0)
    """Samples printed at the end of each stage."""


class AnalyzeConfig(Config):
    """Gradient dynamics while training: `lrkit analyze RUN --recorded` shows what was written."""

    every: int = Field(default=100, ge=1)
    """Updates of a stage between analyses; its first and its last state are analysed in any case."""
    samples: int = Field(default=8, ge=2, le=4096)
    """Samples, drawn once as the stage draws its own, and measured one by one."""


class Recipe(Config):
    """A training run."""

    schema_version: Literal[1] = SCHEMA_VERSION
    """Version of this format."""
    name: Name
    """Names the run's folder, runs/NAME, unless -o is given."""
    description: str = ""
    """What it is for, in one sentence."""
    init: FreshBackbone | str
    """Values of a fresh backbone; or a checkpoint (name, run folder or folder); or hub:ORG/NAME, or a model folder."""
    trainable: Trainable = "lora"
    """full: every weight; tower: the vision tower alone; lora: an adapter on the language model, routers, F_SR and the
    rows of <|latent|>."""
    model: ReasonerSettings = ReasonerSettings()
    """Settings given here replace those of a checkpoint in `init`; the others stay."""
    data: Annotated[SerializeAsAny[DataSource], WrapValidator(read_data)] = Field(default_factory=TrailData)
    """The training data."""
    max_pixels: int | None = Field(default=None, ge=1)
    """Pictures are shrunk to at most this many pixels, in training and in use, instead of the limit of `init`; written
    into the checkpoint's preprocessor_config.json."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """How weights are updated."""
    batch_size: int = Field(default=32, ge=1, le=MOST_AT_ONCE)
    """Samples of one batch, and the most that a device holds at once. However many devices train, an update is over
    batch_size x accumulate samples: they share its batches, or where these are too few, the samples of each."""
    accumulate: int = Field(default=1, ge=1, le=MOST_AT_ONCE)
    """Batches whose gradients are summed into one update, over all devices."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 where the accelerator has it, float32 on a CPU."""
    attention: AttentionChoice = Attention()
    """Kernels of attention: sdpa, flash_attention_2, flash_attention_3 or flash_attention_4, one for both vision tower
    and language model, or {vision: NAME, text: NAME}. Those of flash need a GPU, their package and bfloat16."""
    gradient_checkpointing: bool = False
    """Layers of the language model keep their inputs alone and run once more on the way back: less memory, more time,
    the same losses. May differ when a run is resumed."""
    shard: bool = False
    """Each process keeps its part of the optimizer's states, of the gradients' sums and of float32 weights, instead of
    all; whole weights are there for computing alone, in bfloat16 where precision is and trainable is full. May differ
    when a run is resumed."""
    token_weights: dict[str, Weight] = {}
    """Regular expression on a spoken token's text -> its weight in the loss; all others weigh 1."""
    teacher: str | None = None
    """Checkpoint (name or path) that sees more, such as the same model with replay.source: prompt: where it looks in
    each latent step is the target of the pointing loss (model.distill.pointing); null: labels of the data are."""
    teacher_sharpness: float = Field(default=4.0, gt=0.0)
    """The teacher's shares are raised to this power before they are the target: 1 is where it looks, more is where it
    looks most. With several windows a step, less of it keeps the second one."""
    baselines: dict[Literal["cot", "direct"], str] = {}
    """Checkpoints to hold this one against: mode -> name or path; recorded in the checkpoint."""
    seed: int = Field(default=0, ge=0)
    """Seed of initial weights, dropout and draws."""
    save_every: int = Field(default=200, ge=1)
    """Updates between saves of the state that --resume goes on from."""
    keep_last: int | None = Field(default=None, ge=1)
    """Stages whose checkpoints stay, counted from the last one; null: all. May differ when a run is resumed."""
    keep_best: int = Field(default=0, ge=0)
    """Best validations of each stage whose checkpoints stay, under best/ where they are not the stage's last; the mean
    accuracy over lengths decides. May differ when a run is resumed."""
    log_every: int = Field(default=10, ge=1)
    """Updates between lines of metrics.jsonl."""
    trackers: tuple[TrackerName, ...] = ()
    """Trackers that get the figures too, beside metrics.jsonl and TensorBoard: wandb. May differ when a run is
    resumed."""
    eval: EvalConfig = EvalConfig()
    """Validation."""
    loader: LoaderConfig = LoaderConfig()
    """How pictures are decoded ahead; may differ when a run is resumed."""
    analyze: AnalyzeConfig | None = None
    """Gradient dynamics; null: nothing is computed or stored."""
    stages: tuple[Stage, ...] = Field(min_length=1)
    """The curriculum, in order."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        return raise_together(self, list(self._problems()))

    def _problems(self) -> Iterator[str]:
        if self.trainable != "full" and isinstance(self.init, FreshBackbone):
            yield (
                f"trainable: {self.trainable} on random weights learns nothing; set trainable: full or give init a "
                "checkpoint"
            )
        if isinstance(self.init, FreshBackbone) and self.data.words() is None:
            yield "a fresh backbone gets its words from trail data; give init a checkpoint or hub:ORG/NAME"
        yield from self.data.problems()
        if self.attention.asked and self.precision == "float32":
            yield (
                f"attention {self.attention} computes in bfloat16, and precision is float32; set precision: auto or "
                "bfloat16, or attention: sdpa"
            )
        if self.shard:
            yield from self._shard_problems()
        if all(stage.updates == 0 for stage in self.stages):
            yield "every stage has updates 0, so nothing is trained; give at least one a budget"
        if self.keep_best and not (self.eval.every and self.eval.samples):
            yield (
                f"keep_best: {self.keep_best} needs validation during the stages; set eval.every and eval.samples "
                "above 0, or keep_best to 0"
            )
        for pattern in self.token_weights:
            try:
                re.compile(pattern)
            except (re.error, RecursionError, OverflowError) as error:
                yield f"token_weights: {pattern!r} is no regular expression ({error}); correct it"
        seen: dict[str, Stage] = {}
        for index, stage in enumerate(self.stages):
            for problem in self._stage_problems(stage, seen):
                yield f"stages.{index} ({stage.name}): {problem}"
            seen[stage.name] = stage

    def _shard_problems(self) -> Iterator[str]:
        whole = [stage.name for stage in self.stages if overlay(self.optimizer, stage.optimizer).kind == "muon"]
        if whole:
            yield (
                f"shard: true cuts weights into parts, and muon (stage {', '.join(whole)}) updates whole matrices; set "
                "optimizer.kind: adamw, or shard: false"
            )

    def _stage_problems(self, stage: Stage, earlier: Mapping[str, Stage]) -> Iterator[str]:
        if stage.name in earlier:
            yield "the name is taken by an earlier stage; choose another"
        if stage.objective == "vision" and self.trainable == "lora":
            yield "objective vision trains the vision tower; set trainable: full or tower"
        yield from self.data.stage_problems(stage)
        yield from self._readout_problems(stage)
        if stage.until and not self.eval.samples:
            yield "until needs validation; set eval.samples above 0"
        if stage.until and not self.eval.every:
            yield "until needs validation during the stage; set eval.every above 0"
        if stage.until and not self.data.validates:
            yield "until needs validation; give data.validation"
        yield from self._rehearsal_problems(stage, earlier)

    def _readout_problems(self, stage: Stage) -> Iterator[str]:
        for name, readout in stage.readouts.items():
            words = self.data.label_words(name) or ()
            if readout.tied and len(words) < readout.classes:
                known = f"{len(words)} of its classes have" if words else "none of its classes has"
                yield f"readouts.{name}: tied needs a word for each class, and {known} one; lower classes, or untie it"
            if readout.pull and not readout.tied:
                yield f"readouts.{name}: pull needs the words of tied: true; set it, or remove pull"

    def _rehearsal_problems(self, stage: Stage, earlier: Mapping[str, Stage]) -> Iterator[str]:
        reasoning = [name for name, other in earlier.items() if other.objective == "reason"]
        for name in stage.rehearse:
            if name not in reasoning:
                known = ", ".join(reasoning) or "none here"
                yield f"rehearses {name!r}; allowed are earlier stages that reason: {known}"
        if stage.rehearsal_fraction and not reasoning:
            yield "rehearsal_fraction is set but no earlier stage reasons; set it to 0 or add a stage before"


def load_recipe(source: str | Path | Mapping[str, object], overrides: Sequence[str] = ()) -> Recipe:
    """A recipe by its shipped name, from a YAML file or from a mapping, with dotted overrides.

    Raises:
        UnknownNameError: no recipe of that name.
        ConfigError: with a line for each problem.
    """
    return load_config(Recipe, find_recipe(source) if isinstance(source, str) else source, overrides)


def overlay(base: ConfigT, given: ConfigT) -> ConfigT:
    """`base` with the fields that `given` sets explicitly, at any depth.

    Raises:
        ConfigError: the combination is not allowed.
    """
    return load_config(type(base), _merge(base.model_dump(mode="json"), given.model_dump(exclude_unset=True)))


def as_written(recipe: Recipe) -> dict[str, object]:
    """The values that a recipe was given; `load_recipe` reads them back as the same recipe, for `overlay` too."""
    values = recipe.model_dump(mode="json", exclude_unset=True)
    return {**values, "data": recipe.data.model_dump(mode="json")}


def differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """One line for each value in which two recipes differ, as `as_written` gives them."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, pair in enumerate(zip(old, new, strict=True)):
            yield from differences(*pair, f"{path}.{index}")
    elif old != new:
        yield f"{path}: was {old!r}, is {new!r}"


def _merge(base: dict[str, object], over: Mapping[str, object]) -> dict[str, object]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, Mapping) else value
    return merged
