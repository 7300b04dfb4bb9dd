"""Every shipped shape, cut to a few layers: its program is torch's, and the bundle answers.

Widths, vocabularies and pictures stay as published, so that a size that only a real model has is met here.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lrkit.resources import list_resources
from lrkit.runtime.sdk import Reasoner
from tests.commands import lrkit

Values = dict[str, Any]


def _flat(config: Values) -> Values:
    return {**config, "num_hidden_layers": 2, "vision_config": {**config["vision_config"], "depth": 1}}


def _windows(config: Values) -> Values:
    vision = {**config["vision_config"], "depth": 2, "fullatt_block_indexes": [1]}
    return {**config, "num_hidden_layers": 2, "vision_config": vision}


def _deep(config: Values) -> Values:
    vision = {**config["vision_config"], "depth": 2, "deepstack_visual_indexes": [0, 1]}
    return {**config, "text_config": {**config["text_config"], "num_hidden_layers": 2}, "vision_config": vision}


def _views(config: Values) -> Values:
    parts = {part: {**config[part], "num_hidden_layers": 1} for part in ("text_config", "vision_config")}
    return {**config, **parts}


def _codes(config: Values) -> Values:
    return {**config, "num_hidden_layers": 1}


CUTS: dict[str, Callable[[Values], Values]] = {
    "qwen2_vl": _flat, "qwen2_5_vl": _windows, "qwen3_vl": _deep, "idefics3": _views, "smolvlm": _views,
    "chameleon": _codes,
}  # fmt: skip
"""Family -> its config.json with the fewest layers."""


@pytest.mark.slow
@pytest.mark.parametrize("name", [resource.name for resource in list_resources("shape")])
def test_a_cut_shape_is_exported_and_answers(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = next(resource.path for resource in list_resources("shape") if resource.name == name)
    values = json.loads(file.read_text(encoding="utf-8"))
    cut = tmp_path / f"{name}-cut.json"
    cut.write_text(json.dumps({**values, "config": CUTS[values["family"]](values["config"])}), encoding="utf-8")
    place, figures = tmp_path / "bundle", tmp_path / "figures.json"
    small = ("int4.accuracy_level=0", "limits.max_new_tokens=4")
    asked = ("export", f"random:{cut}", "--int4", *small, "-o", place, "--json", figures)
    assert lrkit(*asked) == 0, capsys.readouterr().err
    found = json.loads(figures.read_text(encoding="utf-8"))["manifest"]["validation"]["latent"]
    assert found["passed"], found["measured"]
    assert set(found["measured"]["agreement"].values()) == {1.0}
    answer = Reasoner.load(place).ask([], "Take 4 hops.", max_new_tokens=3)
    assert answer.spoken_tokens == 3
