"""--keep-sensitive: which matrices are the worst, how a target keeps them, and what is refused."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lrkit.errors import DataError, ExportError
from lrkit.export.calibration.sensitive import KeepSensitive, off, rank_weights, ranked
from lrkit.export.targets.target import Target
from lrkit.export.weights.quantizers.quantizer import Calibration
from lrkit.export.weights.quantizers.rounded import quantize
from lrkit.profile.pages.rounding_page import render_rounding
from tests.commands import lrkit

TARGET = Target.model_validate({"precision": "int4", "int4": {"block": 32, "matrices": {"1.out": "float"}}})
NAMES = ("qkv", "out", "gate_up", "down")


def source(outlier: str) -> Any:
    """Two layers; one number of one matrix is so large that its block becomes coarse."""

    def weight(role: str) -> np.ndarray:
        made = np.random.default_rng(sum(map(ord, role))).standard_normal((8, 64)).astype(np.float32)
        if role == outlier:
            made[:, 5] = 40.0
        return made

    recipe = SimpleNamespace(gated=True)
    return SimpleNamespace(weight=weight, dimensions=SimpleNamespace(num_layers=2, recipe=recipe))


def test_products_weigh_columns_by_their_inputs() -> None:
    weight = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    weight[:, 40] = 30.0
    made, seen = quantize(weight, 32), np.random.default_rng(1).standard_normal((500, 64)).astype(np.float32)
    seen[:, 32:] *= 0.01  # the block with the large weight meets next to nothing
    wrong, whole = (float(np.linalg.norm(seen @ one.T)) for one in (weight - made.dequantize(), weight))
    assert off(weight, made, Calibration.of(seen)) == pytest.approx(wrong / whole, rel=1e-3)
    plain = np.linalg.norm(weight - made.dequantize()) / np.linalg.norm(weight)
    assert not 0.8 < wrong / whole / float(plain) < 1.2, "and so differ from the weights' own error"


def test_the_worst_come_first_and_what_is_kept_already_is_left_out() -> None:
    ranks = rank_weights(source("1.gate_up"), TARGET)
    assert set(ranks) == {f"{layer}.{name}" for layer in (0, 1) for name in NAMES} - {"1.out"}
    assert list(ranks.values()) == sorted(ranks.values(), reverse=True)
    assert list(ranked({"0.out": 1.0, "1.out": 2.0, "2.out": 1.0})) == ["1.out", "0.out", "2.out"]


@pytest.mark.parametrize("kept_as", ["int8", "float"])
def test_a_target_keeps_the_worst(kept_as: str) -> None:
    keep = KeepSensitive(2, kept_as)
    made = keep.chosen(TARGET, {"0.out": 0.1, "1.down": 0.3, "1.out": 9.0, "0.qkv": 0.2, "head": 5.0})
    assert made.int4.matrices == {"1.out": "float", "1.down": kept_as, "0.qkv": kept_as}
    assert keep.report["kept"] == ["1.down", "0.qkv"] and list(keep.report["errors"]) == ["1.down", "0.qkv", "0.out"]
    held = made.scheme_for("1.down", "layers")
    assert (None if held is None else held.name) == (None if kept_as == "float" else "int8")
    assert keep.recorded == {"sensitive": keep.report} and KeepSensitive(0).recorded == {}


def test_more_than_there_are_is_one_sentence() -> None:
    with pytest.raises(
        ExportError, match=r"^--keep-sensitive is 3, and 2 matrices of layers have 4 bits; give at most"
    ):
        KeepSensitive(3).chosen(TARGET, {"0.out": 0.1, "1.down": 0.3, "1.out": 9.0})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--int4", "--keep-sensitive", "-1"], "--keep-sensitive is -1; give a number of matrices, 0 or more"),
        (["--keep-sensitive", "2"], "that have 4 bits, and precision fp32 has none; ask for --int4, or leave it out"),
        (["--keep-sensitive", "2", "precision=int8"], "and precision int8 has none; ask for --int4, or leave it out"),
        (["--int4", "--keep-sensitive", "2", "--keep-as", "int2"], "keeps matrices as int8 or float, not 'int2'"),
        (["--int4", "--keep-sensitive", "99"], "is 99, and 16 matrices of layers have 4 bits; give at most so many"),
    ],
)  # fmt: skip
def test_wrong_numbers_are_one_sentence(options: list[str], said: str, capsys: Any, tmp_path: Any) -> None:
    assert lrkit("export", "tiny", *options, "--samples", 1, "-o", tmp_path / "never") == 2
    assert said in " ".join(capsys.readouterr().err.split()) and list(tmp_path.iterdir()) == []


def test_random_weights_are_held_alike(capsys: Any, tmp_path: Any) -> None:
    assert lrkit("export", "random:qwen2-vl-2b", "--int4", "--keep-sensitive", 1, "-o", tmp_path / "never") == 2
    assert "no random matrix is worse than another; leave it out" in " ".join(capsys.readouterr().err.split())


def test_the_pages_of_a_bundle_show_phases_and_matrices(tmp_path: Any) -> None:
    phases = {"norm": "n", "latent.1": {"mean": 0.5, "largest": None, "samples": 3}, "speech": {"words_alike": 0.75}}
    provenance = {
        "sensitive": {"kept": ["1.down"], "kept_as": "int8", "errors": {"1.down": 0.2, "0.out": 0.1}},
        "calibration": {"latent": {"off": {"0.qkv": 0.05}}},
    }
    manifest: Any = SimpleNamespace(
        name="mine", validation={"latent": SimpleNamespace(measured={"phases": phases})}, provenance=provenance
    )
    pages = render_rounding(manifest, tmp_path / "mine-errors")
    said = pages[0].read_text()
    assert "| latent | latent.1 | 0.5000 | - | 3 |" in said and "| latent | speech | 75.0% | - | None |" in said
    assert "| weights | 1.down | 0.2000 | int8 |" in said and "| products, latent | 0.qkv | 0.0500 | - |" in said
    assert pages[1].read_text().count("<rect") == 4
    old: Any = SimpleNamespace(name="old", validation={"latent": SimpleNamespace(measured={})}, provenance={})
    with pytest.raises(DataError, match="the bundle of old has no errors by phase"):
        render_rounding(old, tmp_path / "old")
