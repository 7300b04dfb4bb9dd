"""What a program reports of one answer, as lrkit tells it: replayed and routed tokens of each step.

Place in the pipeline: `ProgramEngine` after each run.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from lrkit.contract.generated import ReplayedToken


def routed_tokens(
    out: Mapping[str, np.ndarray], layers: Sequence[int], latent_steps: int, window: int = 1
) -> dict[int, list[list[int]]]:
    """Layer -> chunk -> passes of its tokens; {} for programs of an lrkit that did not report them. `window`: tokens
    that come back for each that is selected."""
    if "routed_prompt" not in out:
        return {}
    found = {layer: [row] for layer, row in zip(layers, out["routed_prompt"].tolist(), strict=True)}
    for step in range(latent_steps):
        passes = out["routed_latents"][step]
        # Slots without a replayed token lie between the replayed ones and the latent.
        replayed = window * int((out["replayed"][step] >= 0).sum()) if "replayed" in out else 0
        real = [*range(min(replayed, passes.shape[1] - 1)), passes.shape[1] - 1]
        for layer, row in zip(layers, passes[:, real].tolist(), strict=True):
            found[layer].append(row)
    return found


def replayed_tokens(out: Mapping[str, np.ndarray], latent_steps: int) -> list[list[ReplayedToken]]:
    """Per latent step taken; empty steps where nothing can be replayed, by this program or without a picture."""
    if "replayed" not in out:
        return [[] for _ in range(latent_steps)]
    rows = zip(out["replayed"][:latent_steps].tolist(), out["replay_weights"][:latent_steps].tolist(), strict=True)
    return [[ReplayedToken(index, weight) for index, weight in zip(*row, strict=True) if index >= 0] for row in rows]
