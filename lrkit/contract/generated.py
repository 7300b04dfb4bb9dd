"""What an answer run takes and gives, whatever engine runs it. Torch-free: the runtime without torch shares it.

Counting (method section 1): an autoregressive step is one sequential forward pass of the language model after the
prefill; a latent step is one, and a spoken token that is fed back is one (the end token is never fed).
"""

from dataclasses import dataclass, field
from typing import Literal

from lrkit.contract.choosing import Scored

Mode = Literal["latent", "cot", "direct"]
"""latent: think in latents, then speak; cot: `<|latent|>` is masked, so the model speaks its steps; direct: masked
too, and the prompt already holds the beginning of the answer."""
Halting = Literal["decided", "limit", "fixed", "off"]
"""decided: the model stopped thinking; limit: it still wanted to; fixed: the number was given; off: latents were
masked."""
MODES: tuple[Mode, ...] = ("latent", "cot", "direct")
WITHOUT_LATENTS: tuple[Mode, ...] = ("cot", "direct")
"""What a plain model can be asked in."""


@dataclass(frozen=True)
class GenerationLimits:
    """When to stop."""

    eos_id: int
    max_new_tokens: int = 256
    max_latent_steps: int | None = None
    """None: the checkpoint's own limit."""
    halting: Literal["adaptive", "fixed"] | None = None
    """None: the checkpoint's own."""
    more_ends: tuple[int, ...] = ()
    """Other tokens that end an answer."""


@dataclass(frozen=True)
class ReplayedToken:
    """One visual token that a latent step replayed."""

    index: int
    """Visual index in the prompt, over all its images."""
    weight: float


@dataclass
class Generated:
    """One sample's answer and how it came about."""

    token_ids: list[int]
    """Spoken tokens without the end token."""
    latent_steps: int
    ar_steps: int
    halting: Halting
    finished: bool
    """False when max_new_tokens cut the answer."""
    prefilled_tokens: int
    replayed: list[list[ReplayedToken]]
    """Per latent step."""
    routed_depths: dict[int, int]
    """Layer -> extra passes executed, summed over the routed tokens of prompt and latents."""
    routed_tokens: dict[int, list[list[int]]]
    """The same by token: layer -> chunk (the prompt, then each latent step) -> passes of each of its tokens; the last
    of a latent step is the latent, those before it were replayed. Empty where an engine cannot tell."""
    timings: dict[str, float]
    """Seconds of the whole batch: prefill (with vision), think, speak."""
    step_seconds: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    """Seconds of each latent step (think) and until each token is out (speak), where the engine can tell."""
    scored: Scored | None = None
    """How probable each choice was, where the answer is one of several; its tokens are the last of `token_ids`."""
    tokens_per_window: int = 1
    """Visual tokens that came back for each of `replayed`: more than one where replay is fine, and the index is that of
    the window."""

    @property
    def replayed_tokens(self) -> int:
        """Visual tokens replayed, over all latent steps."""
        return self.tokens_per_window * sum(len(step) for step in self.replayed)
