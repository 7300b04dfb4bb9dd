"""Settings of a reasoner: every option of the method, as frozen values. Torch-free: recipes, checkpoints and bundles
read it.

Place in the pipeline: a recipe's `model` section -> `ReasonerSettings` -> `reasoner.json` of a checkpoint ->
`bundle.json`.
Section numbers are those of the method (arXiv 2604.10500 as described in docs/method.md); defaults are the paper's
unless the field says otherwise.
"""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from lrkit.config import Config
from lrkit.contract.weightings import known_weighting

SCHEMA_VERSION = 1
_SHARES = 1000
"""A share of tokens is counted in this many parts."""


def _without_defaults(values: dict[str, Any], cls: type[Config], names: tuple[str, ...]) -> dict[str, Any]:
    """`values` of a `cls` without those of `names` that are at their defaults."""
    fields = cls.model_fields
    return {name: value for name, value in values.items() if name not in names or value != fields[name].default}


class ThinkSettings(Config):
    """Latent steps: how many, who decides, and how a hidden state is fed back (eq. 1)."""

    max_latent_steps: int = Field(default=4, ge=0, le=64)
    """Most latent steps of one answer (the paper: 4)."""
    halting: Literal["adaptive", "fixed"] = "adaptive"
    """adaptive: the model stops by predicting another token than <|latent|>; fixed: exactly max_latent_steps."""
    latent_scale: Literal["embedding", "none", "learned"] = "embedding"
    """embedding: each latent is rescaled to the mean norm of the token embeddings; none: as it is (the paper);
    learned: one scalar, which starts at the mean norm over sqrt(width)."""
    latents: Literal["fed_back", "pause", "parallel"] = "fed_back"
    """fed_back: each latent is the hidden state before it. Baselines: pause: a learned constant of each step;
    parallel: all latents are taken in the same passes."""
    passes: int = Field(default=1, ge=1, le=64)
    """parallel only: how often all latents are run; each further pass feeds back what the one before has made."""
    gradient: Literal["full", "cut"] = "full"
    """Training only. full: gradient flows back through what is fed back; cut (a baseline): it stops there."""

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Files of models that are no baselines are as they were before there were any."""
        return _without_defaults(write(self), ThinkSettings, ("latents", "passes", "gradient"))

    @model_validator(mode="after")
    def _baselines_fit(self) -> Self:
        if self.latents == "parallel" and self.halting != "fixed":
            raise ValueError(
                "think.latents is parallel and think.halting is adaptive: latents taken at once cannot decide one by "
                "one whether another follows; set halting: fixed"
            )
        if self.latents != "fed_back" and self.max_latent_steps == 0:
            raise ValueError(
                f"think.latents is {self.latents} but think.max_latent_steps is 0: there is no step to learn a "
                "constant for; set max_latent_steps of 1 or more, or latents: fed_back"
            )
        if self.passes > 1 and self.latents != "parallel":
            raise ValueError(
                f"think.passes is {self.passes} but think.latents is {self.latents}, whose steps are run once each; "
                "set passes: 1, or latents: parallel"
            )
        if self.gradient == "cut" and self.latents == "pause":
            raise ValueError(
                "think.gradient is cut but think.latents is pause: constants feed nothing back; set gradient: full"
            )
        return self


class ReplaySettings(Config):
    """SCF-VR visual replay (eq. 5 and 6)."""

    num_tokens: int = Field(default=32, ge=0, le=4096)
    """K, visual tokens replayed before each latent; 0 turns replay off."""
    weighting: Annotated[str, AfterValidator(known_weighting)] = "relative"
    """A row of weightings.py. softmax: eq. 6; relative: score / mean score of the selection; none: embeddings as they
    are."""
    formation: Literal["tokens", "soft_mix"] = "tokens"
    """tokens: K separate tokens; soft_mix: their weighted sum as one token."""
    positions: Literal["consecutive", "shared"] = "consecutive"
    """consecutive: each replayed token takes a rotary position of its own, then the latent; shared: they take the
    latent's, so that latents follow one another as words do, however much is replayed."""
    source: Literal["prompt", "fine"] = "prompt"
    """prompt: the prompt's own visual tokens are replayed. fine: the prompt reads a small picture; each of its visual
    tokens chosen is replayed as the zoom x zoom tokens that the tower makes of that part at full size."""
    zoom: int = Field(default=2, ge=2, le=8)
    """fine only: how many times longer the sides of the full picture are than those of the one in the prompt."""

    @property
    def fine_zoom(self) -> int:
        """`zoom` where the source is fine, otherwise 1: the picture in the prompt is the full one."""
        return self.zoom if self.source == "fine" else 1

    @model_validator(mode="after")
    def _fine_needs_tokens(self) -> Self:
        if self.source == "fine" and self.num_tokens == 0:
            raise ValueError(
                "replay.source is fine but replay.num_tokens is 0, so the picture would only be seen small; set "
                "num_tokens to 1 or more, or source: prompt"
            )
        return self


class DistillSettings(Config):
    """Spatially coherent self-distillation (eq. 7 to 9); training only."""

    weight: float = Field(default=0.0, ge=0.0)
    """lambda of eq. 14; 0 turns the distillation off. The paper: 1.0 for 2B and 3B, 0.2 for 7B, or the reverse."""
    window: int = Field(default=3, ge=1, le=64)
    """W, side of the window in merged visual tokens."""
    head: Literal["linear", "mlp"] = "linear"
    """F_SR, from the pooled replay to the pooled teacher features."""
    pointing: float = Field(default=0.0, ge=0.0)
    """Weight of the pointing loss: the saliency row that selects is taught where to look, by labels of the data or by a
    teacher that sees more (`teacher` of a recipe); 0 turns it off."""


class RoutingSettings(Config):
    """RDS routing depth scaling (eq. 10 to 12, 15)."""

    depth: int = Field(default=0, ge=0, le=8)
    """R, extra passes of a routed token through its layer; 0 turns routing off. The paper: 1."""
    layers: tuple[int, ...] | Literal["every_second", "all"] = "every_second"
    """Layers that route; every_second means the odd ones (1, 3, 5, ...)."""
    alpha: int = Field(default=32, ge=1, le=4096)
    """A, routed tokens per chunk and layer."""
    alpha_end: int | None = Field(default=None, ge=1, le=4096)
    """If given, the number falls from `alpha` in the first layer to this in the last, by a cosine (eq. 15,
    corrected)."""
    threshold: float = Field(default=0.0, ge=0.0, lt=1.0)
    """tau: a routed token stops at the first depth whose gate is below it; 0 always runs all depths."""
    router: Literal["linear", "mlp"] = "linear"
    """Scores a token: D -> 1, or D -> D -> 1."""
    gate: Literal["sigmoid", "softmax"] = "sigmoid"
    """sigmoid of the token's own score, or softmax over the chunk's tokens (the release)."""
    positions: Literal["keep", "rearrange"] = "keep"
    """keep: routed tokens keep their positions; rearrange: they are re-indexed one after the other."""

    def chosen_layers(self, num_layers: int) -> tuple[int, ...]:
        """Layers that route, ascending; empty when routing is off."""
        if self.depth == 0:
            return ()
        if self.layers == "all":
            return tuple(range(num_layers))
        if self.layers == "every_second":
            return tuple(range(1, num_layers, 2))
        return tuple(sorted(set(self.layers)))

    def alpha_of(self, layer: int, num_layers: int) -> int:
        """Routed tokens of one layer (eq. 15: a cosine from `alpha` to `alpha_end` over the layers)."""
        if self.alpha_end is None or num_layers < 2:
            return self.alpha
        swing = (self.alpha - self.alpha_end) / 2
        return round(self.alpha_end + swing * (1 + math.cos(math.pi * layer / (num_layers - 1))))


class PruneSettings(Config):
    """Visual-token pruning: behind one layer of the prompt, only the most salient visual tokens go on."""

    after_layer: int | None = Field(default=None, ge=0)
    """n: behind this layer, counted from 0, the others leave; null prunes nothing."""
    keep: float = Field(default=0.5, ge=1 / _SHARES, le=1.0)
    """Share of a prompt's visual tokens that stay, to a thousandth and rounded up to a token; 1 prunes nothing."""

    @property
    def active(self) -> bool:
        """Whether anything is pruned."""
        return self.after_layer is not None and self.share < _SHARES

    @property
    def share(self) -> int:
        """`keep` in thousandths: torch and programs count with whole numbers, so that both keep as many."""
        return round(self.keep * _SHARES)

    def problem(self, num_layers: int) -> str | None:
        """What is wrong with `after_layer` in a model of so many layers."""
        if not self.active or (self.after_layer or 0) < num_layers - 1:
            return None
        return (
            f"prune.after_layer is {self.after_layer}, but a model of {num_layers} layers can be pruned behind the "
            f"layers 0 to {num_layers - 2}; give one of these, or null"
        )


class LoraSettings(Config):
    """LoRA on the language model (the paper's code: rank 64, alpha 16, dropout 0.05)."""

    rank: int = Field(default=64, ge=1, le=1024)
    """Rank of the update of each matrix."""
    alpha: float = Field(default=16.0, gt=0.0)
    """The update is scaled by alpha / rank."""
    dropout: float = Field(default=0.05, ge=0.0, lt=1.0)
    """Dropout on the adapter's input while training."""


class ReasonerSettings(Config):
    """Everything that turns a backbone into a latent reasoner."""

    think: ThinkSettings = ThinkSettings()
    """Latent steps."""
    replay: ReplaySettings = ReplaySettings()
    """Visual replay."""
    distill: DistillSettings = DistillSettings()
    """Self-distillation of the replay, in training."""
    routing: RoutingSettings = RoutingSettings()
    """Routing depth scaling."""
    lora: LoraSettings = LoraSettings()
    """The adapter."""
    prune: PruneSettings = PruneSettings()
    """Visual-token pruning."""

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Files of models that prune nothing are as they were before there was pruning."""
        values = write(self)
        if self.prune == PruneSettings():
            values.pop("prune", None)
        return values

    @model_validator(mode="after")
    def _distillation_needs_replay(self) -> Self:
        if self.distill.pointing > 0 and self.think.latents == "parallel":
            raise ValueError(
                "distill.pointing is above 0 and think.latents is parallel: all latents replay what the prompt chose, "
                "so no step can be taught where to look; set distill.pointing=0"
            )
        if self.distill.pointing > 0 and self.replay.num_tokens == 0:
            raise ValueError(
                "distill.pointing is above 0 but replay.num_tokens is 0: nothing is selected; set distill.pointing=0 "
                "or replay.num_tokens of 1 or more"
            )
        if self.distill.weight > 0 and self.replay.source == "fine":
            raise ValueError(
                "distill.weight is above 0 and replay.source is fine: what the teacher sees enlarged is then replayed "
                "itself; set distill.weight=0, and distill.pointing to teach where to look"
            )
        if self.distill.weight > 0 and self.replay.num_tokens == 0:
            raise ValueError(
                "distill.weight is above 0 but replay.num_tokens is 0: there is nothing to distill; "
                "set distill.weight=0 or replay.num_tokens of 1 or more"
            )
        return self
