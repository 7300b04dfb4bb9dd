"""The cases of Idefics3 and SmolVLM2, with tiny checkpoints in the layouts in which SmolVLM is published.

What is as published: names of files, keys of config.json, 49,280 rows of bfloat16 (49,155 in the older vocabulary that
has no tokens for row and column), special tokens and their ids, class names, the chat template, the end tokens, the
sizes of pictures (of one variant), shards with an index. What is not: the sizes, the weights (random) and the merges.
"""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from lrkit.families.idefics3.geometry import SplitPictures
from lrkit.families.protocols import Geometry
from lrkit.model.open_backbone import no_progress_bars
from tests.families.byte_level import Vocabulary, special, write_tokenizer_files
from tests.families.cases import FamilyCase, Peer

_FIRST = special((
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<reponame>", "<file_sep>", "<filename>",
    "<gh_stars>", "<issue_start>", "<issue_comment>", "<issue_closed>", "<jupyter_start>", "<jupyter_text>",
    "<jupyter_code>", "<jupyter_output>", "<jupyter_script>", "<empty_output>",
))  # fmt: skip
_SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_MARKS = ("<global-img>", *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)))
_RESERVED = tuple(f"<|reserved_special_token_{number}|>" for number in range(88))
VOCABULARY = Vocabulary(
    entries=49_135,
    in_front=_FIRST,
    added=special((*_MARKS, "<fake_token_around_image>", "<image>", *_RESERVED, "<end_of_utterance>")),
    split=_SPLIT,
)
OLDER_VOCABULARY = Vocabulary(
    entries=49_135,
    in_front=_FIRST,
    added=special(("<fake_token_around_image>", "<image>", "<end_of_utterance>")),
    split=_SPLIT,
)
"""Row, column and whole are texts of several tokens here."""
CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}{% if message['content'][0]['type'] == "
    "'image' %}{{':'}}{% else %}{{': '}}{% endif %}{% for line in message['content'] %}{% if line['type'] == 'text' %}"
    "{{line['text']}}{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
TILE = 32
"""Side of a view of the cheap variants: four visual tokens of 4 x 4 patches."""


def write_published(
    folder: Path, family: str = "idefics3", vocabulary: Vocabulary = VOCABULARY, shard: str = "1GB", seed: int = 0,
    tied: bool = False, new_files: bool = False, pictures: Mapping[str, int] | None = None,
) -> Path:  # fmt: skip
    """A checkpoint of random weights. `pictures` are sizes: tile, longest_edge, patch_size, scale_factor. `new_files`:
    processor_config.json with the image processor inside and chat_template.jinja, as transformers 5 writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {"tile": TILE, "longest_edge": 2 * TILE, "patch_size": 4, "scale_factor": 4, **(pictures or {})}
    config = _config(family, vocabulary, sizes, tied)
    with no_progress_bars():
        random_model(family, config, seed).bfloat16().save_pretrained(folder, max_shard_size=shard)
    if not new_files:
        _write_json(folder / "config.json", config)
    end = vocabulary.ids["<end_of_utterance>"]
    ids = {"bos_token_id": 1, "eos_token_id": end, "pad_token_id": 2}
    _write_json(folder / "generation_config.json", {"_from_model_config": True, **ids})
    write_tokenizer_files(folder, vocabulary, _tokenizer_config(family))
    _write_picture_files(folder, family, sizes, new_files)
    return folder


def random_model(family: str, config: dict[str, Any], seed: int) -> Any:
    """Random weights, larger than usual, so that choices are clear, and norms that are not all alike."""
    name = {"idefics3": "Idefics3", "smolvlm": "SmolVLM"}[family]
    torch.manual_seed(seed)
    made = getattr(transformers, f"{name}Config")(**copy.deepcopy(config))
    model = getattr(transformers, f"{name}ForConditionalGeneration")(made).eval()
    with torch.no_grad():
        for label, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.5 if "embed_tokens" in label else 0.12)
            elif "norm" in label:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def _config(family: str, vocabulary: Vocabulary, sizes: Mapping[str, int], tied: bool) -> dict[str, Any]:
    """config.json as published."""
    rows = len(vocabulary.in_front) + vocabulary.entries + len(vocabulary.added)
    text = {
        "_flash_attn_2_enabled": True, "_name_or_path": "None", "architectures": ["VLlama3ForCausalLM"],
        "head_dim": 16, "hidden_size": 64, "intermediate_size": 128, "is_llama_config": True,
        "max_position_embeddings": 8192, "model_type": "llama", "neftune_noise_alpha": 0.0, "num_attention_heads": 4,
        "num_hidden_layers": 3, "num_key_value_heads": 2, "pad_token_id": 2, "pixel_shuffle_factor": 4,
        "qk_layer_norms": False, "rms_norm_eps": 1e-05, "rope_interleaved": False, "rope_theta": 100000,
        "torch_dtype": "bfloat16", "use_resampler": False, "vocab_size": rows,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "image_size": sizes["tile"], "intermediate_size": 72,
        "max_image_size": {"longest_edge": sizes["tile"]}, "model_type": family, "num_attention_heads": 2,
        "num_hidden_layers": 2, "patch_size": sizes["patch_size"], "size": {"longest_edge": sizes["longest_edge"]},
        "tie_word_embeddings": False, "use_base_siglip": False,
    }  # fmt: skip
    name = {"idefics3": "Idefics3", "smolvlm": "SmolVLM"}[family]
    return {
        "architectures": [f"{name}ForConditionalGeneration"], "bos_token_id": 1,
        "eos_token_id": vocabulary.ids["<end_of_utterance>"], "image_token_id": vocabulary.ids["<image>"],
        "model_type": family, "pad_token_id": 128002, "scale_factor": sizes["scale_factor"], "text_config": text,
        "tie_word_embeddings": tied, "torch_dtype": "bfloat16", "transformers_version": "4.46.0", "use_cache": True,
        "vision_config": vision, "vocab_size": rows,
    }  # fmt: skip


def _tokenizer_config(family: str) -> dict[str, Any]:
    names = ["<fake_token_around_image>", "<image>", "<end_of_utterance>"]
    return {
        "add_prefix_space": False, "additional_special_tokens": names, "bos_token": "<|im_start|>",
        "clean_up_tokenization_spaces": False, "eos_token": "<end_of_utterance>", "legacy": False,
        "model_max_length": 8192, "pad_token": "<|im_end|>", "processor_class": _processor(family),
        "tokenizer_class": "GPT2Tokenizer", "truncation_side": "left", "unk_token": "<|endoftext|>",
        "vocab_size": 49152,
    }  # fmt: skip


def _processor(family: str) -> str:
    return {"idefics3": "Idefics3Processor", "smolvlm": "SmolVLMProcessor"}[family]


def _write_picture_files(folder: Path, family: str, sizes: Mapping[str, int], new_files: bool) -> None:
    kind = _processor(family).replace("Processor", "ImageProcessor")
    image = {
        "do_convert_rgb": True, "do_image_splitting": True, "do_normalize": True, "do_pad": True, "do_rescale": True,
        "do_resize": True, "image_mean": [0.5, 0.5, 0.5], "image_processor_type": kind, "image_std": [0.5, 0.5, 0.5],
        "max_image_size": {"longest_edge": sizes["tile"]}, "processor_class": _processor(family), "resample": 1,
        "rescale_factor": 0.00392156862745098, "size": {"longest_edge": sizes["longest_edge"]},
    }  # fmt: skip
    tokens = (sizes["tile"] // sizes["patch_size"] // sizes["scale_factor"]) ** 2
    whole: dict[str, Any] = {"image_seq_len": tokens, "processor_class": _processor(family)}
    if new_files:
        image.pop("processor_class")
        _write_json(folder / "processor_config.json", {"image_processor": image, **whole})
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
        return
    _write_json(folder / "preprocessor_config.json", image)
    _write_json(folder / "processor_config.json", whole)
    _write_json(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def patches_of(made: Mapping[str, Any], geometry: Geometry) -> np.ndarray:
    """Views (1, I, 3, tile, tile) of one prompt as patches, view by view, in each view square by square."""
    assert isinstance(geometry, SplitPictures)
    views = made["pixel_values"][0]
    squares, scale, patch = geometry.token_side, geometry.scale_factor, geometry.patch_size
    used = geometry.side * patch
    cut = views[:, :, :used, :used].reshape(len(views), 3, squares, scale, patch, squares, scale, patch)
    return cut.transpose(0, 2, 5, 3, 6, 1, 4, 7).reshape(-1, geometry.patch_bytes)


_LARGE = {"tile": 384, "longest_edge": 768, "patch_size": 14, "scale_factor": 3}
"""Views of 27 x 27 patches of 14 pixels, which leave six pixels over, as the largest published model's."""
CASE = FamilyCase(
    name="idefics3",
    variants={
        "published files": lambda folder: write_published(folder, seed=3),
        "older vocabulary, tied, in shards": lambda folder: write_published(
            folder, vocabulary=OLDER_VOCABULARY, shard="4MB", seed=1, tied=True, pictures=_LARGE
        ),
    },
    peer=Peer(model="Idefics3ForConditionalGeneration", processor="Idefics3Processor", patches=patches_of),
    geometries={
        "small": SplitPictures(patch_size=4, scale_factor=2, tile=16, longest_edge=64),
        "spare pixels": SplitPictures(patch_size=7, scale_factor=2, tile=32, longest_edge=96),
    },
    sizes=((2048, 2048), (2049, 512), (512, 512), (1, 4000)),
    refused=(),
    views=2,
)
