"""`lrkit analyze`, and training that is watched: the same run bit for bit, its rows, and inputs that are none."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lrkit.analyze.during import read_recorded
from tests.commands import lrkit
from tests.runs import curve

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

SMALL = ["eval.samples=0", "stages.0.updates=1", "stages.1.updates=2", "stages.2.updates=4", "batch_size=2"]
WATCHED = ["analyze.every=2", "analyze.samples=2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Iterator[dict[str, Path]]:
    """The same run, watched and not, on one thread, which sums in one order."""
    folder, before = tmp_path_factory.mktemp("analyze"), torch.get_num_threads()
    torch.set_num_threads(1)
    for name, more in (("plain", []), ("watched", WATCHED)):
        assert lrkit("train", "smoke", *SMALL, *more, "accumulate=2", "-o", folder / name) == 0
    yield {name: folder / name for name in ("plain", "watched")}
    torch.set_num_threads(before)


def refused(capsys, *arguments: object) -> str:
    """What is said of wrong input: one sentence, and nothing written."""
    capsys.readouterr()
    assert lrkit("analyze", *arguments) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ") and "Traceback" not in said
    return " ".join(said.split())


def test_a_watched_run_is_the_same_run(runs) -> None:
    assert curve(runs["watched"]) == curve(runs["plain"])
    weights = [(run / "stages/02-think/model.safetensors").read_bytes() for run in runs.values()]
    assert weights[0] == weights[1]
    assert not (runs["plain"] / "analysis").exists()
    # Each stage that reasons at its beginning, at the cadence and at its end; the one that looks has nothing to say.
    names = sorted(file.name for file in (runs["watched"] / "analysis").iterdir())
    assert names == ["000001-01-say.jsonl", "000003-01-say.jsonl", *(f"{n:06d}-02-think.jsonl" for n in (3, 5, 7))]


@pytest.mark.long
def test_dropout_and_bfloat16_draw_the_same_numbers_too(runs, tmp_path) -> None:
    """An adapter with dropout: a random number taken by the analysis would change every loss behind it."""
    settings = [f"init={runs['plain']}/stages/01-say", "trainable=lora", "model.lora.dropout=0.3", "model.lora.rank=2"]
    stage = "stages=[{name: think, lengths: [2], latent_steps: all, updates: 2}]"
    short = [stage, "eval.samples=0", "batch_size=2"]
    for number, precision in enumerate(("float32", "bfloat16")):
        both = [tmp_path / f"{number}-{name}" for name in ("plain", "watched")]
        for folder, more in zip(both, ([], ["analyze.every=1", "analyze.samples=2"]), strict=True):
            assert lrkit("train", "smoke", *settings, *short, f"precision={precision}", *more, "-o", folder) == 0
        assert curve(both[0]) == curve(both[1])
        kinds = {row.kind for row in read_recorded(both[1]) if row.measure == "nuclear_B"}
        assert kinds == set("qkvo")


@pytest.mark.long
def test_resuming_a_watched_run_gives_the_same_rows(runs, tmp_path) -> None:
    from lrkit.errors import LrkitError
    from lrkit.train.recipe import load_recipe
    from lrkit.train.run import train
    from lrkit.train.stop_signals import TrainingInterrupted

    recipe = load_recipe(runs["watched"] / "recipe.yaml")
    asked = iter([False] * 4 + [True] * 100)
    with pytest.raises((TrainingInterrupted, LrkitError)):
        train(recipe, tmp_path / "parts", quiet=True, stop=lambda: next(asked))
    train(recipe, tmp_path / "parts", quiet=True, resume=True)
    assert read_recorded(tmp_path / "parts") == read_recorded(runs["watched"])
    assert curve(tmp_path / "parts") == curve(runs["watched"])


def test_what_training_recorded_becomes_a_report(runs, tmp_path, capsys) -> None:
    report = tmp_path / "report.json"
    out = tmp_path / "out"
    assert lrkit("analyze", runs["watched"], "--recorded", "-o", out, "--json", report) == 0
    made = json.loads(report.read_text())
    assert json.loads((out / "report.json").read_text()) == made
    assert [(p["updates"], p["stage"]) for p in made["points"]] == [
        (1, "say"), (3, "say"), (3, "think"), (5, "think"), (7, "think"),
    ]  # fmt: skip
    assert set(made["points"][0]["tokens"]) == {"visual", "text", "spoken"}
    assert set(made["points"][-1]["tokens"]) == {"visual", "text", "replayed", "latent", "spoken"}
    assert "visual token's gradient is" in capsys.readouterr().out
    for name in ("gradients", "nuclear", "depth", "projection"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4 and "<script" not in page
    assert any((out / name).is_file() for name in ("rows.parquet", "rows.jsonl"))


@pytest.mark.long
def test_the_last_checkpoint_gives_what_training_recorded_last(runs, tmp_path) -> None:
    """After the fact and while it trained: the same samples, the same figures."""
    out = tmp_path / "out"
    assert lrkit("analyze", runs["watched"], "--samples", 2, "-o", out) == 0
    after = json.loads((out / "report.json").read_text())["points"]
    assert [(point["updates"], point["stage"]) for point in after] == [(3, "say"), (7, "think")]
    assert lrkit("analyze", runs["watched"], "--recorded", "-o", out) == 0
    during = json.loads((out / "report.json").read_text())["points"]
    pairs = zip(after[-1]["tokens"].items(), during[-1]["tokens"].items(), strict=True)
    for (kind, mine), (other, theirs) in pairs:
        assert kind == other
        values = [[one["value"] for one in found["gradient_mean"]] for found in (mine, theirs)]
        assert values[0] == pytest.approx(values[1], rel=1e-3, abs=1e-9)


@pytest.mark.long
def test_the_shipped_model_on_other_data_and_one_stage_of_a_run(runs, tmp_path) -> None:
    out = tmp_path / "out"
    assert lrkit("analyze", "tiny", "--samples", 2, "--data", "trail:main", "-o", out) == 0
    (point,) = json.loads((out / "report.json").read_text())["points"]
    assert point["stage"] == "all" and set(point["nuclear"]["q"]) == {"A", "B", "hard_over_easy"}
    assert lrkit("analyze", runs["plain"], "--stage", "say", "--samples", 2, "-o", out) == 0
    assert [point["stage"] for point in json.loads((out / "report.json").read_text())["points"]] == ["say"]


def test_what_cannot_be_analysed_is_refused_in_one_sentence(runs, bundle, tmp_path, capsys) -> None:
    out = ["-o", tmp_path / "out"]
    assert "is a bundle, and its programs have no gradients" in refused(capsys, bundle, *out)
    plain = "is a plain model without latents"
    shutil.copytree(runs["plain"] / "stages/01-say", tmp_path / "hub")
    (tmp_path / "hub/reasoner.json").unlink()
    assert plain in refused(capsys, tmp_path / "hub", *out)
    assert "trained the vision tower alone" in refused(capsys, runs["plain"] / "stages/00-look", *out)
    assert "samples" in refused(capsys, "tiny", "--samples", 0, *out)
    said = refused(capsys, runs["plain"], "--stage", "thnk", *out)
    assert "no checkpoint of a stage 'thnk'" in said and "say, think" in said
    assert "train with analyze.every=100" in refused(capsys, runs["plain"], "--recorded", *out)
    assert "--data cannot change what training recorded" in refused(
        capsys, runs["watched"], "--recorded", "--data", "trail:main", *out
    )
    assert "no such checkpoint" in refused(capsys, "tinny", *out)
    assert "unknown sample set" in refused(capsys, "tiny", "--data", "trail:mian", *out)
    assert "unknown device" in refused(capsys, "tiny", "--device", "gpuu", *out)
    (tmp_path / "file").write_text("")
    assert "file" in refused(capsys, "tiny", "-o", tmp_path / "file" / "below")
    assert "file" in refused(capsys, "tiny", "--json", tmp_path / "file" / "below.json", *out)
    lonely = tmp_path / "one.jsonl"
    lonely.write_text(json.dumps({"question": "Which room?", "steps": ["1"], "answer": "2"}) + "\n")
    assert refused(capsys, "tiny", "--data", lonely, *out)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_does_not_say_where_it_comes_from_is_refused(runs, tmp_path, capsys) -> None:
    folder = tmp_path / "stranger"
    shutil.copytree(runs["plain"] / "stages/02-think", folder)
    info = json.loads((folder / "reasoner.json").read_text())
    for damage in ({"provenance": {}}, {"provenance": 3}, {"stage": {"name": "other"}}, {"stage": None}):
        (folder / "reasoner.json").write_text(json.dumps(info | damage))
        assert "which recipe and stage" in refused(capsys, folder, "-o", tmp_path / "out")
