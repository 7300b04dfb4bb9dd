"""In which number type a checkpoint is asked: as trained, or as asked for, which is then said (`--dtype`)."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lrkit import Reasoner
from lrkit.checkpoints.trained_in import TrainedIn
from lrkit.errors import UserError
from lrkit.resources import resolve_checkpoint
from tests.commands import lrkit

QUESTION = "Take 2 hops. Which room are you in? Start in room 0"


@pytest.fixture
def rooms(tmp_path: Path) -> str:
    Image.effect_noise((80, 32), 90).convert("RGB").save(tmp_path / "rooms.png")
    return str(tmp_path / "rooms.png")


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """The shipped adapter beside its base; `trained_in` notes a type in its reasoner.json."""
    for name in ("base", "cot"):
        shutil.copytree(resolve_checkpoint(f"tiny/{name}"), tmp_path / name)
    return tmp_path / "cot"


def trained_in(checkpoint: Path, numbers: object) -> Path:
    file = checkpoint / "reasoner.json"
    info = json.loads(file.read_text())
    file.write_text(json.dumps({**info, "provenance": {**info["provenance"], "numbers": numbers}}))
    return checkpoint


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_another_type_than_trained_in_is_said(
    dtype: str, rooms: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model trained in float32 is not served in bfloat16 without a word."""
    report = tmp_path / "answer.json"
    asked = ("ask", "tiny/cot", "--image", rooms, QUESTION, "--mode", "cot", "--max-new-tokens", "3")
    assert lrkit(*asked, "--dtype", dtype, "--json", str(report)) == 0
    assert f"note: the model was trained in float32 and is asked in {dtype}" in capsys.readouterr().err
    assert json.loads(report.read_text())["dtype"] == dtype
    for quiet in ((), ("--dtype", "float32"), ("--dtype", "auto")):
        assert lrkit(*asked, *quiet, "--json", str(report)) == 0
        assert "note" not in capsys.readouterr().err
        assert json.loads(report.read_text())["dtype"] == "float32"


def test_eval_reports_the_type(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "report.json"
    few = ("--samples", "1", "--latency-samples", "0", "--modes", "latent", "--max-new-tokens", "2")
    assert lrkit("eval", "tiny", *few, "--dtype", "bfloat16", "--json", str(report)) == 0
    assert json.loads(report.read_text())["runs_on"]["dtype"] == "bfloat16"
    assert "trained in float32" in capsys.readouterr().err


def test_the_default_is_what_it_was_trained_in(trained: Path, rooms: str) -> None:
    """Not what the base has on disk: an adapter learns on the base as it was computed."""
    for numbers, dtype, note in (
        ({"backbone": "bfloat16", "computed": "bfloat16"}, "bfloat16", None),
        ({"backbone": "float16"}, "float16", None),
        ({"backbone": "float32", "computed": "bfloat16"}, "float32", None),
    ):
        engine: Any = Reasoner.from_checkpoint(trained_in(trained, numbers)).engine
        assert (engine.dtype, engine.note) == (dtype, note)
    # Weights in float32 under autocast to bfloat16: either type is how it was trained.
    assert Reasoner.open(trained, dtype="bfloat16").engine.note is None
    asked = Reasoner.open(trained, dtype="float16")
    assert asked.engine.note is not None and "trained in float32 and is asked in float16" in asked.engine.note
    assert asked.ask(rooms, QUESTION, max_new_tokens=2).dtype == "float16"


@pytest.mark.parametrize(
    "numbers", [None, 3, [], {}, {"backbone": "int4"}, {"backbone": ["float32"]}, {"backbone": {}}]
)
def test_without_a_note_the_type_on_disk_is_taken(numbers: object, trained: Path) -> None:
    """reasoner.json of older versions, and of strangers."""
    info = {"provenance": {"numbers": numbers}}
    assert TrainedIn.of(info, str(resolve_checkpoint("tiny/base"))) == TrainedIn("float32")
    assert TrainedIn.of({"provenance": numbers}, str(trained.parent / "nowhere")) == TrainedIn(None)
    assert Reasoner.from_checkpoint(trained_in(trained, numbers)).engine.dtype == "float32"


def test_older_configurations_name_the_type_otherwise(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"torch_dtype": "bfloat16"}))
    assert TrainedIn.of({}, str(tmp_path)) == TrainedIn("bfloat16")
    for broken in ("{", "[]", "[" * 100_000, json.dumps({"torch_dtype": ["x"]})):
        (tmp_path / "config.json").write_text(broken)
        assert TrainedIn.of({}, str(tmp_path)) == TrainedIn(None)


def test_unknown_types_and_bundles_are_refused(bundle: Path) -> None:
    for wrong in ("int8", "float64", "bf16"):
        with pytest.raises(UserError, match=r"unknown dtype .* give one of float32, bfloat16, float16, or auto"):
            Reasoner.from_checkpoint("tiny", dtype=wrong)
    with pytest.raises(UserError, match="dtype is empty; give its name as text, or None"):
        Reasoner.from_checkpoint("tiny", dtype="")
    with pytest.raises(UserError, match="is a bundle, and dtype is for checkpoints"):
        Reasoner.open(bundle, dtype="float16")
    assert Reasoner.open(bundle, dtype="auto").engine.dtype == "fp32"


def test_torchs_own_names_are_taken() -> None:
    given: Any = torch.bfloat16
    assert Reasoner.open("tiny/base", dtype=given).engine.dtype == "bfloat16"
