"""A published folder is read as transformers reads it, and what is wrong in one is told in a sentence."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers
from accelerate import init_empty_weights
from transformers import AutoConfig

from lrkit import Reasoner
from lrkit.errors import LrkitError, UserError
from lrkit.export.weights.source import read_source
from lrkit.export.weights.streaming import stream_source
from lrkit.families.table import FAMILIES, geometry_of, read_layout
from lrkit.model.checkpoint import load_checkpoint
from lrkit.model.open_backbone import config_of
from lrkit.runtime.checks.checkpoint_files import check_checkpoint
from tests.families.cases import ROWS, FamilyCase, peer_of

Variant = tuple[FamilyCase, Path]
WRONG: tuple[Any, ...] = (None, "x", -1, 0, [], {}, 2.5, True, 10**30)
"""What stands in place of a value in the file of a stranger."""
MANY, FEW = 64, 2
MOST, LONG = 130, 200_000
"""Changes that are tried of a file, and the characters from which on it is a quarter of them."""


def test_every_family_of_the_table_goes_through_the_battery() -> None:
    assert set(FAMILIES) == set(ROWS)


def test_a_published_folder_is_a_whole_checkpoint(variant: Variant) -> None:
    report = check_checkpoint(variant[1])
    assert report.problems == [] and report.plain


def test_one_of_the_layouts_is_in_shards_and_all_name_the_family(case: FamilyCase, variants: list[Path]) -> None:
    assert any((folder / "model.safetensors.index.json").is_file() for folder in variants)
    for folder in variants:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        assert values["model_type"] == case.name
        assert peer_of(case).model in values["architectures"]


def test_weights_by_config_are_those_of_the_real_model(variant: Variant) -> None:
    """The list of names and shapes that is made without torch, against the family's own model."""
    case, folder = variant
    layout = read_layout(folder)
    for config in (config_of(layout), AutoConfig.from_pretrained(folder)):
        with init_empty_weights():
            model = getattr(transformers, peer_of(case).model)(config)
        real = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        for copied in layout.copies:
            real.pop(copied, None)
        assert real == dict(layout.tensors)
    adapted = {name: tuple(reversed(shape)) for name, shape in layout.adapted.items()}
    assert adapted == {name: layout.tensors[f"{name}.weight"] for name in adapted} and adapted


def test_weights_streamed_from_the_files_are_those_that_are_loaded(variant: Variant) -> None:
    folder = variant[1]
    streamed, loaded = stream_source(folder), read_source(load_checkpoint(folder).reasoner)
    for role in ("embedding", "head", "norm", "0.qkv", "0.out", "1.down"):
        assert (streamed.weight(role) == loaded.weight(role)).all(), role


def test_latents_are_refused_in_a_sentence_that_says_how_to_get_them(folder: Path) -> None:
    with pytest.raises(UserError, match=r"no latents.*cot or direct.*lrkit train"):
        Reasoner.from_checkpoint(folder).baseline("latent")


def changed(values: Any) -> Iterator[tuple[str, Any]]:
    """(what was changed, the same with one value wrong or gone), for every value at any depth: half of `WRONG` each.
    Of a long list or mapping, as of a vocabulary, the first and the last few values."""
    items = list(values.items()) if isinstance(values, dict) else list(enumerate(values))
    items = items if len(items) <= MANY else [*items[:FEW], *items[-FEW:]]
    for number, (key, value) in enumerate(items):
        for wrong in WRONG[number % 2 :: 2]:
            yield f"{key}={wrong}", _with(values, key, wrong)
        if isinstance(values, dict):
            yield f"no {key}", {name: one for name, one in values.items() if name != key}
        if isinstance(value, dict | list):
            for what, inner in changed(value):
                yield f"{key}.{what}", _with(values, key, inner)


def _with(values: Any, key: Any, value: Any) -> Any:
    if isinstance(values, dict):
        return {**values, key: value}
    return [*values[:key], value, *values[key + 1 :]]


def check_sentences(folder: Path, name: str, read: Any) -> int:
    """Number of changes to the file `name` that are refused; each must be one `LrkitError` of short lines."""
    refused, text = 0, (folder / name).read_text(encoding="utf-8")
    every = list(changed(json.loads(text)))
    step = 1 + len(every) // (MOST if len(text) < LONG else MOST // 4)
    for what, values in every[::step]:
        (folder / name).write_text(json.dumps(values), encoding="utf-8")
        try:
            read()
        except LrkitError as error:
            refused += 1
            assert all(0 < len(line) < 500 for line in str(error).splitlines()), (what, str(error))
            assert not re.search("pydantic|input_value|validation error", str(error)), (what, str(error))
        except Exception as error:
            raise AssertionError(f"{name} with {what}: {error!r}") from error
    return refused


def copied(folder: Path, place: Path) -> Path:
    """The folder without its weights."""
    return Path(shutil.copytree(folder, place / "copy", ignore=shutil.ignore_patterns("*.safetensors")))


def test_any_wrong_value_of_config_json_is_read_or_told(variant: Variant, tmp_path: Path) -> None:
    folder = copied(variant[1], tmp_path)
    assert check_sentences(folder, "config.json", lambda: read_layout(folder)) > 5


def test_any_wrong_value_of_the_image_processors_file_is_read_or_told(variant: Variant, tmp_path: Path) -> None:
    case, source = variant
    folder = copied(source, tmp_path)
    name = "preprocessor_config.json"
    name = name if (folder / name).is_file() else "processor_config.json"
    kind = geometry_of(case.name)
    assert check_sentences(folder, name, lambda: kind.from_folder(folder)) > 2
