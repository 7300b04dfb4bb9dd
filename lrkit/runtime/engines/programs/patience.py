"""How long an answer of a bundle may take before it counts as one that never ends. Torch-free.

Place in the pipeline: `lrkit validate`, `eval` and `profile` run programs of strangers unattended, so they ask with
this time-out; an application chooses its own (`Reasoner.ask(timeout=)`).
"""

from lrkit.contract.bundle.bundle_folder import Bundle
from lrkit.contract.bundle.manifest import Role
from lrkit.runtime.engines.common.protocol import Engine

SECONDS = 10.0
"""For the smallest program."""
_BYTES_PER_SEC = 1e9
"""Slow on purpose: each token reads all weights at 1 GB/s, as if none were ever read for several at once."""


def patience(bundle: Bundle, role: Role, tokens: int | None = None) -> float:
    """Seconds for the longest prompt and `tokens` passes after it (None: as many as the limits allow). They grow with
    the size of the program's files, so that a large model on a slow machine has its time."""
    limits, entry = bundle.manifest.limits, bundle.program(role)
    names = {entry.file, entry.data, *(step.file for step in entry.steps.values())} - {None}
    weights = sum(bundle.manifest.files[name].bytes for name in names if name is not None)
    passes = limits.max_new_tokens + limits.max_latent_steps if tokens is None else tokens
    if (replay := entry.settings.replay).source == "fine":  # the tower reads windows in every latent step
        passes += limits.max_latent_steps * replay.num_tokens * replay.fine_zoom**2 * bundle.manifest.token_patches
    return round(SECONDS + weights * (limits.max_prompt_tokens + limits.max_patches + passes) / _BYTES_PER_SEC, 1)


def patience_with(engine: Engine, tokens: int | None = None, questions: int = 1) -> float | None:
    """The same for `questions` asked of an engine at once; None where lrkit itself ends its loops."""
    seconds = engine.patience(tokens)
    return None if seconds is None else questions * seconds
