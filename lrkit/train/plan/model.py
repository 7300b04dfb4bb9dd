"""The model of a plan: every module of the run's reasoner on torch's meta device, which holds no weights, in numbers.

Place in the pipeline: opened.py's backbone -> `planned_model` -> `PlannedModel` -> memory.py and work.py.

The reasoner is built by the code that builds it for a run. So its weights, and which of them train, are counted and not
worked out a second time.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lrkit.contract.settings import ReasonerSettings
from lrkit.model.backbone import Backbone
from lrkit.model.build import build_reasoner
from lrkit.model.reasoner import LatentReasoner
from lrkit.runtime.engines.common.model_counts import ModelCounts
from lrkit.runtime.engines.torch.counts import count_reasoner
from lrkit.train.optim import is_hidden_matrix, own_group
from lrkit.train.parts import narrows
from lrkit.train.recipe import Recipe

LORA = "LoRA"
_MODEL = "model."
"""Before the names of the backbone's weights in a reasoner's."""


@dataclass(frozen=True)
class Tower:
    """What the vision tower keeps in mind while it works."""

    linears: tuple[tuple[str, int, int], ...]
    """(part, inputs, outputs) of each matrix that multiplies patches or visual tokens."""
    besides: int = 0
    """Numbers that norms, attention and activations keep of each patch beside what the matrices read and give."""
    entry: int = 0
    """Weights of its first matrix, whose input needs no gradient."""
    full_channels: int = 0
    """Channels of a convolution that sees every pixel; 0 where patches are cut first."""
    learns: bool = True
    """Whether gradient can flow into it; a tower that chooses words gets none."""


@dataclass(frozen=True)
class PlannedModel:
    """A run's model in numbers. Weights are counted as torch holds them: a tied head once."""

    recipe: Recipe
    settings: ReasonerSettings
    half: bool
    """Whether products are computed in bfloat16."""
    counts: ModelCounts
    weights: dict[str, int]
    """By group: vision, merger, embedding, layers, head, LoRA, and the method's own."""
    trained: dict[str, int]
    """Of these, the ones that train."""
    muon: int
    """Of these, the ones that Muon takes; it has one running mean where AdamW has two."""
    frozen_narrow: int
    """Weights that stay in bfloat16."""
    multiplied: dict[str, int]
    """Of the trained ones, matrices that tokens are multiplied with."""
    narrow: int
    """Weights that compute in bfloat16 where they train in parts (`shard: true`)."""
    largest: int
    """The largest weight that trains."""
    width: int
    vocabulary: int
    heads: int
    inner: int
    """Width inside the feed-forward layer."""
    modules: dict[str, tuple[int, int]]
    """Of one layer, the matrices that LoRA is put on: name -> (inputs, outputs)."""
    head_norms: bool
    """Whether queries and keys have norms of their own."""
    tower: Tower
    family: str = ""

    @property
    def full(self) -> bool:
        """Whether all weights train, in float32."""
        return self.recipe.trainable == "full"

    @property
    def in_parts(self) -> bool:
        """Whether devices share out what trains (lrkit/train/shards.py)."""
        return self.recipe.shard

    @property
    def narrowed(self) -> int:
        """Weights that are in bfloat16 and train, with float32 numbers beside them."""
        return self.narrow if self.in_parts else 0

    @property
    def cast(self) -> int:
        """Weights that autocast copies into bfloat16."""
        return sum(self.multiplied.values()) if self.half and not self.narrowed else 0

    @property
    def num_layers(self) -> int:
        return self.counts.num_layers

    @property
    def query_width(self) -> int:
        assert self.counts.attention is not None
        return self.counts.attention.query_width

    @property
    def key_width(self) -> int:
        assert self.counts.attention is not None
        return self.counts.attention.key_width

    @property
    def compute_bytes(self) -> int:
        """Of a number that a product gives."""
        return 2 if self.half else 4

    @property
    def adapted(self) -> bool:
        """Whether an adapter trains over frozen weights, which then stay in bfloat16."""
        return self.recipe.trainable == "lora"

    @property
    def stream_bytes(self) -> int:
        """Of a number of a hidden state (lrkit/model/precision.py)."""
        return 2 if self.half and (self.adapted or self.narrowed) else 4

    @property
    def weight_bytes(self) -> int:
        """Of what the model computes with."""
        return 4 * sum(self.weights.values()) - 2 * self.frozen_narrow - 2 * self.narrowed

    @property
    def tower_trains(self) -> bool:
        return self.tower.learns and bool(self.trained.get("vision", 0))

    @property
    def lora_products(self) -> int:
        """Multiplications that LoRA adds for each token."""
        if not self.adapted:
            return 0
        return self.num_layers * self.settings.lora.rank * sum(a + b for a, b in self.modules.values())


def planned_model(
    backbone: Backbone, recipe: Recipe, settings: ReasonerSettings, family: str, half: bool
) -> PlannedModel:
    """Sizes of the reasoner that a run builds around `backbone`, which is on the meta device. `half`: it computes in
    bfloat16."""
    backbone.model.to(torch.bfloat16 if half and recipe.trainable == "lora" else torch.float32)
    modules, head_norms = _first_layer(backbone)
    tower = _tower(backbone)
    vocabulary, heads = backbone.embedding_rows().shape[0], _heads(backbone)
    with torch.device("meta"):
        reasoner = build_reasoner(backbone, settings, 0, None, recipe.trainable)
    groups = list(_groups(reasoner))
    weights, trained = Counter[str](), Counter[str]()
    for group, _, weight in groups:
        weights[group] += weight.numel()
        if weight.requires_grad:
            trained[group] += weight.numel()
    learned = [(name, weight) for _, name, weight in groups if weight.requires_grad]
    muon = [w.numel() for name, w in learned if recipe.optimizer.kind == "muon" and is_hidden_matrix(name, w)]
    multiplied = {"layers", "head", LORA}
    multiplied |= {"vision", "merger"} if tower.learns else set()
    multiplied |= {"embedding"} if backbone.tied_embeddings else set()
    matrices = Counter[str]()
    for group, _, weight in groups:
        if weight.requires_grad and weight.dim() > 1 and group in multiplied:
            matrices[group] += weight.numel()
    narrow = sum(w.numel() for w in backbone.model.parameters()) if narrows(backbone.model, half) else 0
    return PlannedModel(
        recipe=recipe,
        settings=settings,
        half=half,
        counts=count_reasoner(reasoner),
        weights=dict(weights),
        trained=dict(trained),
        muon=sum(muon),
        frozen_narrow=sum(weight.numel() for _, _, weight in groups if weight.dtype == torch.bfloat16),
        multiplied=dict(matrices),
        narrow=narrow,
        largest=max((weight.numel() for _, weight in learned), default=0),
        width=backbone.hidden_size,
        vocabulary=vocabulary,
        heads=heads,
        inner=modules[next(name for name in modules if name.endswith("down_proj"))][0],
        modules=modules,
        head_norms=head_norms,
        tower=tower,
        family=family,
    )


def _groups(reasoner: LatentReasoner) -> Iterator[tuple[str, str, nn.Parameter]]:
    """(group, name, weight) of every weight of a run's reasoner."""
    for name, weight in reasoner.named_parameters():
        if "lora_" in name:
            yield LORA, name, weight
        elif name.startswith(_MODEL):
            yield reasoner.backbone.part_of(name.removeprefix(_MODEL)), name, weight
        else:
            yield own_group(name) or "latent", name, weight


def _first_layer(backbone: Backbone) -> tuple[dict[str, tuple[int, int]], bool]:
    """Matrices of the first layer of the language model, and whether its attention has norms."""
    target = re.compile(backbone.lora_targets)
    adapted = [(n, m) for n, m in backbone.model.named_modules() if isinstance(m, nn.Linear) and target.fullmatch(n)]
    layer = _layer_of(adapted[0][0])
    found = {n.removeprefix(layer): (m.in_features, m.out_features) for n, m in adapted if n.startswith(layer)}
    attention = f"{layer}self_attn."
    named = (name for name, _ in backbone.model.named_parameters() if name.startswith(attention))
    return found, any("norm" in name for name in named)


def _layer_of(name: str) -> str:
    """Name of a matrix -> what stands before it for all of its layer, as "model.layers.0."."""
    found = re.match(r".*?\.layers\.\d+\.", name)
    assert found is not None, "matrices that LoRA is put on lie in layers"
    return found[0]


def _heads(backbone: Backbone) -> int:
    """Query heads, as transformers' config of the language model has them."""
    config: Any = backbone.model.config
    inner: Any = getattr(config, "text_config", None) or config
    return int(inner.num_attention_heads)


def _tower(backbone: Backbone) -> Tower:
    modules = [
        (name, module, part)
        for name, module in backbone.model.named_modules()
        if (part := backbone.part_of(f"{name}.weight")) in ("vision", "merger")
    ]
    inner = max(
        (m.out_features for n, m, part in modules if isinstance(m, nn.Linear) and part == "vision" and "qkv" not in n),
        default=0,
    )
    quick = sum("QuickGELU" in type(module).__name__ for _, module, part in modules if part == "vision")
    linears = tuple((part, m.in_features, m.out_features) for _, m, part in modules if isinstance(m, nn.Linear))
    first = next((m for _, m, _ in modules if isinstance(m, (nn.Conv2d, nn.Conv3d))), None)
    whole = isinstance(first, nn.Conv2d) and first.stride == (1, 1)
    return Tower(
        linears=linears,
        besides=sum(_kept_besides(name, module) for name, module, part in modules if part == "vision") + quick * inner,
        entry=0 if first is None else first.weight.numel(),
        full_channels=first.out_channels if first is not None and whole else 0,
        learns=not hasattr(backbone, "choose_tokens"),
    )


def _kept_besides(name: str, module: nn.Module) -> int:
    """Numbers of each patch: norms keep their input, and attention that turns its queries and keys both of each."""
    kind, last = type(module).__name__, name.rpartition(".")[2]
    if "Norm" in kind:
        return next((weight.numel() for weight in module.parameters(recurse=False)), 0)
    if isinstance(module, nn.Linear) and last == "qkv":
        return 2 * module.in_features
    return 0
