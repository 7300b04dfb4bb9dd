"""A recipe: everything that decides a training run, as frozen values with all cross-field checks. Torch-free.

    train/recipes/NAME.yaml + overrides -> Recipe -> lrkit.train.run

`lrkit train trail-latent optimizer.lr=3e-4` reads the shipped file and changes one value. Problems are found
here, together, before a weight or a picture is touched.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, SerializeAsAny, WrapValidator, model_validator

from lrkit.config import Config, load_config
from lrkit.contract.attention import Attention, AttentionChoice
from lrkit.contract.sample import Spoken
from lrkit.contract.settings import ReasonerSettings
from lrkit.data.board import BoardKind
from lrkit.data.sources import DataSource, read_data
from lrkit.data.trail_source import TrailData
from lrkit.families.table import DEFAULT, FamilyName
from lrkit.resources import find_recipe
from lrkit.train.loading import LoaderConfig

SCHEMA_VERSION = 1
MOST_AT_ONCE = 65_536
"""Samples of a batch, and batches of an update: more is a slip of the keyboard, found only once memory is gone."""
Weight = Annotated[float, Field(ge=0.0)]
Trainable = Literal["full", "tower", "lora"]
OwnGroup = Literal["step_encodings", "routers", "latent", "distillation"]
"""Weights that the method adds to a backbone: e(d) and routers of RDS, what belongs to `<|latent|>`, F_SR."""
ConfigT = TypeVar("ConfigT", bound=Config)
# Names become those of folders: systems allow 255 bytes, and a folder being written has a longer name still.
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=100)]


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
        return _raise_together(self, problems)


class OptimizerConfig(Config):
    """The optimizer; a new one starts with each stage."""

    kind: Literal["adamw", "muon"] = "adamw"
    """muon: torch.optim.Muon on matrices inside the layers, AdamW on everything else."""
    lr: float = Field(default=5e-4, gt=0.0)
    """Highest learning rate, of AdamW and of Muon (whose updates are scaled to AdamW's size)."""
    rates: dict[OwnGroup, Annotated[float, Field(gt=0.0)]] = {}
    """Weights of the method -> their learning rate as a multiple of `lr`; all others have 1. Step encodings start at 0
    and move by about the rate at each update, so in a short run they need more for routing to do anything."""
    betas: tuple[Annotated[float, Field(ge=0.0, lt=1.0)], Annotated[float, Field(ge=0.0, lt=1.0)]] = (0.9, 0.98)
    """Decay of AdamW's two running means."""
    weight_decay: float = Field(default=0.01, ge=0.0)
    """Decay of matrices; vectors and scalars are never decayed."""
    clip: float = Field(default=1.0, ge=0.0)
    """Largest norm of the gradient; 0 does not clip."""
    warmup: int = Field(default=50, ge=0)
    """Updates at the start of each stage in which the rate grows linearly from 0."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """What the rate does after the warm-up until the stage's last update."""
    final_fraction: float = Field(default=0.1, ge=0.0, le=1.0)
    """cosine and linear end at this fraction of `lr`."""


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


class Until(Config):
    """Ends a stage before its budget is spent."""

    accuracy: float = Field(gt=0.0, le=1.0)
    """Validation accuracy that is enough."""
    on: Literal["newest", "mean"] = "newest"
    """newest: of the longest chains of the stage; mean: over all its lengths."""


class Readout(Config):
    """A linear classifier of visual tokens, for the objective `vision`."""

    classes: int = Field(ge=2)
    """Labels run from 0 to classes - 1; a negative label is left out."""
    tied: bool = False
    """True: logits are products with the token embeddings of the words that the classes stand for (in trails 0, 1,
    ...); False: with a table of its own."""
    pull: float = Field(default=0.0, ge=0.0)
    """tied only: weight of the squared distance of a visual token from the embedding of its word, as a share of the
    mean embedding's square. A language model that stays frozen then reads visual tokens as it reads words."""


class Stage(Config):
    """One step of the curriculum: what is drawn, which steps are latent, and when it is over."""

    name: Name
    """Names the stage's checkpoint; lower case, digits, - and _."""
    objective: Literal["reason", "vision"] = "reason"
    """reason: the loss of eq. 14; vision: classify every visual token by linear read-outs."""
    readouts: dict[str, Readout] = {}
    """vision only: name of a label per visual token (in `Sample.info`) -> how it is read out."""
    tasks: dict[str, Weight] = {}
    """Data that lrkit draws: task -> how often it is drawn; empty: the first one of the data alone."""
    boards: dict[BoardKind, Weight] = {}
    """trail only: instead of `data.boards`."""
    lengths: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Chain lengths drawn; empty: all the data has."""
    length_weights: tuple[Weight, ...] = ()
    """How often each of `lengths` is drawn; empty: equally often."""
    batches: Literal["mixed", "equal"] = "mixed"
    """mixed: the length is drawn for each sample; equal: for each batch, which then needs no padding, but lets the last
    length drawn push the others out of a small model."""
    latent_steps: Annotated[int, Field(ge=0)] | Literal["all"] = 0
    """How many steps at the start of each chain are latent."""
    spoken_steps: Spoken = "rest"
    """rest: the steps that are not latent are spoken before the answer; none: only the answer is, as in mode direct;
    bare: only the answer is, without its marker, once all steps are latent."""
    updates: int | None = Field(default=None, ge=0)
    """Budget in optimizer updates; 0 trains nothing, for a stage that later ones rehearse."""
    epochs: float | None = Field(default=None, gt=0.0)
    """Budget in passes over the training lines; jsonl only, instead of `updates`."""
    until: Until | None = None
    """Ends the stage early."""
    rehearsal_fraction: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of the batches drawn as in an earlier stage."""
    rehearse: tuple[Name, ...] = ()
    """The earlier stages rehearsed; empty: all that reason."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Values given here replace those of the recipe's `optimizer` in this stage."""
    batch_size: int | None = Field(default=None, ge=1, le=MOST_AT_ONCE)
    """Instead of the recipe's."""

    @property
    def mode(self) -> Literal["latent", "cot", "direct"]:
        """How the stage's model is asked in validation."""
        if self.latent_steps != 0:
            return "latent"
        return "cot" if self.spoken_steps == "rest" else "direct"

    @model_validator(mode="after")
    def _check(self) -> Self:
        return _raise_together(self, list(self._problems()))

    def _problems(self) -> Iterator[str]:
        if (self.updates is None) == (self.epochs is None):
            yield "needs a budget: give one of updates and epochs"
        if self.length_weights and len(self.length_weights) != len(self.lengths):
            yield (
                f"length_weights has {len(self.length_weights)} values for {len(self.lengths)} lengths; "
                "give one weight per length"
            )
        if self.length_weights and not any(self.length_weights):
            yield "length_weights are all 0; give at least one length a positive weight"
        if self.tasks and not any(self.tasks.values()):
            yield "tasks have weight 0 throughout; give at least one a positive weight"
        if self.boards and not any(self.boards.values()):
            yield "boards have weight 0 throughout; give at least one a positive weight"
        if self.objective == "vision" and not self.readouts:
            yield "objective vision needs readouts, for example {token_digits: {classes: 10, tied: true}}"
        if self.objective == "reason" and self.readouts:
            yield "readouts belong to objective vision; remove them or set objective: vision"
        if self.objective == "vision" and (self.latent_steps != 0 or self.rehearsal_fraction or self.until):
            yield "objective vision has no latent_steps, rehearsal_fraction or until; remove them"
        if self.spoken_steps == "bare" and self.latent_steps != "all":
            yield "spoken_steps: bare leaves no step to be spoken; set latent_steps: all, or spoken_steps: none"
        if self.rehearse and not self.rehearsal_fraction:
            yield "rehearse is given but rehearsal_fraction is 0; give a fraction or remove rehearse"


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
    """Samples of one update on one device, before accumulation."""
    accumulate: int = Field(default=1, ge=1, le=MOST_AT_ONCE)
    """Batches whose gradients are summed into one update."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 where the accelerator has it, float32 on a CPU."""
    attention: AttentionChoice = Attention()
    """Kernels of attention: sdpa, flash_attention_2, flash_attention_3 or flash_attention_4, one for both vision tower
    and language model, or {vision: NAME, text: NAME}. Those of flash need a GPU, their package and bfloat16."""
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
    log_every: int = Field(default=10, ge=1)
    """Updates between lines of metrics.jsonl."""
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
        return _raise_together(self, list(self._problems()))

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
        if all(stage.updates == 0 for stage in self.stages):
            yield "every stage has updates 0, so nothing is trained; give at least one a budget"
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


def _raise_together(config: ConfigT, problems: list[str]) -> ConfigT:
    if problems:
        raise ValueError("\n".join(problems))
    return config
