"""Chameleon's case: tiny checkpoints in the layout of facebook/chameleon-7b.

What is as published: names of files, keys of config.json, 65,536 rows, special tokens, reserved words and names of
codes with their ids, the image processor's file, the quantizer's five levels, no chat template, the classes named. What
is not: the sizes, the weights (random), the merges, which name stands for which code. The variants of the battery have
pictures of 64 pixels a side, which make 16 codes of 64, and a `vocabulary_map` of those alone; `whole=True` has 512
pixels, 8,192 codes and the map of all names.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, processors
from transformers import ChameleonConfig, ChameleonForConditionalGeneration

from lrkit.families.chameleon.geometry import SquareGeometry
from lrkit.families.chameleon.vocabulary import code_name
from lrkit.model.open_backbone import no_progress_bars
from tests.families.byte_level import Vocabulary, tokenizer_json
from tests.families.cases import FamilyCase, Peer

ROWS, CODES, FEW_CODES = 65_536, 8192, 64
BEGIN, PAD, END, UNKNOWN = "<s>", "<pad>", "</s>", "<unk>"
AFTER, BEFORE, TURN, IMAGE = "<eoss>", "<racm3:break>", "<reserved08706>", "<image>"
LATENT, LAST_RESERVED = "<reserved08708>", 16_387
IDS = {BEGIN: 0, PAD: 1, END: 2, UNKNOWN: 3, AFTER: 8196, BEFORE: 8197, TURN: 8710, IMAGE: 8711, LATENT: 8712}
PREPROCESSOR = {
    "crop_size": {"height": 512, "width": 512}, "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True,
    "do_rescale": True, "do_resize": True, "image_mean": [1.0, 1.0, 1.0],
    "image_processor_type": "ChameleonImageProcessor", "image_std": [1.0, 1.0, 1.0],
    "processor_class": "ChameleonProcessor", "resample": 1, "rescale_factor": 0.0078, "size": {"shortest_edge": 512},
}  # fmt: skip
"""As published."""


def write_published(
    folder: Path, swin_norm: bool = False, shard: str = "1GB", seed: int = 0, new_files: bool = False,
    whole: bool = False,
) -> Path:  # fmt: skip
    """A checkpoint of random weights. `new_files`: the image processor stands in processor_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    side = 512 if whole else 64
    torch.manual_seed(seed)
    model = ChameleonForConditionalGeneration(_config(side, swin_norm)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "vqmodel" in name or "_norm." in name:
                continue
            if parameter.dim() > 1:  # larger than usual, so that choices are clear
                parameter.normal_(0.0, 0.5 if "embed_tokens" in name else 0.12)
        for name, parameter in model.named_parameters():
            if "_norm." in name:  # of each head its own
                parameter.add_(torch.randn_like(parameter) * 0.2)
        _spread_codes(model.model.vqmodel, side)
    with no_progress_bars():
        model.bfloat16().save_pretrained(folder, max_shard_size=shard)
    _write_json(folder / "config.json", _published_config(side, swin_norm))
    generation = {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "transformers_version": "4.43.0"}
    _write_json(folder / "generation_config.json", generation)
    _write_tokenizer(folder)
    pictures = PREPROCESSOR | {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    length = {"image_seq_length": (side // 16) ** 2, "image_token": IMAGE, "processor_class": "ChameleonProcessor"}
    if new_files:
        _write_json(folder / "processor_config.json", {"image_processor": pictures, **length})
    else:
        _write_json(folder / "preprocessor_config.json", pictures)
        _write_json(folder / "processor_config.json", length)
    return folder


def _spread_codes(tower: Any, side: int) -> None:
    """Puts the codes among what the encoder gives, so that pictures have many different ones and choices are clear."""
    pictures = torch.nn.functional.interpolate(torch.rand(4, 3, side // 8, side // 8), (side, side), mode="bilinear")
    hidden = tower.quant_conv(tower.encoder(2 * pictures - 1))
    around = hidden.transpose(0, 1).flatten(1)
    noise = torch.randn(len(tower.quantize.embedding.weight), len(around))
    tower.quantize.embedding.weight.copy_(around.mean(1) + 2 * around.std(1) * noise)


def _vision(side: int) -> dict[str, Any]:
    return {
        "attn_resolutions": None, "attn_type": "vanilla", "base_channels": 32, "channel_multiplier": [1, 1, 2, 2, 4],
        "double_latent": False, "dropout": 0.0, "embed_dim": 32, "in_channels": 3, "latent_channels": 32,
        "model_type": "chameleon_vqgan", "num_embeddings": CODES if side == 512 else FEW_CODES, "num_res_blocks": 1,
        "resolution": side,
    }  # fmt: skip


def _config(side: int, swin_norm: bool) -> ChameleonConfig:
    own = _published_config(side, swin_norm)
    passed = ("architectures", "model_type", "torch_dtype", "transformers_version", "rope_theta", "rope_scaling")
    theta = {"rope_type": "default", "rope_theta": own["rope_theta"]}
    return ChameleonConfig(**{key: own[key] for key in own if key not in passed}, rope_parameters=theta)


def _published_config(side: int, swin_norm: bool) -> dict[str, Any]:
    """config.json as transformers 4.43 wrote it."""
    return {
        "architectures": ["ChameleonForConditionalGeneration"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 64, "initializer_range": 0.02,
        "intermediate_size": 128, "max_position_embeddings": 4096, "mlp_bias": False, "model_parallel_size": 1,
        "model_type": "chameleon", "num_attention_heads": 4, "num_hidden_layers": 3,
        "num_key_value_heads": 2 if swin_norm else 4, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None,
        "rope_theta": 10000.0, "swin_norm": swin_norm, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "transformers_version": "4.43.0.dev0", "use_cache": True, "vocab_size": ROWS,
        "vocabulary_map": vocabulary_map() if side == 512 else few_names(), "vq_config": _vision(side),
    }  # fmt: skip


@cache
def _text() -> str:
    """tokenizer.json: special tokens, codes, reserved words and the image token, then text and fillers."""
    made = json.loads(tokenizer_json(Vocabulary(entries=1000, added=())))
    # In no order of their numbers, as published.
    codes = (code_name((7 * place + 15) % CODES) for place in range(CODES))
    reserved = [f"<reserved{index - 4:05d}>" for index in range(IDS[BEFORE] + 1, LAST_RESERVED + 1)]
    reserved[reserved.index("<reserved08707>")] = IMAGE
    names = [BEGIN, PAD, END, UNKNOWN, *codes, AFTER, BEFORE, *reserved, *made["model"]["vocab"]]
    names += [f"unused{index}" for index in range(len(names), ROWS)]
    made["model"]["vocab"] = {name: index for index, name in enumerate(names)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    made["added_tokens"] = [{"id": index, "content": name, **flags} for name, index in IDS.items()]
    tokenizer = Tokenizer.from_str(json.dumps(made))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A {BEGIN} $B", special_tokens=[(BEGIN, IDS[BEGIN])]
    )
    return tokenizer.to_str()


@cache
def vocabulary_map() -> dict[str, int]:
    """Every name of the tokenizer with its id."""
    return Tokenizer.from_str(_text()).get_vocab(with_added_tokens=True)


@cache
def few_names() -> dict[str, int]:
    """Those of the first codes and of the image token."""
    names = [code_name(code) for code in range(FEW_CODES)]
    return {name: vocabulary_map()[name] for name in (IMAGE, *names)}


def _write_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(_text(), encoding="utf-8")
    config = {
        "add_bos_token": True, "add_eos_token": False, "bos_token": BEGIN, "clean_up_tokenization_spaces": False,
        "eos_token": END, "legacy": False, "model_max_length": 4096, "pad_token": PAD, "sep_token": TURN,
        "processor_class": "ChameleonProcessor", "tokenizer_class": "PreTrainedTokenizerFast", "unk_token": UNKNOWN,
    }  # fmt: skip
    _write_json(folder / "tokenizer_config.json", config)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _cut(pictures: np.ndarray, tokens: int) -> np.ndarray:
    """Patches (N, C) of pictures (I, 3, side, side)."""
    side = pictures.shape[2] // tokens
    tiles = pictures.reshape(-1, 3, tokens, side, tokens, side).transpose(0, 2, 4, 1, 3, 5)
    return tiles.reshape(-1, 3 * side**2)


CASE = FamilyCase(
    name="chameleon",
    variants={
        "small pictures": lambda folder: write_published(folder),
        "norms behind, in shards, new files": lambda folder: write_published(
            folder, swin_norm=True, shard="8MB", seed=1, new_files=True
        ),
    },
    peer=Peer(
        model="ChameleonForConditionalGeneration",
        processor="ChameleonProcessor",
        patches=lambda made, geometry: _cut(made["pixel_values"], geometry.smallest_grid[0]),
    ),
    geometries={"published": SquareGeometry(), "wider": SquareGeometry(shortest_edge=72, crop_size=64, token_side=8)},
    sizes=((512, 512), (511, 513), (1, 200), (2000, 10)),
    refused=(),  # transformers takes any; what lrkit refuses is in tests/unit/test_chameleon.py
    cannot={"smaller_pictures": r"sees every picture at \d+ x \d+ pixels"},
    crops=True,
)
