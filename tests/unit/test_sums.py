"""Sums of inputs: half of each is held, files keep them to the last bit, and bfloat16 changes no weight."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lrkit.data.trail import trail_set
from lrkit.export.calibration import fast_numbers, gather
from lrkit.export.calibration.calibrate import groups_of
from lrkit.export.calibration.fast_numbers import quicken, to_bfloat16
from lrkit.export.calibration.gather import CalibrationSet, guess_counts
from lrkit.export.calibration.matrices import Matrices, Matrix
from lrkit.export.calibration.sums import PHASES, STRIP, Sums, Symmetric, keep_sums, kept_sums
from lrkit.export.targets.target import Target, limits_of
from lrkit.export.weights.source import read_source
from lrkit.model.reasoner import LatentReasoner
from tests.bundles import CAPACITY, SETTINGS, processor
from tests.tiny import tiny_reasoner

WIDTH = 2 * STRIP + 40
ONE_EACH = dict.fromkeys(PHASES, 1.0)


def test_half_of_a_wide_sum_is_held_and_gives_all_of_it() -> None:
    rows = torch.randn(30, WIDTH)
    held = Symmetric(WIDTH)
    held.add(rows, 0.5)
    assert sum(strip.numel() for strip in held.strips) * 4 == Symmetric.bytes_of(WIDTH) < 0.75 * 4 * WIDTH**2
    whole = np.zeros((WIDTH, WIDTH), np.float32)
    held.add_to(whole, 2.0)
    np.testing.assert_allclose(whole, (rows.T @ rows).numpy(), atol=1e-4)


def test_sums_that_are_kept_come_back_to_the_last_bit(tmp_path: Path) -> None:
    given = {"0.down": Sums(WIDTH), "0.qkv": Sums(8, {"prompt": 0.5, "latent": 2.0})}
    for phase, count in (("prompt", 9), ("latent", 3)):
        for one in given.values():
            one.add(phase, torch.randn(count, one.width))
    keep_sums(tmp_path / "kept", given, 5)
    again = {"0.down": Sums(WIDTH), "0.qkv": Sums(8, given["0.qkv"].shares)}
    assert kept_sums(tmp_path / "kept", again) == 5
    for role, one in given.items():
        assert again[role].count == {"prompt": 9, "latent": 3}
        np.testing.assert_array_equal(again[role].calibration(ONE_EACH).hessian, one.calibration(ONE_EACH).hessian)
    assert kept_sums(tmp_path / "kept", {"1.down": Sums(WIDTH)}) == 0, "of other matrices"
    assert kept_sums(tmp_path / "none", again) == 0


def test_layers_are_gathered_together_as_memory_allows() -> None:
    layers = [[Matrix(f"{i}.qkv", "layers", torch.nn.Linear(1, 1), 64)] for i in range(5)]
    size = Symmetric.bytes_of(64)
    for memory, wanted in ((1, [1, 1, 1, 1, 1]), (2 * size, [2, 2, 1]), (5 * size, [5])):
        groups = list(groups_of(layers, memory))
        assert [len(group.layers) for group in groups] == wanted
        assert [group.first for group in groups] == list(np.cumsum([0, *wanted[:-1]]))


def watched(reasoner: LatentReasoner) -> list[Matrix]:
    target = Target.model_validate({"precision": "int4", "int4": {"block": 32, "head": "float"}, "limits": CAPACITY})
    return [one for layer in Matrices(reasoner, read_source(reasoner), target).all() for one in layer]


def test_a_reading_that_was_interrupted_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reasoner, seen = tiny_reasoner(SETTINGS["latent"]).eval(), processor()
    limits = limits_of(Target.model_validate({"limits": CAPACITY}), 3, seen.geometry)
    given = CalibrationSet("trail:main", trail_set("main", "train", 3), (), ONE_EACH)
    asked = (reasoner, seen, "latent", limits, given, watched(reasoner))
    whole = gather.gather(*asked)
    guessed = guess_counts(*asked[:5], asked[5][0])
    assert guessed == whole["0.qkv"].count, "no more readings than are looked at beforehand"
    monkeypatch.setattr(gather, "KEEP_SECONDS", -1.0)

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gather.gather(*asked, progress=stop, file=tmp_path / "kept")
    numbers: list[int] = []
    again = gather.gather(*asked, progress=lambda done, total: numbers.append(done), file=tmp_path / "kept")
    assert numbers == [3], "two were kept"
    for role, one in whole.items():
        assert again[role].count == one.count
        np.testing.assert_array_equal(again[role].calibration(ONE_EACH).hessian, one.calibration(ONE_EACH).hessian)


def test_only_large_models_whose_weights_are_bfloat16_compute_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    reasoner = tiny_reasoner(SETTINGS["latent"]).eval()
    weights = [one.module.weight for one in watched(reasoner)]
    monkeypatch.setattr(fast_numbers, "multiplies_bfloat16", lambda: True)
    to_bfloat16(reasoner)
    buffers = {buffer.dtype for buffer in reasoner.backbone.model.buffers() if buffer.is_floating_point()}
    assert buffers <= {torch.float32}, "angles keep their digits"
    assert quicken(reasoner, weights) == "bfloat16", "as it came"
    for weight in reasoner.backbone.model.parameters():
        weight.data = weight.data.float()
    assert quicken(reasoner, weights) == "float32", "it is small"
    monkeypatch.setattr(fast_numbers, "LEAST_WEIGHTS", 1000)
    weights[0].data[0, 0] = 1 + 2**-12
    assert quicken(reasoner, weights) == "float32", "one weight would change"
    weights[0].data[0, 0] = 1
    assert quicken(reasoner, weights) == "bfloat16" and weights[0].dtype == torch.bfloat16
