"""A quantized checkpoint through the command line: the program holds the integers of its files, and answers."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from lrkit import Reasoner
from lrkit.resources import resolve_checkpoint
from tests.bundles import QUESTION, picture
from tests.commands import lrkit
from tests.quantized import Base, awq, gptq, write_gguf, write_quantized

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}


def stored(place: Path) -> dict[str, np.ndarray]:
    """Initializers of the first program, wherever they lie."""
    file = next(place.glob("*.onnx"))
    model = onnx.load(str(file))
    return {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}


@pytest.mark.long
@pytest.mark.parametrize("kind", ["gptq", "awq", "q4_1"])
def test_a_program_holds_the_integers_of_the_files(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = Base.of(resolve_checkpoint("tiny/base"), tmp_path)
    if kind == "q4_1":
        folder = write_gguf(base, tmp_path / kind, "Q4_1", embedding="Q8_0")
    else:
        config, pack = {"gptq": (GPTQ, gptq), "awq": (AWQ, awq)}[kind]
        folder = write_quantized(base, tmp_path / kind, config, pack, 32, symmetric=False)
    place, figures = tmp_path / "bundle", tmp_path / "figures.json"
    bounds = ("limits.max_new_tokens=8", "int4.accuracy_level=0")
    asked = ("export", folder.path, "--int4", *bounds, "--samples", 2, "--allow-unproven", "-o", place)
    assert lrkit(*asked, "--json", figures) == 0, capsys.readouterr().err
    report = json.loads(figures.read_text())["manifest"]["provenance"]["stored_integers"]
    kept = next(iter(report.values())) if "kept" not in report else report
    assert not kept.get("again")
    arrays = stored(place)
    for number in range(4):
        for part, role in (("self_attn.o_proj", "out"), ("mlp.down_proj", "down")):
            drawn = folder.matrices[f"model.language_model.layers.{number}.{part}.weight"]
            packed = arrays[f"{number}.{role}.int4"]
            unpacked = np.stack([packed & 15, packed >> 4], -1).reshape(drawn.unsigned.shape)
            np.testing.assert_array_equal(unpacked, drawn.unsigned)
    assert Reasoner.load(place).ask(picture(), QUESTION, mode="direct").ar_steps >= 1
