"""Shapes: published models without their weights, and the flat lists of sizes of earlier versions."""

import json
from pathlib import Path
from typing import Any

import pytest

from lrkit.contract.settings import ReasonerSettings
from lrkit.data.shapes import load_shape, shape_processor, shape_samples
from lrkit.data.tokenizer import SPECIAL_TOKENS, build_word_tokenizer
from lrkit.data.trail import VOCABULARY
from lrkit.errors import ConfigError, LrkitError
from lrkit.profile.measure import differences
from lrkit.profile.measure.cases import ModelChoice, make_cases
from lrkit.profile.measure.shape_model import open_shape
from lrkit.profile.measure.suite import load_suite
from lrkit.resources import list_resources

WEIGHTS = {
    "qwen2-vl-2b": 2_208_985_600, "qwen2-vl-7b": 8_291_375_616, "qwen3-vl-2b": 2_127_532_032,
    "qwen2.5-vl-3b": 3_754_622_976, "qwen2.5-vl-7b": 8_292_166_656, "qwen3-vl-4b": 4_437_815_808,
    "qwen3-vl-8b": 8_767_123_696, "chameleon-7b": 7_043_090_432, "smolvlm-256m": 256_484_928,
    "smolvlm-500m": 507_482_304, "smolvlm-2.2b": 2_246_272_880, "smolvlm2-2.2b": 2_246_784_880,
}  # fmt: skip
"""Elements of all tensors, which the hub shows rounded (2.21B, 3.75B, 256M)."""
FLAT = {
    "description": "a few thousand weights", "hidden_size": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2,
    "intermediate_size": 96, "vocabulary": 256, "tied_embeddings": True, "vision_depth": 1, "vision_width": 32,
    "vision_heads": 2, "vision_mlp_ratio": 2, "patch_size": 4, "merge_size": 2, "image_size": [80, 32],
}  # fmt: skip


def published(name: str = "qwen2-vl-2b") -> dict[str, Any]:
    file = next(resource.path for resource in list_resources("shape") if resource.name == name)
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", [resource.name for resource in list_resources("shape")])
def test_a_shipped_shape_has_every_weight_of_the_published_model(name: str) -> None:
    assert load_shape(name).num_weights == WEIGHTS[name]


@pytest.mark.parametrize("name", [resource.name for resource in list_resources("shape")])
def test_the_words_of_a_shape_go_round_the_special_tokens_of_its_model(name: str) -> None:
    shape = load_shape(name)
    processor = shape_processor(shape)
    assert processor.image_id == shape.layout.image_id
    found = {token: processor.tokenizer.token_to_id(token) for token in shape.tokens}
    assert found == shape.tokens
    assert processor.last_id < shape.layout.vocabulary
    (asked,) = shape_samples(name, shape.picture, 1)
    prompt = processor.encode_prompt(asked.images, asked.question)
    assert prompt.ids.count(processor.image_id) == processor.geometry.num_visual_tokens(prompt.grids[0])
    assert processor.decode(processor.tokenizer.encode("Start in room 3").ids) == "Start in room 3"


def test_the_published_ids_of_qwen2_vl() -> None:
    processor = shape_processor(load_shape("qwen2-vl-2b"))
    ids = (processor.image_id, processor.eos_id, processor.pad_id, processor.latent_id)
    assert ids == (151_655, 151_645, 151_643, 151_657), "<|latent|> is the first that the tokenizer leaves free"


def test_a_flat_list_of_sizes_still_is_a_shape(tmp_path: Path) -> None:
    """Its tokenizer has the ids that it had."""
    file = tmp_path / "flat.json"
    file.write_text(json.dumps(FLAT))
    shape = load_shape(str(file))
    assert (shape.family, shape.picture, shape.layout.width, shape.layout.tied) == ("qwen2_vl", (80, 32), 64, True)
    processor = shape_processor(shape)
    assert processor.tokenizer.get_vocab() == build_word_tokenizer(VOCABULARY).get_vocab()
    assert [processor.tokenizer.token_to_id(name) for name in SPECIAL_TOKENS] == list(range(len(SPECIAL_TOKENS)))
    assert processor.geometry.grid(80, 32) == (1, 8, 20)


def _without(values: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != key}


def _config(**changes: Any) -> dict[str, Any]:
    values = published()
    return {**values, "config": {**values["config"], **changes}}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (_without(published(), "config"), "config"),
        (_without(published(), "picture"), "picture"),
        ({**published(), "config": []}, "config"),
        ({**published(), "family": "qwen2_v"}, "did you mean 'qwen2_vl'"),
        (_config(model_type="qwen3_vl"), "family is qwen2_vl and config.model_type 'qwen3_vl'"),
        (_config(model_type=["a"]), "config.model_type"),
        (_config(hidden_size=1537), "do not divide"),
        (_config(num_hidden_layers="28"), "num_hidden_layers"),
        (_config(quantization_config={}), "quantized"),
        ({**published(), "pictures": {**published()["pictures"], "patch_size": 16}}, "patch_size is 16"),
        ({**published(), "pictures": {"image_processor_type": "Other"}}, "pictures: image_processor_type is Other"),
        ({**published(), "picture": [448, 1]}, "200 times"),
        ({**published(), "picture": [448, 0]}, "picture"),
        ({**published(), "tokens": {"<|image_pad|>": 7}}, "is not the 151655 of config.json"),
        ({**published(), "tokens": {"a": 7, "b": 7}}, "two tokens have one id"),
        ({**published(), "tokens": {"a": 151_936}}, "beyond the 151936 rows"),
        ({**published(), "prompt": {"image": "none"}}, "prompt"),
        ({**published(), "hidden_size": 64}, "hidden_size"),
        ({"description": "empty"}, "config"),
        ({**FLAT, "hidden_size": 65}, "hidden_size is 65"),
    ],
)  # fmt: skip
def test_a_bad_shape_is_refused_in_one_sentence_for_each_fault(
    values: dict[str, Any], said: str, tmp_path: Path
) -> None:
    file = tmp_path / "shape.json"
    file.write_text(json.dumps(values))
    with pytest.raises(ConfigError) as refused:
        load_shape(str(file))
    lines = str(refused.value).splitlines()
    assert any(said in line for line in lines) and all(line.startswith(f"{file}: ") for line in lines), lines
    assert "/tmp" not in str(refused.value).replace(str(file), "")


def test_words_that_have_no_room_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "shape.json"
    values = _config(vocab_size=20, image_token_id=10)
    file.write_text(json.dumps({**values, "tokens": {}, "prompt": {}}))
    with pytest.raises(LrkitError, match="vocabulary of 20"):
        shape_processor(load_shape(str(file)))


@pytest.mark.parametrize(("family", "told"), [("qwen2_vl", True), ("idefics3", False)])
def test_a_tower_that_always_sees_a_whole_view_is_not_told_from_the_prefill(
    family: str, told: bool, tmp_path: Path
) -> None:
    """Without a picture such a program takes as long, and the difference, the vision phase, came out below zero."""
    file = tmp_path / "shape.json"
    sizes = {"patch_size": 8, "vision_heads": 4, "image_size": [64, 64], "tied_embeddings": False}
    file.write_text(json.dumps({**FLAT, **sizes, "family": family}))
    model = open_shape(str(file), ReasonerSettings(), ModelChoice(str(file), dtype="float32"))
    case = make_cases([model], load_suite("shape-bundle", only=["direct"])).cases[0]
    (sample,) = shape_samples("s", (64, 64), 1)
    job = differences._job(case, sample)  # pyright: ignore[reportPrivateUsage]
    assert job is not None and ("text" in job.variants) is told


def test_what_a_shipped_shape_is_stands_in_the_list() -> None:
    """`lrkit ls shape` once had an empty column."""
    assert all(resource.description for resource in list_resources("shape"))
