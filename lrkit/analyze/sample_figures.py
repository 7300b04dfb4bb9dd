"""What one sample says: gradients at hidden states and of attention's matrices, what each layer adds, and embeddings.

Place in the pipeline: observed.py watches the pass -> `measure_sample` -> rows (analysis_set.py).

One backward pass gives all gradients (`torch.autograd.grad`), so `.grad` of the weights, which belongs to training,
stays as it is. The loss is the sample's own: the one that training would have for a batch of this sample alone.

Sources: gradient norms of tokens and nuclear norms of gradients by layer: arXiv 2604.10500, figure 1, and for nuclear
norms arXiv 2410.23743. A layer's contribution, its cosine and reading the head early: arXiv 2505.13898, 2512.14064.

Legend: S tokens, D width, L layers, W vocabulary.
"""

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lrkit.analyze.observed import KINDS, LATENT, SPOKEN, Chunk, name_tokens, observed
from lrkit.data.collate import TrainBatch
from lrkit.model.reasoner import LatentReasoner

Autocast = Callable[[], AbstractContextManager[object]]
Figure = tuple[int | None, str, str, float]
"""Layer, kind, measure, value."""
MATRICES = "qkvo"
_LAYER = re.compile(r"\.(\d+)\.")
_MOST_POINTS = 24
"""Embeddings that a sample gives of one kind."""


@dataclass
class SampleFigures:
    """All that was measured of one sample."""

    loss: float
    figures: list[Figure] = field(default_factory=list[Figure])
    embeddings: dict[str, np.ndarray] = field(default_factory=dict[str, np.ndarray])
    """Kind -> (n, D) float32: what enters the first layer."""


@dataclass(frozen=True)
class Matrix:
    """A trained matrix of attention."""

    layer: int
    kind: str
    """q, k, v or o."""
    part: str
    """A or B of LoRA, or weight."""
    weight: nn.Parameter


def attention_matrices(reasoner: LatentReasoner) -> list[Matrix]:
    """What is trained of q, k, v and o in the language model: LoRA's A and B, or the matrices themselves."""
    wanted = re.compile(reasoner.backbone.lora_targets)
    found: list[Matrix] = []
    for name, module in reasoner.backbone.model.named_modules():
        kind, layer = name.rpartition(".")[2][:1], _LAYER.search(name + ".")
        if kind not in MATRICES or layer is None or wanted.fullmatch(name) is None:
            continue
        for of, parameter in module.named_parameters():
            part = "A" if "lora_A" in of else "B" if "lora_B" in of else "weight"
            if parameter.requires_grad and parameter.dim() == 2:
                found.append(Matrix(int(layer[1]), kind, part, parameter))
    return found


def measure_sample(
    reasoner: LatentReasoner, batch: TrainBatch, matrices: list[Matrix], autocast: Autocast
) -> SampleFigures:
    """Figures of the one sample in `batch`, forward and backward. Leaves the model as it was, and its `.grad` too."""
    with torch.enable_grad(), observed(reasoner) as watched, autocast():
        loss = reasoner(batch)
    chunks = watched.chunks
    name_tokens(chunks, batch, reasoner)
    hidden = [state for chunk in chunks for state in chunk.hidden]
    inputs = [*hidden, *(matrix.weight for matrix in matrices)]
    gradients = list(torch.autograd.grad(loss.total, inputs, allow_unused=True))
    found = SampleFigures(float(loss.total.detach()))
    with torch.no_grad():
        _gradients(chunks, gradients[: len(hidden)], found)
        found.figures += nuclear_norms(matrices, gradients[len(hidden) :])
        _contributions(chunks, found)
        with autocast():
            _early_reading(reasoner, chunks, found)
        for number, kind in enumerate(KINDS):
            first = torch.cat([chunk.hidden[0][0, chunk.kinds[0] == number] for chunk in chunks])
            if len(first):
                kept = np.linspace(0, len(first) - 1, min(len(first), _MOST_POINTS)).round().astype(int)
                found.embeddings[kind] = first.float().cpu().numpy()[kept]
    return found


def _gradients(chunks: list[Chunk], gradients: Sequence[Tensor | None], found: SampleFigures) -> None:
    """By layer and kind: mean and median over tokens of the gradient's norm; the Frobenius norm over all of them; and
    the mean of gradient times hidden state, which no scale of a hidden state changes."""
    layers, place = len(chunks[0].hidden), iter(gradients)
    pairs = [[(state[0], next(place)) for state in chunk.hidden] for chunk in chunks]
    for layer in range(layers):
        norms: list[Tensor] = []
        sizes: list[Tensor] = []
        for chunk in pairs:
            state, gradient = chunk[layer]
            norms.append(state.new_zeros(len(state)) if gradient is None else gradient[0].float().norm(dim=-1))
            sizes.append(state.float().norm(dim=-1))
        norm_S, size_S = torch.cat(norms).double(), torch.cat(sizes).double()
        kind_S = torch.cat([chunk.kinds[layer] for chunk in chunks])
        for number, kind in enumerate(KINDS):
            own = norm_S[kind_S == number]
            if not len(own):
                continue
            values = {
                "gradient_mean": own.mean(),
                "gradient_median": own.quantile(0.5),
                "gradient_total": own.norm(),
                "gradient_scaled": (own * size_S[kind_S == number]).mean(),
            }
            found.figures += [(layer, kind, name, float(value)) for name, value in values.items()]


def nuclear_norms(matrices: Sequence[Matrix], gradients: Sequence[Tensor | None]) -> list[Figure]:
    """The sum of the singular values of each matrix's gradient."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for index, matrix in enumerate(matrices):
        by_shape.setdefault(tuple(matrix.weight.shape), []).append(index)
    values: dict[int, float] = {}
    for shape, indices in by_shape.items():
        zero = torch.zeros(shape, device=matrices[indices[0]].weight.device)
        stack = torch.stack([zero if (one := gradients[i]) is None else one.float() for i in indices]).double()
        # The eigenvalues of the smaller square are those values squared: in float64 right to a millionth of them.
        square = stack @ stack.mT if shape[0] <= shape[1] else stack.mT @ stack
        if bool(square.isfinite().all()):
            sums = torch.linalg.eigvalsh(square).clamp_min(0).sqrt().sum(-1)
        else:
            sums = square.new_full((len(indices),), torch.nan)
        values |= dict(zip(indices, sums.tolist(), strict=True))
    return [(m.layer, m.kind, f"nuclear_{m.part}", values[index]) for index, m in enumerate(matrices)]


def _contributions(chunks: list[Chunk], found: SampleFigures) -> None:
    """By layer and kind: how much of a hidden state a layer adds, and how alike the states before and behind it are."""
    for layer in range(len(chunks[0].hidden) - 1):
        shares: list[Tensor] = []
        alike: list[Tensor] = []
        kinds: list[Tensor] = []
        for chunk in chunks:
            before, after = (chunk.hidden[place][0].float() for place in (layer, layer + 1))
            if before.shape != after.shape:  # the layer that prunes
                continue
            shares.append((after - before).norm(dim=-1) / before.norm(dim=-1).clamp_min(1e-12))
            alike.append(functional.cosine_similarity(before, after, dim=-1))
            kinds.append(chunk.kinds[layer])
        kind_S = torch.cat(kinds) if kinds else torch.zeros(0)
        for number, kind in enumerate(KINDS):
            if bool((own := kind_S == number).any()):
                found.figures.append((layer, kind, "contribution", float(torch.cat(shares)[own].mean())))
                found.figures.append((layer, kind, "cosine", float(torch.cat(alike)[own].mean())))


def _early_reading(reasoner: LatentReasoner, chunks: list[Chunk], found: SampleFigures) -> None:
    """The head read before each layer: how often it says what it says at last, and from which layer on it stays so."""
    ends = [chunk for chunk in chunks if int(chunk.kinds[0][-1]) != SPOKEN]
    # Latents stand at the end of their chunks; of the prompt the last token counts.
    sizes = [max(1, int((chunk.kinds[0] == LATENT).sum())) for chunk in ends]
    steps = [[state[0, -size:] for state in chunk.hidden] for chunk, size in zip(ends, sizes, strict=True)]
    if len(steps) > 1:  # with latents: the last token of the prompt and each latent, where a thought is read off
        _settle(reasoner, [torch.cat(states) for states in zip(*steps, strict=True)], KINDS[LATENT], True, found)
    steps = [[state[-1:] for state in steps[-1]]]
    speech = [[state[0] for state in chunk.hidden] for chunk in chunks if int(chunk.kinds[0][-1]) == SPOKEN]
    said = [torch.cat(states) for states in zip(*steps, *speech, strict=True)]
    _settle(reasoner, said, KINDS[SPOKEN], False, found)


def _settle(reasoner: LatentReasoner, states: list[Tensor], kind: str, may_think: bool, found: SampleFigures) -> None:
    words: list[Tensor] = []
    for state_SD in states:
        logits_SW = reasoner.logits(reasoner.backbone.final_norm(state_SD[None]))[0].float()
        if not may_think:
            logits_SW[:, reasoner.latent.token_id] = -torch.inf
        words.append(logits_SW.argmax(-1))
    agrees_LS = torch.stack(words) == words[-1]
    for layer, agrees_S in enumerate(agrees_LS):
        found.figures.append((layer, kind, "agreement", float(agrees_S.float().mean())))
    # From the end: how many layers in a row say the last word already.
    in_a_row_S = agrees_LS.flip(0).int().cumprod(0).sum(0)
    found.figures.append((None, kind, "settled_depth", float((len(states) - in_a_row_S).float().mean())))
