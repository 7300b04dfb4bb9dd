"""Golden vectors of the method's released implementation (arXiv 2604.10500): what is kept here, and how it is read.

The whole set has 10 MB. All that went into the release's runs was drawn from seeds, so it is drawn again here. Of what
came out, `golden/` keeps the tensors in `KEPT`, some of them in part (`THIN`). LRKIT_GOLDEN names a folder with the
whole set: it is then used in place of `golden/`, and a test holds `golden/` and the draws against it.
"""

import json
import os
import sys
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

HERE = Path(__file__).parent / "golden"
FOLDER = Path(os.environ.get("LRKIT_GOLDEN", HERE))
WHOLE = FOLDER != HERE
MEAN, STD = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])

KEPT: dict[str, dict[str, tuple[str, ...]]] = {
    "full": {
        "all_16": ("crops_u8_hwc", "crop_step0_pixel_values_first_16_rows"),
        "two": ("pixel_values",),
        "one": ("input_ids",),
        "one3": ("input_ids",),
        **dict.fromkeys(
            ("plain_16", "plain_32_3lat"),
            ("selected_order", "selected_sorted", "latent_embeddings", "rel_scores", "weights_softmax", "picked",
             "answer_logits", "sr_target"),
        ),
    },
    "layer": {
        **dict.fromkeys(
            ("b2s48", "b1s40", "b1s32"),
            ("block1_out", "router_probs", "topk_indices_sorted", "block2_out", "hidden_out",
             "not_official_aligned_out"),
        ),
        "b2s48_leftpad": ("attention_mask_2d", "block1_out"),
    },
    "tokensr": dict.fromkeys(
        (f"case{case}" for case in range(6)),
        ("pool", "reference", "pred", "grad_pool", "grad.0.weight", "grad.0.bias", "grad.2.weight", "grad.2.bias"),
    ),
}  # fmt: skip
"""File -> the run -> its tensors that are in `golden/`."""
THIN: dict[str, Any] = {
    "crops_u8_hwc": (slice(None), slice(None, None, 8), slice(None, None, 8)),
    "crop_step0_pixel_values_first_16_rows": (..., slice(None, None, 8)),
    "pixel_values": (slice(0, 400, 25), slice(None, None, 8)),
    **dict.fromkeys(("block2_out", "not_official_aligned_out", "hidden_out", "picked"), (..., slice(None, None, 8))),
    **dict.fromkeys(("grad.0.weight", "grad.2.weight"), (..., slice(None, None, 16))),
}
"""Tensor -> the part of it that is in `golden/`; the others are whole."""
SELECTION = ("step", "k", "chosen_indices_in_official_order", "window_top_left_rc", "window_count", "crop_box_x1y1x2y2")
PATTERNS = ("32_patch", "16_patch", "8_patch", "soft_mix")
HIDDEN_SEED = {"b2s48": (36, 2, 48), "b1s40": (73, 1, 40), "b2s48_leftpad": (13, 2, 48), "b1s32": (75, 1, 32)}
"""Variant of the layer -> seed, rows, tokens of what goes in."""


@lru_cache
def tensors(name: str) -> dict[str, Tensor]:
    """Outputs of the release; those of `THIN` in part, unless the whole set is used."""
    return load_file(FOLDER / f"{name}.safetensors")


@lru_cache
def document(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text())


def thin(part: str, value: Tensor, whole: bool = WHOLE) -> Tensor:
    """The part of `value` that stands for a run's tensor `part` in the set that is used."""
    return value if whole or part not in THIN else value[THIN[part]]


# ---- what went in: drawn from the release's seeds --------------------------------------------------------------------


def drawn(name: str, *shape: int) -> Tensor:
    """The weight `name` of the release's tiny model."""
    seed = (1234 * 1000003 + zlib.crc32(name.encode())) % 2**31
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if "norm" in name or ".ln_q." in name:
        return values * 0.1 + (1 if name.endswith("weight") else 0)
    if name.endswith("bias"):
        return values * 0.1
    fixed = {"router": 0.06, "embed_tokens": 0.5, "patch_embed": 0.05, "lm_head": 0.3}
    return values * next((scale for part, scale in fixed.items() if part in name), shape[-1] ** -0.5)


def tokensr_weights(width: int = 64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(99)
    shapes = {"0.weight": (width, width), "0.bias": (width,), "2.weight": (width, width), "2.bias": (width,)}
    return {
        name: torch.randn(shape, generator=generator) * (width**-0.5 if len(shape) == 2 else 0.1)
        for name, shape in shapes.items()
    }


def hidden_in(variant: str) -> Tensor:
    seed, rows, tokens = HIDDEN_SEED[variant]
    return torch.randn(rows, tokens, 64, generator=torch.Generator().manual_seed(seed))


@lru_cache
def image() -> Tensor:
    """Bytes [3, 280, 280] of a picture of 10 x 10 noisy colours; ids of the prompt were drawn before it."""
    generator = np.random.default_rng(165)
    generator.integers(0, 256, 17)
    colours = generator.integers(0, 256, (10, 10, 3)).repeat(28, 0).repeat(28, 1)
    noisy = (colours + generator.integers(-40, 41, (280, 280, 3))).clip(0, 255)
    return torch.from_numpy(noisy.astype(np.uint8)).permute(2, 0, 1)


@lru_cache
def pixel_values() -> Tensor:
    """`image()` as transformers' processor cuts it: [400, 1176], two equal frames, patches of 14, merged by 2 x 2."""
    normal = (image() / 255 - MEAN[:, None, None]) / STD[:, None, None]
    cut = normal.reshape(3, 10, 2, 14, 10, 2, 14).permute(1, 4, 2, 5, 0, 3, 6)
    return cut[..., None, :, :].expand(*cut.shape[:5], 2, 14, 14).reshape(400, 1176)


# ---- selection -------------------------------------------------------------------------------------------------------


def step_scores(case: dict[str, Any], step: int) -> Tensor:
    """[100]; numbers that are not finite are written as text."""
    if not WHOLE:
        return tensors("selection")[f"case{case['id']}.step{step}"]
    return torch.tensor([float(value) for value in case[f"scores_step{step}"]])


def selection_steps() -> Iterator[dict[str, Any]]:
    """Every step of the selection's cases, with what follows from its scores [100] and the choices before it.

    `unique` is false where scores tie at the threshold: then only `must` is determined, and the rest is from `tied`.
    """
    for case in document("selection")["cases"]:
        for pattern in PATTERNS:
            visited: set[int] = set()
            for step in case.get(pattern, {}).get("steps", []):
                score = step_scores(case, step["step"])
                free = torch.tensor([place not in visited for place in range(100)])
                best = score[free].sort(descending=True).values[: step["k"]]
                threshold = best[-1] if len(best) else torch.inf
                tied = (free & (score == threshold)).nonzero()[:, 0].tolist()
                must = (free & (score > threshold)).nonzero()[:, 0].tolist()
                unique = len(must) + len(tied) == step["k"]
                chosen = step["chosen_indices_in_official_order"]
                yield step | {
                    "score": score, "free": free, "unique": unique, "chosen": chosen,
                    "must": sorted(must + tied) if unique else must, "tied": [] if unique else tied,
                }  # fmt: skip
                visited |= set(chosen)


# ---- the part that is kept -------------------------------------------------------------------------------------------


def kept(name: str, whole: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        f"{run}.{part}": thin(part, whole[f"{run}.{part}"], whole=False).contiguous()
        for run, parts in KEPT[name].items()
        for part in parts
    }


def kept_document(name: str, whole: Any) -> Any:
    if name == "tokensr":
        return whole
    if name == "full":
        window = "window_[pass,row,r,c,count,x1,y1,x2,y2]"
        runs = {run: {"ce": whole["cases"][run]["ce"]} for run in ("plain_16", "plain_32_3lat")}
        return {"cases": {"all_16": {window: whole["cases"]["all_16"][window]}, **runs}}
    return {"cases": [{"id": case["id"]} | _kept_steps(case) for case in whole["cases"]]}


def _kept_steps(case: dict[str, Any]) -> dict[str, Any]:
    """Softmax weights are compared to 1e-7."""
    return {
        pattern: {
            "steps": [
                {name: step[name] for name in SELECTION}
                | {"softmax_weights": [round(float(weight), 8) for weight in step["softmax_weights"]]}
                for step in case[pattern]["steps"]
            ]
        }
        for pattern in PATTERNS
        if case.get(pattern, {}).get("steps")
    }


def kept_scores(whole: Any) -> dict[str, Tensor]:
    return {
        f"case{case['id']}.step{name.removeprefix('scores_step')}": torch.tensor([float(value) for value in values])
        for case in whole["cases"]
        for name, values in case.items()
        if name.startswith("scores_step")
    }


def as_json(content: Any) -> str:
    return json.dumps(content, separators=(",", ":")) + "\n"


def write_kept(whole: Path, to: Path = HERE) -> None:
    """Writes `golden/` out of the whole set: python -m tests.parity.golden_vectors FOLDER"""
    to.mkdir(exist_ok=True)
    for name in KEPT:
        save_file(kept(name, load_file(whole / f"{name}.safetensors")), to / f"{name}.safetensors")
    scores = kept_scores(json.loads((whole / "selection.json").read_text()))
    save_file(scores, to / "selection.safetensors")
    for name in ("full", "selection", "tokensr"):
        content = kept_document(name, json.loads((whole / f"{name}.json").read_text()))
        (to / f"{name}.json").write_text(as_json(content))


if __name__ == "__main__":
    write_kept(Path(sys.argv[1]))
