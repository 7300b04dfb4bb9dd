"""A suite: what `lrkit profile` measures, read from profiles/suites/*.yaml.

Place in the pipeline: a suite's name -> `load_suite` -> cases.py makes one case per model and run -> rounds.py.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lrkit.config import Config, load_config
from lrkit.contract.generated import Mode
from lrkit.errors import UserError, did_you_mean
from lrkit.resources import find_suite

SHAPE = "shape"
"""The sample set for shapes."""
PictureSide = Annotated[int, Field(ge=1, le=8192)]


class SampleSet(Config):
    """Questions to ask."""

    data: str
    """trail:main, trail:long, trail:faint, trail:wide, or a JSONL file; shape: questions about a picture of the size
    that the shape names, for random:SHAPE and its bundles."""
    count: int = Field(ge=1)
    """Samples taken from it."""
    seed: int = Field(default=0, ge=0)
    """Seed of the pictures drawn from a trail set."""
    picture: tuple[PictureSide, PictureSide] | None = None
    """Of the set shape: width and height in pixels, where they are not the shape's own."""

    @model_validator(mode="after")
    def _pictures_of_a_shape(self) -> Self:
        if self.picture is not None and self.data != SHAPE:
            raise ValueError(f"picture is for data {SHAPE}, and the data are {self.data}; leave it out")
        return self


class RunSettings(Config):
    """One way of asking; null leaves the model as it is."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_.=,-]*$")
    """Name in the report."""
    mode: Mode
    """latent, cot or direct."""
    halting: Literal["adaptive", "fixed"] | None = None
    """fixed: exactly max_latent_steps, or the model's own limit."""
    max_latent_steps: int | None = Field(default=None, ge=0)
    """Most latent steps."""
    replay_tokens: int | None = Field(default=None, ge=0)
    """Visual tokens replayed before each latent step; a bundle has its number built in."""
    routing_depth: int | None = Field(default=None, ge=0, le=8)
    """0 turns routing off. Depths other than the model's own are for shapes with random weights, because their weights
    were not trained. A bundle has its depth built in."""
    prune_after: int | None = Field(default=None, ge=0)
    """Layer behind which visual tokens are pruned. A bundle has its pruning built in."""
    prune_keep: float | None = Field(default=None, ge=0.001, le=1.0)
    """Share of the visual tokens that stay; 1 prunes nothing."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """Most generated tokens of an answer; null: as the suite says."""
    scene: bool = False
    """The pictures were looked at before, as by `Reasoner.look`: the question alone is timed, and the look stands
    beside it."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of one operator."""
    cuda_graphs: bool | None = None
    """Checkpoints on a GPU: record steps and launch each as one, or do not."""

    @model_validator(mode="after")
    def _latents_belong_to_latent(self) -> Self:
        pruning = (self.prune_after, self.prune_keep)
        only_latent = (self.halting, self.max_latent_steps, self.replay_tokens, *pruning)
        if self.mode != "latent" and any(value is not None for value in only_latent):
            raise ValueError(
                f"run {self.name!r} sets latent steps, replay or pruning but has mode {self.mode!r}; set them for mode "
                "latent"
            )
        return self


class Forced(Config):
    """Forced lengths, so that random weights cost what trained ones would; null leaves it to the model."""

    latent_steps: int | None = Field(default=None, ge=0, le=64)
    """Latent steps of the mode latent."""
    cot_tokens: int | None = Field(default=None, ge=1)
    """Spoken tokens of the mode cot before its answer."""
    answer_tokens: int | None = Field(default=None, ge=1)
    """Spoken tokens of an answer."""

    @property
    def any(self) -> bool:
        """Whether anything is forced."""
        return any(value is not None for value in (self.latent_steps, self.cot_tokens, self.answer_tokens))


class Suite(Config):
    """What is measured together, in one report."""

    description: str = ""
    """One sentence for `lrkit ls`."""
    samples: tuple[SampleSet, ...] = Field(min_length=1)
    """Questions; every run is asked all of them."""
    runs: tuple[RunSettings, ...] = Field(min_length=1)
    """Ways of asking, interleaved on each sample."""
    warmup: int = Field(default=1, ge=0)
    """Rounds over the first sample that are not recorded."""
    repeats: int = Field(default=1, ge=1)
    """How often every sample is asked in every run."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """Most generated tokens of an answer; null: a bundle's own limit, 256 for a checkpoint."""
    phase_samples: int = Field(default=10, ge=0)
    """One-graph programs: on so many samples, runs of fixed length tell the phases apart."""
    phase_runs: int = Field(default=7, ge=1)
    """How often each of these runs is done; the fastest counts."""
    gallery: int = Field(default=3, ge=0, le=8)
    """Traced examples in the report."""
    forced: Forced = Forced()
    """Forced lengths."""
    budget_sec: float | None = Field(default=None, gt=0)
    """No further repeat begins after that many seconds of measuring. Every question is asked at least once. Null: no
    limit."""

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [run.name for run in self.runs]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"runs have the same name {', '.join(twice)}; give each its own")
        return self


def load_suite(name_or_path: str, overrides: Sequence[str] = (), only: Sequence[str] = ()) -> Suite:
    """The suite of a shipped name or a file; `only` keeps the runs of those names.

    Raises:
        ConfigError, UnknownNameError: no such suite, or wrong values in it.
        UserError: `only` names a run that is not in the suite.
    """
    suite = load_config(Suite, find_suite(name_or_path), overrides)
    names = [run.name for run in suite.runs]
    for name in only:
        if name not in names:
            raise UserError(f"the suite has no run {name!r}; it has {', '.join(names)}{did_you_mean(name, names)}")
    return suite.model_copy(update={"runs": tuple(run for run in suite.runs if not only or run.name in only)})
