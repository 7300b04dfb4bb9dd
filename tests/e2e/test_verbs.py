"""`lrkit eval`, `ask`, `demo`, `ablate` and `cp` through the command line, on the shipped weights."""

import json
from pathlib import Path

import pytest
from PIL import Image

from lrkit.data.trail import trail_set
from lrkit.train.ablate import _alone
from tests.commands import lrkit

pytest.importorskip("sklearn")


@pytest.fixture
def rooms(tmp_path: Path) -> tuple[Path, str, str]:
    """A held-out picture, a question about it, and the right answer."""
    sample = trail_set("main", "test", 1, seed=8, hops=(3,))[0]
    board = sample.images[0]
    assert isinstance(board, Image.Image)
    board.save(tmp_path / "rooms.png")
    return tmp_path / "rooms.png", sample.question, sample.answer


def test_the_shipped_model_reasons_in_latents_as_well_as_in_words(tmp_path):
    report = tmp_path / "report.json"
    assert lrkit("eval", "tiny", "--samples", "60", "--latency-samples", "2", "--json", str(report)) == 0
    figures = json.loads(report.read_text())
    modes = figures["modes"]
    # Far above what sixty pictures could give by luck to a model that guesses one room in ten.
    assert modes["latent"]["accuracy"] >= 0.85
    assert modes["cot"]["accuracy"] >= 0.85
    assert modes["direct"]["accuracy"] <= 0.6
    # Ten rooms, 1 to 8 hops: a sentence a hop against a latent step a hop but the last, and both speak the answer.
    assert figures["cot_over_latent"]["ar_steps"] >= 10
    assert modes["latent"]["latent_steps_histogram"].keys() >= {str(hops - 1) for hops in range(1, 9)}
    assert modes["latent"]["ar_steps_mean"] == pytest.approx(
        modes["latent"]["latent_steps_mean"] + modes["latent"]["spoken_tokens_mean"]
    )
    assert figures["sets"]["trail:main"]["modes"]["cot"]["latency_sec_median"] > 0


def test_ask_prints_the_answer_and_draws_where_it_looked(rooms, tmp_path, capsys):
    picture, question, answer = rooms
    trace, history = tmp_path / "trace.png", tmp_path / "answer.json"
    arguments = ("--image", str(picture), "--trace", str(trace), "--json", str(history))
    assert lrkit("ask", "tiny", *arguments, question) == 0
    assert capsys.readouterr().out == f"{answer}\n"
    told = json.loads(history.read_text())
    assert told["latent_steps"] == len(told["regions"]) == 2
    assert all(0 <= region["box"][0] < 80 for step in told["regions"] for region in step)
    with Image.open(trace) as drawn, Image.open(picture) as board:
        assert drawn.width > board.width


def test_a_checkpoint_without_the_mode_asked_for_falls_back_on_itself(rooms, capsys):
    picture, question, answer = rooms
    assert lrkit("ask", "tiny/cot", "--image", str(picture), "--mode", "cot", question) == 0
    assert f"so I go on to room {answer}." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("ask", "tinny", "where?"), "did you mean 'tiny'"),
        (("ask", "tiny", "--image", "missing.png", "Take 1 hop."), "missing.png"),
        (("ask", "tiny", "--mode", "fast", "Take 1 hop."), "unknown mode 'fast'; give any of latent, cot, direct"),
        (("ask", "tiny", "Sing a song"), "vocabulary lacks"),
        (("eval", "tiny", "--data", "trail:mian"), "did you mean 'trail:main'"),
        (("eval", "tiny", "--data", "nothing.jsonl"), "nothing.jsonl is no file"),
        (("ablate", "trail-ablatoin"), "did you mean 'trail-ablation'"),
        (("ablate", "trail-ablation", "sedes=[0]"), "did you mean 'seeds'"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(arguments, complaint, capsys):
    assert lrkit(*arguments) == 2
    shown = capsys.readouterr().err
    assert complaint in shown
    assert "Traceback" not in shown


@pytest.mark.long
def test_demo_shows_three_modes_a_trace_and_the_program(tmp_path, capsys):
    report = tmp_path / "demo.json"
    sizes = ("--samples", "8", "--latency-samples", "2")
    assert lrkit("demo", *sizes, "-o", str(tmp_path / "shown"), "--json", str(report)) == 0
    figures = json.loads(report.read_text())
    assert set(figures["modes"]) == {"latent", "cot", "direct"}
    for mode in figures["modes"].values():
        assert mode["samples"] == 8 and mode["latency_sec_median"] > 0 and 0 <= mode["accuracy"] <= 1
        assert mode["ar_steps_mean"] > 0
    assert (tmp_path / "shown" / "trace.png").is_file() and (tmp_path / "shown" / "closer.png").is_file()
    closer = figures["closer"]
    assert closer["accuracy"]["correct"] >= 7 and closer["accuracy_with_random_windows"]["correct"] <= 4
    assert closer["example"]["answer"]["answer"] == closer["example"]["expected"]
    pytest.importorskip("onnxscript")
    assert set(figures["engines"]) == {"torch float32", "program float32", "program int4"}
    assert figures["engines"]["program int4"]["bytes"] < figures["engines"]["program float32"]["bytes"]
    assert lrkit("validate", str(tmp_path / "shown" / "cpu-int4")) == 0


@pytest.mark.long
def test_an_ablation_trains_its_variants_and_goes_on_where_it_stopped(tmp_path, capsys):
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(
        "name: two\nrecipe: smoke\n"
        "common: [eval.samples=0, stages.0.updates=1, stages.1.updates=1, stages.2.updates=1]\n"
        "variants: {with: [], without: [model.routing.depth=0]}\nseeds: [0]\nsets: ['trail:main']\nsamples: 4\n"
    )
    runs = tmp_path / "runs"
    assert lrkit("ablate", str(sweep), "-o", str(runs)) == 0
    table = json.loads((runs / "table.json").read_text())
    assert set(table["rows"]) == {"with", "without"}
    assert table["runs"][1]["overrides"][-2:] == ["model.routing.depth=0", "seed=0"]
    assert "| without |" in (runs / "table.md").read_text()
    first = (runs / "with-0" / "result.json").stat().st_mtime_ns
    assert lrkit("ablate", str(sweep), "-o", str(runs)) == 0
    assert (runs / "with-0" / "result.json").stat().st_mtime_ns == first
    capsys.readouterr()
    with _alone(runs):
        assert lrkit("ablate", str(sweep), "-o", str(runs)) == 2
    assert "another process runs an ablation in it" in capsys.readouterr().err


def test_a_copied_checkpoint_still_finds_its_base_and_its_baselines(tmp_path, rooms, capsys):
    picture, question, answer = rooms
    copy = tmp_path / "mine"
    assert lrkit("cp", "tiny", str(copy)) == 0
    assert lrkit("cp", "tiny", str(copy)) == 2
    assert lrkit("ask", str(copy), "--image", str(picture), "--mode", "cot", question) == 0
    assert f"Answer: {answer}" in capsys.readouterr().out
