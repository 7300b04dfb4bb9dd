"""Tiny random models and prompts for tests: a real Qwen2-VL by transformers, a few thousand weights, no download."""

from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from lrkit.contract.settings import ReasonerSettings
from lrkit.families.qwen2_vl.backbone import Qwen2VLBackbone
from lrkit.families.qwen2_vl.geometry import ImageGeometry
from lrkit.model.build import Trainable, build_reasoner
from lrkit.model.reasoner import LatentReasoner

PAD, EOS, VISION_START, VISION_END, IMAGE, LATENT = 0, 1, 2, 3, 4, 5
VOCABULARY = 64
PATCH, MERGE, FRAMES = 4, 2, 2
GEOMETRY = ImageGeometry(patch_size=PATCH, merge_size=MERGE, temporal_patch_size=FRAMES)


def tiny_config(tied: bool = True, layers: int = 4, width: int = 32) -> Qwen2VLConfig:
    head = width // 4
    return Qwen2VLConfig(
        text_config={
            "vocab_size": VOCABULARY, "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024,
            "tie_word_embeddings": tied, "bos_token_id": None, "eos_token_id": EOS, "pad_token_id": PAD,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [head // 4, head // 8, head // 8]
            },
        },
        vision_config={
            "depth": 2, "embed_dim": 16, "hidden_size": width, "num_heads": 2, "mlp_ratio": 2, "patch_size": PATCH,
            "spatial_merge_size": MERGE, "temporal_patch_size": FRAMES,
        },
        image_token_id=IMAGE, video_token_id=VOCABULARY - 1, vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END, tie_word_embeddings=tied,
    )  # fmt: skip


def tiny_backbone(seed: int = 0, tied: bool = True, layers: int = 4, width: int = 32) -> Qwen2VLBackbone:
    """Random weights, large enough that attention and routing make clear choices."""
    torch.manual_seed(seed)
    model = Qwen2VLForConditionalGeneration(tiny_config(tied, layers, width)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.5 if "embed_tokens" in name else 0.18)
    return Qwen2VLBackbone(model)


def tiny_reasoner(
    settings: ReasonerSettings, seed: int = 0, trainable: Trainable = "none", tied: bool = True, encodings: float = 0.3
) -> LatentReasoner:
    """A reasoner whose step encodings and latent rows are off their starting values (`encodings` 0 keeps them zero)."""
    reasoner = build_reasoner(tiny_backbone(seed, tied), settings, LATENT, trainable=trainable)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in reasoner.extra_parameters().items():
            if "step_encoding" in name:
                parameter.copy_(encodings * torch.randn(parameter.shape, generator=generator))
            elif "router" in name and parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        for name, parameter in reasoner.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return reasoner


@cache
def tiny_trace(fp16: bool, fused: bool) -> Any:
    """Tiny reasoners of one seed have the same tower: it is traced once per precision and dialect."""
    from lrkit.export.weights.source import read_source
    from lrkit.families.qwen2_vl.tower import traced_tower

    return traced_tower(read_source(tiny_reasoner(ReasonerSettings())).tower, GEOMETRY, fp16, fused)


@dataclass
class Batch:
    """What LatentReasoner reads, built by hand so that tests do not depend on the data path."""

    input_ids: Tensor
    prompt_mask: Tensor
    pixel_values: Tensor | None
    grids: Tensor | None
    images_per_sample: tuple[int, ...]
    num_latents: Tensor = field(default_factory=lambda: torch.zeros(0))
    may_think: Tensor = field(default_factory=lambda: torch.zeros(0))
    speech_ids: Tensor = field(default_factory=lambda: torch.zeros(0))
    speech_mask: Tensor = field(default_factory=lambda: torch.zeros(0))
    speech_weights: Tensor = field(default_factory=lambda: torch.zeros(0))
    windows: Tensor | None = None
    looks: Tensor | None = None
    window_grid: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Prompt:
    """Grids of the images (patches) and text ids before, between and after them."""

    grids: tuple[tuple[int, int, int], ...]
    text: tuple[int, ...]
    patches: np.ndarray | None
    """Of all images, uint8."""
    windows: np.ndarray | None = None
    """Where replay is fine: those of each visual token, (V, M, C) uint8."""

    @property
    def pixels(self) -> Tensor | None:
        """The patches as the torch model reads them."""
        return None if self.patches is None else torch.from_numpy(GEOMETRY.pixel_values(self.patches))

    @property
    def ids(self) -> list[int]:
        ids: list[int] = []
        for t, h, w in self.grids:
            ids += [VISION_START, *[IMAGE] * (t * h * w // MERGE**2), VISION_END]
        return ids + list(self.text)


def windows_of(prompts: list[Prompt], zoom: int) -> Tensor:
    """Full pictures of noise, for any prompts: (B, V, M, C)."""
    count = max(one.ids.count(IMAGE) for one in prompts)
    generator = torch.Generator().manual_seed(7)
    patches = (zoom * MERGE) ** 2
    shape = (len(prompts) * count * patches, GEOMETRY.patch_bytes)
    drawn = torch.randint(256, shape, generator=generator, dtype=torch.uint8).numpy()
    return torch.from_numpy(GEOMETRY.pixel_values(drawn)).view(len(prompts), count, patches, -1)


def prompt(seed: int, grids: tuple[tuple[int, int, int], ...] = ((1, 4, 6),), length: int = 7) -> Prompt:
    generator = torch.Generator().manual_seed(seed)
    text = tuple(torch.randint(8, VOCABULARY - 1, (length,), generator=generator).tolist())
    count = sum(t * h * w for t, h, w in grids)
    patches = torch.randint(256, (count, GEOMETRY.patch_bytes), generator=generator, dtype=torch.uint8).numpy()
    return Prompt(grids, text, patches if count else None)


def with_windows(one: Prompt, zoom: int, seed: int = 0) -> Prompt:
    """The prompt with windows that have nothing to do with its patches."""
    count = one.ids.count(IMAGE)
    shape = (count, (zoom * MERGE) ** 2, GEOMETRY.patch_bytes)
    drawn = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return replace(one, windows=drawn if count else None)


def batch(
    prompts: list[Prompt],
    side: str = "right",
    extra_pad: int = 0,
    num_latents: list[int] | None = None,
    speech: list[list[int]] | None = None,
) -> Batch:
    """Pads prompts on `side`; `speech` (with its end token) and `num_latents` make it a training batch."""
    width = max(len(p.ids) for p in prompts) + extra_pad
    ids = torch.full((len(prompts), width), PAD)
    mask = torch.zeros(len(prompts), width, dtype=torch.bool)
    for row, one in enumerate(prompts):
        place = slice(0, len(one.ids)) if side == "right" else slice(width - len(one.ids), width)
        ids[row, place] = torch.tensor(one.ids)
        mask[row, place] = True
    pixels = [p.pixels for p in prompts if p.pixels is not None]
    grids = [grid for p in prompts for grid in p.grids]
    made = Batch(
        ids,
        mask,
        torch.cat(pixels) if pixels else None,
        torch.tensor(grids) if grids else None,
        tuple(len(p.grids) for p in prompts),
    )
    if any(p.windows is not None for p in prompts):
        made.windows, made.window_grid = _windows(prompts)
    if speech is not None:
        longest = max(map(len, speech))
        made.speech_ids = torch.tensor([s + [PAD] * (longest - len(s)) for s in speech])
        made.speech_mask = torch.tensor([[True] * len(s) + [False] * (longest - len(s)) for s in speech])
        made.speech_weights = made.speech_mask.float()
        made.num_latents = torch.tensor(num_latents or [0] * len(prompts))
        made.may_think = made.num_latents > 0
    return made


def _windows(prompts: list[Prompt]) -> tuple[Tensor, tuple[int, int, int]]:
    """As the torch model reads them, padded to the most, and the cut of each."""
    given = [p.windows for p in prompts if p.windows is not None]
    side = round(given[0].shape[1] ** 0.5)
    made = torch.zeros(len(prompts), max(map(len, given)), side * side, FRAMES * given[0].shape[2])
    for row, one in enumerate(prompts):
        if one.windows is not None:
            values = GEOMETRY.pixel_values(one.windows.reshape(-1, GEOMETRY.patch_bytes))
            made[row, : len(one.windows)] = torch.from_numpy(values).view(len(one.windows), side * side, -1)
    return made, (1, side, side)
