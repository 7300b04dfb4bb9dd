"""Checkpoints broken in many ways: `lrkit validate` refuses what loading refuses, each in one sentence.

Twenty of twenty-six such checkpoints once passed validation and could not be loaded.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lrkit import Reasoner
from lrkit.errors import CheckpointError, LrkitError
from lrkit.model.checkpoint import load_checkpoint
from lrkit.resources import resolve_checkpoint
from lrkit.runtime.checks.checkpoint_files import check_checkpoint

Break = Callable[[Path], object]
ADAPTER, EXTRAS, INFO = "adapter_model.safetensors", "lrkit.safetensors", "reasoner.json"


def values(name: str, change: Callable[[dict[str, Any]], object]) -> Break:
    """Changes the values of a JSON file."""

    def broken(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return broken


def put(name: str, path: str, value: Any) -> Break:
    """Sets one value of a JSON file by its dotted path."""

    def change(content: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        for parent in parents:
            content = content[parent]
        content[last] = value

    return values(name, change)


def tensors(name: str, change: Callable[[dict[str, np.ndarray]], object]) -> Break:
    """Changes the tensors of a safetensors file."""

    def broken(folder: Path) -> None:
        content = {key: value.copy() for key, value in load_file(folder / name).items()}
        change(content)
        save_file(content, folder / name, {"format": "pt"})

    return broken


def first(content: dict[str, np.ndarray]) -> str:
    return sorted(content)[0]


def renamed(content: dict[str, np.ndarray]) -> None:
    content["somewhere.else"] = content.pop(first(content))


def poisoned(value: float) -> Callable[[dict[str, np.ndarray]], None]:
    def change(content: dict[str, np.ndarray]) -> None:
        content[first(content)].flat[-1] = value

    return change


def reshaped(content: dict[str, np.ndarray]) -> None:
    content[first(content)] = np.zeros((3, 5), np.float32)


def cut(name: str, size: int) -> Break:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def text(name: str, content: str) -> Break:
    return lambda folder: (folder / name).write_text(content)


def header(name: str, change: Callable[[dict[str, Any]], object]) -> Break:
    """Changes the header of a safetensors file and leaves the values."""

    def broken(folder: Path) -> None:
        raw = (folder / name).read_bytes()
        length = int.from_bytes(raw[:8], "little")
        content = json.loads(raw[8 : 8 + length])
        change(content)
        new = json.dumps(content).encode()
        (folder / name).write_bytes(len(new).to_bytes(8, "little") + new + raw[8 + length :])

    return broken


def head_beside(change: Callable[[np.ndarray], object] = lambda head: None) -> Break:
    """Stores the head of a tied model a second time, as some tools do."""

    def add(content: dict[str, np.ndarray]) -> None:
        (embedding,) = [name for name in content if name.endswith("embed_tokens.weight")]
        content["lm_head.weight"] = content[embedding].copy()
        change(content["lm_head.weight"])

    return tensors("model.safetensors", add)


def overlapping(content: dict[str, Any]) -> None:
    names = [name for name in content if name != "__metadata__"]
    same = [name for name in names if content[name]["shape"] == content[names[0]]["shape"]]
    content[same[1]]["data_offsets"] = content[same[0]]["data_offsets"]


def gone(name: str) -> Break:
    return lambda folder: (folder / name).unlink()


def pickled(folder: Path) -> None:
    (folder / ADAPTER).unlink()
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04.")


BROKEN_ADAPTERS: dict[str, Break] = {
    "rank in adapter_config": put("adapter_config.json", "r", 16),
    "rank in both": lambda folder: (
        put("adapter_config.json", "r", 16)(folder),
        put(INFO, "settings.lora.rank", 16)(folder),
    ),
    "a rank that fills the memory": put("adapter_config.json", "r", 10**9),
    "alpha in adapter_config": put("adapter_config.json", "lora_alpha", 64),
    "alpha in reasoner.json": put(INFO, "settings.lora.alpha", 8.0),
    # Pictures once came to the tower in the wrong form, and torch's traceback to the user.
    "patches of another size": put("preprocessor_config.json", "patch_size", 16),
    "patches merged in another way": put("preprocessor_config.json", "merge_size", 4),
    "patches of other frames": put("preprocessor_config.json", "temporal_patch_size", 1),
    # Every question was blamed for words of the format.
    "a prompt of words that the tokenizer lacks": put("prompt.json", "template", "Please look: {images} {question}"),
    "a marker that the tokenizer lacks": put("prompt.json", "answer", "Hence {answer}"),
    "another kind of adapter": put("adapter_config.json", "peft_type", "LOHA"),
    "an adapter that names code": put("adapter_config.json", "auto_mapping", {"base_model_class": "X"}),
    "modules to save": put("adapter_config.json", "modules_to_save", ["lm_head"]),
    "rank-stabilized": put("adapter_config.json", "use_rslora", True),
    "trained biases": put("adapter_config.json", "bias", "all"),
    "adapter_config is no mapping": text("adapter_config.json", "[]"),
    "adapter_config is cut": cut("adapter_config.json", 40),
    "no adapter_config": gone("adapter_config.json"),
    "no adapter weights": gone(ADAPTER),
    "pickled adapter": pickled,
    "an adapter weight renamed": tensors(ADAPTER, renamed),
    "an adapter weight lost": tensors(ADAPTER, lambda content: content.pop(first(content))),
    "an adapter weight too much": tensors(ADAPTER, lambda content: content.update(more=np.zeros(2, np.float32))),
    "an adapter weight of another shape": tensors(ADAPTER, reshaped),
    "an adapter of whole numbers": tensors(
        ADAPTER, lambda content: content.update({name: tensor.astype(np.int8) for name, tensor in content.items()})
    ),
    "NaN in the adapter": tensors(ADAPTER, poisoned(float("nan"))),
    "adapter weights cut": cut(ADAPTER, 5000),
    "adapter weights too long": lambda folder: (folder / ADAPTER).write_bytes((folder / ADAPTER).read_bytes() + b"x"),
    "adapter weights overlap": header(ADAPTER, overlapping),
    "adapter weights empty": text(ADAPTER, ""),
    "an extra weight renamed": tensors(EXTRAS, renamed),
    "an extra weight of another shape": tensors(EXTRAS, reshaped),
    "infinity in the extras": tensors(EXTRAS, poisoned(float("-inf"))),
    "no extras": gone(EXTRAS),
    "extras cut": cut(EXTRAS, 100),
    "a header that says nonsense": header(EXTRAS, lambda content: content[next(iter(content))].update(shape="x")),
    "routing that nothing was trained for": put(INFO, "settings.routing.depth", 1),
    "a learned scale that is not there": put(INFO, "settings.think.latent_scale", "learned"),
    "a setting out of its range": put(INFO, "settings.think.max_latent_steps", -1),
    "settings that are a list": put(INFO, "settings", []),
    "another schema": put(INFO, "schema", 99),
    "a schema that is true": put(INFO, "schema", True),
    "a latent id of another type": put(INFO, "latent_id", "5"),
    "another latent id": put(INFO, "latent_id", 6),
    "a latent id beyond the vocabulary": put(INFO, "latent_id", 10**6),
    "a base that is a number": put(INFO, "base", 7),
    "a base that is not there": put(INFO, "base", "../elsewhere"),
    "an absolute base": put(INFO, "base", "/etc"),
    "a base of the hub that is not on this machine": put(INFO, "base", "no-such-org/no-such-model"),
    "its own folder as base": put(INFO, "base", "."),
    "baselines that are a list": put(INFO, "baselines", ["../cot"]),
    "reasoner.json is cut": cut(INFO, 30),
    "reasoner.json holds NaN": text(INFO, '{"schema": NaN}'),
    "reasoner.json is deep": text(INFO, "[" * 100_000),
    "tokenizer.json of another model": put("tokenizer.json", "added_tokens", []),
    "tokenizer.json is cut": cut("tokenizer.json", 300),
    "a prompt that lacks the question": put("prompt.json", "template", "{images}"),
    "an image token that is a word": put("prompt.json", "tokens.image", "zebra"),
    "picture settings of a wrong type": put("preprocessor_config.json", "patch_size", "four"),
}
BROKEN_BASES: dict[str, Break] = {
    "config.json {": text("config.json", "{"),
    "a tied head of other values": head_beside(lambda head: np.negative(head, out=head)),
    "another family": put("config.json", "model_type", "llama"),
    "a family that is a list": put("config.json", "model_type", ["qwen2_vl"]),
    "one layer more": put("config.json", "text_config.num_hidden_layers", 9),
    "a million layers": put("config.json", "text_config.num_hidden_layers", 10**6),
    "a width of a billion": put("config.json", "text_config.hidden_size", 10**9),
    "a size as text": put("config.json", "text_config.vocab_size", "64"),
    "heads that do not divide": put("config.json", "text_config.num_attention_heads", 5),
    "no text_config": put("config.json", "text_config", 3),
    "no rotary sections": put("config.json", "text_config.rope_parameters", None),
    "another activation": put("config.json", "text_config.hidden_act", "nope"),
    "sliding windows": put("config.json", "text_config.use_sliding_window", True),
    "quantized": put("config.json", "quantization_config", {"quant_method": "gptq"}),
    "another image token": put("config.json", "image_token_id", 7),
    "a weight lost": tensors("model.safetensors", lambda content: content.pop(first(content))),
    "a weight renamed": tensors("model.safetensors", renamed),
    "a weight of another shape": tensors("model.safetensors", reshaped),
    "NaN in a weight": tensors("model.safetensors", poisoned(float("nan"))),
    "weights cut": cut("model.safetensors", 60_000),
    "no weights": gone("model.safetensors"),
    "an adapter beside the weights": text("adapter_config.json", '{"peft_type": "LORA"}'),
}


def index(files: dict[str, Any]) -> Break:
    """Puts an index in the place of the one file of weights; `files` is its weight_map."""

    def broken(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "part.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))

    return broken


BROKEN_INDEXES: dict[str, Break] = {
    "an index to a shard that is not there": index({"a": "gone.safetensors"}),
    "an index that leads out of the folder": index({"a": "../base/part.safetensors"}),
    "an index of numbers": index({"a": 3}),
    "an index of pickled files": index({"a": "pytorch_model.bin"}),
    "an index that names a weight its shard lacks": index({"a": "part.safetensors"}),
}
HARMLESS: dict[str, Break] = {
    "untouched": lambda folder: None,
    # Nothing is made from adapter_config.json: a pattern there hits nothing, and cannot hang.
    "a pattern that would hang": put("adapter_config.json", "target_modules", "(((a+)+)+)+$"),
    "a pattern that hits everything": put("adapter_config.json", "target_modules", ".*"),
    "another dropout for peft": put("adapter_config.json", "lora_dropout", 0.5),
    "notes of somebody's own": put(INFO, "notes", {"who": "me"}),
}


HARMLESS_BASES: dict[str, Break] = {
    # Every such model was refused, although transformers reads them.
    "a tied head that is the embedding again": head_beside(),
    "the tower's rotary frequencies": tensors(
        "model.safetensors", lambda content: content.update({"visual.rotary_pos_emb.inv_freq": np.zeros(4, np.float32)})
    ),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and an adapter on it, as shipped."""
    folder = tmp_path_factory.mktemp("tiny")
    for name in ("base", "cot"):
        shutil.copytree(resolve_checkpoint(f"tiny/{name}"), folder / name)
    return folder


@pytest.fixture
def own(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "own"))


def refusals(folder: Path) -> tuple[list[str], str | None]:
    """What validate says, and what loading says."""
    problems = check_checkpoint(folder).problems
    try:
        Reasoner.from_checkpoint(folder)
    except CheckpointError as error:
        return problems, str(error)
    return problems, None


def assert_refused(folder: Path) -> None:
    problems, loading = refusals(folder)
    assert problems and loading is not None
    for sentence in [*problems, *loading.splitlines()]:
        assert "\n" not in sentence and "; " in sentence, f"no remedy: {sentence}"
        assert len(sentence) < 700 and "Traceback" not in sentence


@pytest.mark.parametrize("name", BROKEN_ADAPTERS)
def test_a_broken_adapter_is_refused_by_validate_and_by_loading(own: Path, name: str) -> None:
    BROKEN_ADAPTERS[name](own / "cot")
    assert_refused(own / "cot")


@pytest.mark.parametrize("name", [*BROKEN_BASES, *BROKEN_INDEXES])
def test_a_broken_base_is_refused_by_validate_and_by_loading(own: Path, name: str) -> None:
    (BROKEN_BASES | BROKEN_INDEXES)[name](own / "base")
    assert_refused(own / "base")


@pytest.mark.parametrize("name", HARMLESS)
def test_what_does_not_matter_is_taken_by_both(own: Path, name: str) -> None:
    HARMLESS[name](own / "cot")
    assert refusals(own / "cot") == ([], None)


@pytest.mark.parametrize("name", HARMLESS_BASES)
def test_what_other_tools_store_too_is_taken_by_both(own: Path, name: str) -> None:
    HARMLESS_BASES[name](own / "base")
    assert refusals(own / "cot") == ([], None)
    assert load_checkpoint(own / "cot").reasoner.backbone.tied_embeddings


def test_a_broken_base_is_told_of_the_adapter_too(own: Path) -> None:
    BROKEN_BASES["a weight of another shape"](own / "base")
    assert_refused(own / "cot")


def test_a_broken_baseline_is_found(own: Path) -> None:
    put(INFO, "baselines", {"direct": "../base"})(own / "cot")
    assert check_checkpoint(own / "cot").problems == []
    tensors(EXTRAS, poisoned(float("nan")))(own / "base")
    assert any("NaN" in problem for problem in check_checkpoint(own / "cot").problems)
    put(INFO, "baselines", {"direct": "../cot"})(own / "cot")
    assert check_checkpoint(own / "cot").problems == [], "a circle of baselines ends"


def test_quick_reads_no_values(own: Path) -> None:
    tensors(EXTRAS, poisoned(float("nan")))(own / "cot")
    assert check_checkpoint(own / "cot", values=False).problems == []


def test_code_that_a_config_names_is_not_run(own: Path) -> None:
    put("config.json", "auto_map", {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"})(own / "base")
    put("config.json", "_attn_implementation", "somebody/kernel")(own / "base")
    (own / "base" / "evil.py").write_text("raise SystemExit('this was run')")
    assert refusals(own / "base") == ([], None)


def test_the_network_is_asked_only_on_request(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[bool] = []

    def snapshot(name: str, local_files_only: bool, **rest: object) -> str:
        asked.append(not local_files_only)
        if local_files_only:
            raise huggingface_hub.errors.LocalEntryNotFoundError("not here")
        return str(own / "base")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    put(INFO, "base", "some-org/some-model")(own / "cot")
    with pytest.raises(LrkitError, match="give --download"):
        Reasoner.from_checkpoint(own / "cot")
    assert asked == [False]
