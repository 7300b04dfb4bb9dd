"""One step of a recipe's curriculum: what is drawn, which steps are latent, how weights are updated, when it is over.
Torch-free.

Place in the pipeline: recipe.py, which checks stages against one another -> curriculum.py, loop.py.
"""

from collections.abc import Iterator
from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field, model_validator

from lrkit.config import Config
from lrkit.contract.sample import Spoken
from lrkit.data.board import BoardKind

MOST_AT_ONCE = 65_536
"""Samples of a batch, and batches of an update: more is a slip of the keyboard, found only once memory is gone."""
Weight = Annotated[float, Field(ge=0.0)]
OwnGroup = Literal["step_encodings", "routers", "latent", "distillation"]
"""Weights that the method adds to a backbone: e(d) and routers of RDS, what belongs to `<|latent|>`, F_SR."""
ConfigT = TypeVar("ConfigT", bound=Config)
# Names become those of folders: systems allow 255 bytes, and a folder being written has a longer name still.
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=100)]


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
        return raise_together(self, list(self._problems()))

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


def raise_together(config: ConfigT, problems: list[str]) -> ConfigT:
    """The values, or all that is wrong with them as one error."""
    if problems:
        raise ValueError("\n".join(problems))
    return config
