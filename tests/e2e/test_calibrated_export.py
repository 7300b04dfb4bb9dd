"""An export calibrated on rollouts: every phase is seen, the program holds the integers, an interrupted one goes on."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrkit import Reasoner
from lrkit.cli.main import main
from lrkit.contract.bundle.bundle_folder import open_bundle
from lrkit.contract.quantized import Quantized
from lrkit.data.trail import trail_set
from lrkit.errors import ExportError
from lrkit.export.calibration import calibrate
from lrkit.export.calibration.calibrate import Calibrator
from lrkit.export.calibration.gather import CalibrationSet
from lrkit.export.calibration.made import Made
from lrkit.export.calibration.matrices import Matrices
from lrkit.export.subject import CheckpointOrigin
from lrkit.export.targets.target import Target, limits_of
from lrkit.export.weights.source import read_source
from tests.bundles import CAPACITY, QUESTION, picture, processor

SAMPLES = trail_set("main", "train", 3)


def target_of(**int4: Any) -> Target:
    chosen = {"method": "gptq", "block": 32, "accuracy_level": 0, **int4}
    return Target.model_validate({"precision": "int4", "limits": CAPACITY, "int4": chosen})


def made_by(calibrator: Calibrator, checkpoint: Path) -> Made:
    origin, seen = CheckpointOrigin(checkpoint), processor()
    limits = limits_of(calibrator.target, 3, seen.geometry)
    return calibrator.made("latent", origin.reasoner, seen, limits, lambda what, done, total: None)


def test_all_phases_are_gathered_and_an_interrupted_calibration_goes_on(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, target = bundle.parent / "latent", target_of()
    given = CalibrationSet("trail:main", SAMPLES)
    calibrator = Calibrator(target, given, tmp_path / "kept", "one", memory=1)
    whole = made_by(calibrator, checkpoint).integers
    report = calibrator.report["latent"]
    assert set(whole) == {f"{i}.{name}" for i in range(4) for name in ("qkv", "out", "gate_up", "down")} | {"head"}
    assert report["rounds"] == 5, "layer by layer, then the head"
    asked: list[str] = []
    gather = calibrate.gather

    def noted(*args: Any) -> Any:
        asked.append(args[5][0].role)
        return gather(*args)

    monkeypatch.setattr(calibrate, "gather", noted)
    for number in (2, 3, 4):  # as if it had been stopped behind the second layer
        (tmp_path / "kept" / "latent" / f"{number}.safetensors").unlink()
    again = made_by(Calibrator(target, given, tmp_path / "kept", "one", memory=1), checkpoint).integers
    assert asked == ["2.qkv", "3.qkv", "head"]
    for role, one in whole.items():
        np.testing.assert_array_equal(one.integers, again[role].integers)
    asked.clear()
    made_by(Calibrator(target, given, tmp_path / "kept", "another checkpoint", memory=1), checkpoint)
    assert len(asked) == 5, "nothing of another checkpoint is taken"


def test_latent_steps_and_speech_are_seen_where_they_count(bundle: Path, tmp_path: Path) -> None:
    checkpoint, target = bundle.parent / "latent", target_of(head="float")
    calibrator = Calibrator(target, CalibrationSet("trail:main", SAMPLES), tmp_path / "kept", "one")
    made_by(calibrator, checkpoint)
    counts = calibrator.report["latent"]["inputs"]
    tokens = sum(len(processor().encode_prompt(one.images, one.question).ids) for one in SAMPLES)
    assert counts["prompt"] >= tokens, "routed tokens pass again"
    assert counts["latent"] >= 3 * 3 * 5, "three steps of each, with four replayed tokens"
    assert 0 < counts["speech"] <= 3 * 6


def test_torch_holds_what_the_integers_stand_for(bundle: Path) -> None:
    """Rows of queries, keys and values are sorted and scaled in a program, and find back."""
    reasoner, target = CheckpointOrigin(bundle.parent / "latent").reasoner(), target_of()
    source = read_source(reasoner)
    matrices = Matrices(reasoner, source, target)
    for matrix in (one for layer in matrices.all() for one in layer if one.part == "layers"):
        weight = source.weight(matrix.role)
        step = float(np.abs(weight).max()) / 7
        integers = np.rint(weight / step).reshape(len(weight), -1, 32).clip(-8, 7).astype(np.int8)
        held = Quantized(integers, np.full(integers.shape[:2], step, np.float32), 4)
        matrices.hold(matrix, held)
        np.testing.assert_allclose(source.weight(matrix.role), held.dequantize(), rtol=1e-5, atol=1e-7)


@pytest.mark.long
def test_an_export_calibrates_and_leaves_nothing_behind(bundle: Path, tmp_path: Path) -> None:
    place = tmp_path / "calibrated"
    options = [
        "--int4",
        "--int4-method",
        "gptq",
        "--calibration-samples",
        "2",
        "--calibration-mix",
        "prompt=1,latent=2",
    ]
    changes = ["int4.block=32", "int4.matrices={'*.down': int8}", *(f"limits.{k}={v}" for k, v in CAPACITY.items())]
    asked = ["--samples", "2", "--no-baselines", "-o", str(place), "--allow-unproven"]
    with pytest.raises(SystemExit) as left:
        main(["export", str(bundle.parent / "latent"), *options, *changes, *asked])
    assert left.value.code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["calibrated"]
    manifest = open_bundle(place).manifest
    report = manifest.provenance["calibration"]["latent"]
    assert report["mix"] == {"prompt": 1.0, "latent": 2.0, "speech": 0.0} and report["method"] == "gptq"
    assert manifest.target["int4"]["matrices"] == {"*.down": "int8"}
    assert Reasoner.load(place).ask(picture(), QUESTION).latent_steps == 3


def test_a_set_with_fewer_inputs_than_columns_is_refused(bundle: Path, tmp_path: Path) -> None:
    calibrator = Calibrator(
        target_of(), CalibrationSet("short.txt", (), ("Start in room 4",)), tmp_path / "kept", "one"
    )
    with pytest.raises(
        ExportError, match=r"the calibration set short.txt gave \d+ inputs of \d.\w+, which has \d+ col"
    ):
        made_by(calibrator, bundle.parent / "latent")
    shutil.rmtree(tmp_path / "kept")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--int4", "--int4-method", "gtpq"], "--int4-method is 'gtpq'; it must be one of rtn, search, gptq"),
        (["--int4", "--calibration", "x.txt"], "--calibration is for --int4-method gptq and awq with integers, and"),
        (["--calibration-mix", "prompt=1"], "--calibration-mix is for --int4-method gptq and awq with integers, and"),
        (["--int4", "--int4-method", "gptq", "--calibration-mix", "promt=1"], "--calibration-mix is 'promt=1'; g"),
        (["--int4", "--int4-method", "gptq", "--calibration-mix", "latent=no"], "--calibration-mix is 'latent=no';"),
        (["--int4", "--int4-method", "gptq", "--calibration-mix", "prompt=0"], "--calibration-mix is 'prompt=0';"),
        (["--int4", "--int4-method", "gptq", "--calibration-samples", "0"], "--calibration-samples is 0; give 1"),
        (["--int4", "--int4-method", "gptq", "--calibration", "no.txt"], "no.txt"),
    ],
)  # fmt: skip
def test_wrong_options_are_one_sentence(bundle: Path, options: list[str], said: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as left:
        main(["export", str(bundle.parent / "latent"), *options, "--samples", "1", "-o", "never"])
    text = " ".join(capsys.readouterr().err.split())
    assert left.value.code == 2 and said in text, text
