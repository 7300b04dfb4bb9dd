"""Answers with one of several choices by a program's logits behind the prompt. Numpy only.

Place in the pipeline: `ProgramEngine.generate` with `AskOptions.candidates`.

In the mode direct the prompt ends with the answer's marker, so these logits are those of the answer's first token: one
run scores letters exactly, and tells apart whatever begins with different tokens. Behind latents and behind spoken
steps a program gives no logits; the answer is then free, and the choice is found in what was said.
"""

from dataclasses import replace

import numpy as np

from lrkit.contract.bundle.bundle_folder import Bundle
from lrkit.contract.choosing import Candidates, log_softmax, score_first
from lrkit.contract.generated import Generated
from lrkit.errors import BundleError
from lrkit.runtime.engines.common.protocol import AskOptions


def first_token_of(options: AskOptions) -> Candidates | None:
    """The candidates, where the logits behind the prompt tell them apart; None: they do not, or none were given."""
    candidates = options.candidates
    if candidates is None or options.mode != "direct" or candidates.counts_end:
        return None
    return candidates if len({ids[0] for ids in candidates.ids}) == len(candidates.ids) else None


def choose_first(free: Generated, candidates: Candidates, logits: np.ndarray, bundle: Bundle) -> Generated:
    """The most probable choice in place of the free answer.

    Raises:
        BundleError: the logits are no finite numbers.
        DataError: a choice begins with a token that the program has no row for.
    """
    if not np.isfinite(logits.max()):  # the greatest of numbers of which one is NaN is NaN
        raise BundleError(
            f"{bundle.folder}: its program gives prefill_logits that are no finite numbers; do not use this bundle, "
            "or export it again"
        )
    scored = score_first(candidates, log_softmax(logits, bundle.manifest.tokens.latent))
    best = scored.best(candidates.choices.per_token)
    tokens = list(candidates.ids[best])
    return replace(free, token_ids=tokens, ar_steps=free.latent_steps, finished=True, scored=scored)
