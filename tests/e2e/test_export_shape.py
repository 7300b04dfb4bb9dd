"""`lrkit export random:SHAPE`: a bundle of random weights, compared with torch, through the command line."""

import json

import numpy as np
import pytest

from lrkit.export.shape import RandomWeights
from lrkit.runtime.checks.bundle_check import check_bundle
from tests.commands import lrkit
from tests.small_shape import SHAPE

WEIGHTS = 114_848
"""In all its tensors."""


@pytest.fixture
def shape(tmp_path):
    file = tmp_path / "shape.json"
    file.write_text(json.dumps(SHAPE))
    return file


@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_an_int4_bundle_of_a_shape(shape, tmp_path, tied, capsys):
    """With activations in float32 the program computes what torch does with the values of its integers."""
    shape.write_text(json.dumps({**SHAPE, "tied_embeddings": tied}))
    figures = tmp_path / "figures.json"
    changes = ("int4.vision=int4", "int4.block=32", "int4.accuracy_level=0", "limits.max_new_tokens=12")
    place = tmp_path / "bundle"
    asked = ("export", f"random:{shape}", "--int4", *changes, "-o", place, "--json", figures)
    assert lrkit(*asked) == 0, capsys.readouterr().err
    manifest = json.loads(figures.read_text())["manifest"]
    found = manifest["validation"]["latent"]
    assert found["passed"] and found["num_samples"] == 1 and "weights are random" in found["tolerance_reason"]
    assert max(found["measured"]["prefill_logits"], found["measured"]["latent_states"]) < 1e-5
    assert set(found["measured"]["agreement"].values()) == {1.0}
    assert found["measured"]["accuracy_program"] is None, "random weights have no right answer"
    recorded = manifest["samples"][0]
    assert (recorded["latent_steps"], len(recorded["token_ids"])) == (4, 12)
    entry = manifest["programs"]["latent"]
    assert entry["bytes_by_part"]["embedding"] == 256 * (64 + 4), "one byte a weight, one scale a row"
    assert manifest["provenance"]["checkpoint"]["shape"]["weights"] == WEIGHTS
    checked = check_bundle(place)
    assert checked.problems == []
    short = ("runs.1.max_new_tokens=12", "runs.4.max_new_tokens=12", "repeats=1")
    asked = ("profile", place, "--suite", "shape-bundle", *short, "-o", tmp_path)
    assert lrkit(*asked) == 0, capsys.readouterr().err
    report = json.loads((tmp_path / "report.json").read_text())
    assert {run["id"]: run["rows"][0]["spoken_tokens"] for run in report["runs"]} == {
        "latent": 7,
        "cot": 12,
        "direct": 7,
        "follow-up": 7,
        "follow-up-cot": 12,
    }
    first = report["runs"][0]
    assert (first["rows"][0]["patches"], first["rows"][0]["pictures"], first["rows"][0]["correct"]) == (160, 1, None)
    assert set(first["ceilings"]) == {"vision", "prefill", "think", "speak"}


def test_bundles_of_a_shape_are_profiled_at_forced_lengths(shape, tmp_path, capsys):
    """The suite for shapes once refused every bundle. Two numbers of replayed tokens are two bundles, asked by turns,
    about a picture of the size that was asked for."""
    for number in (0, 3):
        changes = (f"model.replay.num_tokens={number}", "limits.max_new_tokens=12")
        place = tmp_path / f"k{number}"
        asked = ("export", f"random:{shape}", *changes, "--samples", "0", "--allow-unproven", "-o", place)
        assert lrkit(*asked) == 0, capsys.readouterr().err
    forced = ("forced.cot_tokens=9", "forced.answer_tokens=3", "samples.0.picture=[40,32]", "repeats=1")
    assert lrkit("profile", tmp_path / "k0", tmp_path / "k3", *forced, "-o", tmp_path / "p") == 0
    report = json.loads((tmp_path / "p" / "report.json").read_text())
    rows = {run["id"]: run["rows"][0] for run in report["runs"]}
    counted = ("latent_steps", "spoken_tokens", "replayed_tokens")
    assert {name: tuple(row[key] for key in counted) for name, row in rows.items()} == {
        "k0/latent": (4, 3, 0), "k0/cot": (0, 12, 0), "k0/direct": (0, 3, 0),
        "k0/follow-up": (4, 3, 0), "k3/follow-up": (4, 3, 12),
        "k3/latent": (4, 3, 12), "k3/cot": (0, 12, 0), "k3/direct": (0, 3, 0),
    }  # fmt: skip
    assert {row["patches"] for row in rows.values()} == {192}, (
        "not the 160 of the shape's own picture; the processor enlarges a small one"
    )
    looked = [next(run for run in report["runs"] if run["id"] == f"{name}/follow-up") for name in ("k0", "k3")]
    assert all(run["summary"]["look_sec"]["median"] > 0 and "the look before it took" in run["note"] for run in looked)
    assert all("vision" not in run["summary"]["phases_sec"] for run in looked), "the picture was read before"
    assert all("replay built in" in one["reason"] for one in report["skipped"] if one["run"] == "k3/no-replay")
    capsys.readouterr()
    assert lrkit("profile", tmp_path / "k0", *forced, "samples.0.data=trail:main", "-o", tmp_path / "q") == 2
    assert "picture is for data shape" in capsys.readouterr().err
    assert lrkit("export", "tiny", "model.replay.num_tokens=3", "-o", tmp_path / "t") == 2
    assert "is for random:SHAPE, and tiny" in capsys.readouterr().err


def test_random_weights_are_the_same_for_every_reader():
    shapes = {"a.weight": (6, 5), "b.weight": (6, 5), "norm.weight": (5,), "a.bias": (5,)}
    one, other = RandomWeights(shapes), RandomWeights(shapes)
    for name in shapes:
        np.testing.assert_array_equal(one.read(name), other.read(name))
    assert not np.array_equal(one.read("a.weight"), one.read("b.weight"))
    assert one.read("norm.weight").tolist() == [1.0] * 5 and one.read("a.bias").any()


def test_wrong_requests_are_one_sentence(shape, tmp_path, capsys):
    small, strange = tmp_path / "small.json", tmp_path / "strange.json"
    small.write_text(json.dumps({**SHAPE, "vocabulary": 40}))
    strange.write_text(json.dumps({**SHAPE, "family": "qwen2_v"}))
    asked = 0
    for arguments, part in (
        (("random:qwen2-vl-2",), "did you mean 'qwen2-vl-2b'"),
        ((f"random:{tmp_path / 'absent.json'}",), "no such file"),
        ((f"random:{small}",), "vocabulary"),
        ((f"random:{strange}",), "did you mean 'qwen2_vl'"),
        (("random:",), "shape"),
        ((f"random:{shape}", "tiny"), "tiny"),
        ((f"random:{shape}", "--data", "trail:main"), "leave --data out"),
        (("--shape", shape), "add --random-weights"),
        (("tiny", "--random-weights"), "--random-weights is for --shape"),
        ((), "MODEL is missing"),
    ):
        assert lrkit("export", *arguments, "-o", tmp_path / "bundle") == 2
        said = capsys.readouterr().err
        assert part in said and len(said.strip().splitlines()) == 1, said
        asked += 1
    assert asked == 10
    assert not (tmp_path / "bundle").exists()


def test_without_samples_nothing_is_compared_and_the_bundle_says_so(shape, tmp_path):
    """Torch's model alone may need more memory than there is; what writes the program never loads it."""
    place = tmp_path / "bundle"
    asked = ("export", f"random:{shape}", "--int4", "--samples", 0, "-o", place)
    assert lrkit(*asked) == 2
    assert not place.exists()
    assert lrkit(*asked, "--allow-unproven") == 0
    manifest = json.loads((place / "bundle.json").read_text())
    found = manifest["validation"]["latent"]
    assert (found["passed"], found["num_samples"], manifest["samples"]) == (False, 0, [])
    assert "NOTHING IS PROVEN" in found["tolerance_reason"]
    assert check_bundle(place).samples == 0
