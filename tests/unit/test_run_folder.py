"""A run's folder: nothing in it is overwritten, two runs never share it, and what a kill left is made good."""

import json
import os
import resource
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from lrkit.errors import CheckpointError, ConfigError, DataError, FileError, UserError
from lrkit.folders import locked
from lrkit.resources import RUN_FILE, STATE_FILE, list_checkpoints, resolve_checkpoint
from lrkit.runtime.encode.processor import Processor
from lrkit.train.ablate import Run, Sweep, run_one
from lrkit.train.metrics import METRICS_FILE, read_metrics
from lrkit.train.recipe import Recipe, as_written, load_recipe
from lrkit.train.run import train
from lrkit.train.run_report import read_run
from lrkit.train.stop_signals import TrainingInterrupted
from tests.runs import curve, two_stage_values, write_lines

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, pictures and the checkpoint that runs start from."""
    folder = tmp_path_factory.mktemp("runs")
    write_lines(folder)
    shutil.copytree(resolve_checkpoint("tiny/base"), folder / "base")
    return folder


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:
    """A run of two stages without a break. Shared: a test that alters it takes `own`."""
    torch.set_num_threads(1)
    train(recipe(place), place / "finished", quiet=True)
    return place / "finished"


@pytest.fixture
def own(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def recipe(place: Path, *overrides: str) -> Recipe:
    return load_recipe(two_stage_values(place / "lines.jsonl", str(place / "base")), overrides)


class After:
    """Asks the run to stop once it has been asked so often."""

    def __init__(self, times: int) -> None:
        self.left = times

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def stopped(made: Recipe, folder: Path, updates: int = 2) -> Path:
    """A run that was stopped after so many updates."""
    with pytest.raises(TrainingInterrupted):
        train(made, folder, quiet=True, stop=After(updates))
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("leftovers", "says"),
    [
        ([METRICS_FILE], f"holds {METRICS_FILE} of a run but no state.pt"),
        (["recipe.yaml", "stages/00-say/reasoner.json"], "holds recipe.yaml of a run but no state.pt"),
        ([RUN_FILE], "put its state.pt back, or give another folder with -o"),
        (["tensorboard/events", "notes.txt"], "is not empty \\(it holds notes.txt\\)"),
        ([".hidden"], "is not empty"),
    ],
)
def test_resume_leaves_a_folder_without_a_state_as_it_is(place, tmp_path, leftovers, says):
    """It once took the folder for a new run's and wrote over the metrics and checkpoints of the old one."""
    for name in leftovers:
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_text("precious")
    before = content(tmp_path)
    with pytest.raises(ConfigError, match=says):
        train(recipe(place), tmp_path / "run", resume=True, quiet=True)
    assert content(tmp_path) == before


def test_resume_starts_in_an_empty_folder_or_where_there_is_none(place, finished, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    train(recipe(place), tmp_path / "link", resume=True, quiet=True)
    assert curve(tmp_path / "empty") == curve(finished)
    assert sorted(path.name for path in (tmp_path / "empty").iterdir()) == sorted(p.name for p in finished.iterdir())


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("file", "not a folder|is a file|no folder"),
        ("file/below", "a part of the path is a file"),
        ("dangling", "no folder"),
        ("x" * 300, "the name is too long"),
        ("state", "state.pt is no file"),
    ],
)
def test_a_place_that_can_hold_no_run_is_one_sentence(place, tmp_path, name, says):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "state" / STATE_FILE).mkdir(parents=True)
    with pytest.raises(UserError, match=says) as caught:
        train(recipe(place), tmp_path / name, quiet=True)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "nowhere").exists() and (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe"])
def test_data_that_are_no_file_are_named_and_nothing_is_written(place, tmp_path, kind):
    """A pipe was read twice, and the second time waited for a writer that never came."""
    path = tmp_path / "data.jsonl"
    if kind != "missing":
        path.mkdir() if kind == "folder" else os.mkfifo(path)
    with pytest.raises(DataError, match=f"data.jsonl: .*{kind if kind != 'missing' else 'no such'}"):
        train(recipe(place, f"data.train={path}"), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("damage", ["behind", "gone", "foreign"])
def test_resuming_a_finished_run_puts_its_report_right(place, finished, own, damage):
    """A run killed between its last two writes kept a wrong run.json for good."""
    report = read_run(own)
    if damage == "gone":
        (own / RUN_FILE).unlink()
        (own / "recipe.yaml").unlink()
    else:
        changed = {"done": False, "checkpoint": "stages/00-say", "stages": report["stages"][:1]}
        (own / RUN_FILE).write_text(json.dumps(report | changed) if damage == "behind" else "{")
    assert train(recipe(place), own, resume=True, quiet=True) == own / "stages" / "01-think"
    assert read_run(own) == report
    assert content(own) == content(finished)


def test_a_finished_run_without_its_last_checkpoint_says_so(place, own):
    shutil.rmtree(own / "stages" / "01-think")
    with pytest.raises(CheckpointError, match="01-think is not there or not whole; copy it back"):
        train(recipe(place), own, resume=True, quiet=True)


def test_a_run_stands_for_its_last_whole_checkpoint_whatever_its_report_says(own):
    """ask, eval and export took the stage before, without a word."""
    report = read_run(own)
    (own / RUN_FILE).write_text(json.dumps(report | {"checkpoint": "stages/00-say"}))
    assert resolve_checkpoint(own) == own / "stages" / "01-think"
    (own / RUN_FILE).unlink()
    assert resolve_checkpoint(own) == own / "stages" / "01-think"
    shutil.copytree(own / "stages" / "00-say", own / "stages" / ".writing-1-0-02-more")
    assert [found.path.name for found in list_checkpoints(own.parent) if own in found.path.parents] == [
        "00-say",
        "01-think",
    ]
    (own / RUN_FILE).write_text(json.dumps(report))
    shutil.rmtree(own / "stages" / "01-think")
    with pytest.raises(CheckpointError, match=r"run\.json names stages/01-think, which is not there"):
        resolve_checkpoint(own)
    (own / RUN_FILE).write_text(json.dumps(report | {"checkpoint": "../elsewhere"}))
    with pytest.raises(CheckpointError, match="names no checkpoint of the run"):
        resolve_checkpoint(own)


def test_half_written_things_of_a_killed_run_are_removed(place, finished, tmp_path):
    folder = stopped(recipe(place), tmp_path / "run", 4)
    for name in (".writing-1-0-state.pt", "stages/.writing-1-3-01-think/x", "stages/.01-think.writing/x"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("half")
    train(recipe(place), folder, resume=True, quiet=True)
    assert [str(path) for path in folder.rglob(".*")] == []
    assert curve(folder) == curve(finished)


@pytest.mark.parametrize("kept", [None, 0, 90, "other"])
def test_metrics_that_are_not_those_of_the_run_are_never_filled_up(place, finished, tmp_path, kept, capsys):
    """Moved away before --resume, the file was "cut" to its old length: thousands of NUL bytes."""
    folder = stopped(recipe(place), tmp_path / "run", 2)
    file = folder / METRICS_FILE
    raw = file.read_bytes()
    if kept is None:
        file.unlink()
    else:
        file.write_bytes(b"rotated\n" * 400 if kept == "other" else raw[:kept])
    if kept == "other":
        file.write_bytes(json.dumps({"kind": "train", "update": 0, "padding": "x" * len(raw)}).encode() + b"\n")
    train(recipe(place), folder, resume=True)
    assert b"\0" not in file.read_bytes()
    assert [record["update"] for record in read_metrics(folder)] == [3, 4, 5]
    said = " ".join(capsys.readouterr().err.split())
    assert f"where {len(raw)} bytes were written before the run stopped" in said
    assert "after 2 updates" in read_run(folder)["notes"][0]
    assert [c for c in curve(finished) if c["update"] > 2] == curve(folder)


def test_a_second_run_in_the_same_folder_is_refused(place, tmp_path):
    folder = stopped(recipe(place), tmp_path / "run", 2)
    before = content(folder)
    with locked(folder, "trains in", inside=True), pytest.raises(UserError, match="another process trains in it"):
        train(recipe(place), folder, resume=True, quiet=True)
    assert content(folder) == before
    train(recipe(place), folder, resume=True, quiet=True)


def test_other_data_are_refused_with_both_digests(place, tmp_path):
    write_lines(tmp_path)
    made = recipe(place, f"data.train={tmp_path}/lines.jsonl", f"data.validation={tmp_path}/held-out.jsonl")
    shutil.copy(tmp_path / "lines.jsonl", tmp_path / "held-out.jsonl")
    folder = stopped(made, tmp_path / "run", 2)
    before = content(folder)
    for name, part in (("lines.jsonl", "train"), ("held-out.jsonl", "validation")):
        old = (tmp_path / name).read_text()
        (tmp_path / name).write_text(old.replace("Which room ?", "Which room ? room"))
        with pytest.raises(ConfigError, match=rf"data: {part} has changed .*\(sha256 \w{{16}} then, \w{{16}} now\)"):
            train(made, folder, resume=True, quiet=True)
        (tmp_path / name).write_text(old)
    assert content(folder) == before
    train(made, folder, resume=True, quiet=True)


def test_another_start_is_refused(place, tmp_path):
    """A base that was trained again would go on as if it had always been there."""
    shutil.copytree(place / "base", tmp_path / "base")
    made = recipe(place, f"init={tmp_path}/base")
    folder = stopped(made, tmp_path / "run", 2)
    weights = tmp_path / "base" / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    with pytest.raises(ConfigError, match=r"init: model\.safetensors has changed since the run began"):
        train(made, folder, resume=True, quiet=True)


def test_another_machine_and_other_pictures_are_noted(place, tmp_path, capsys):
    write_lines(tmp_path)
    made = recipe(place, f"data.train={tmp_path}/lines.jsonl")
    folder = stopped(made, tmp_path / "run", 2)
    torch.set_num_threads(2)
    Image.new("RGB", (64, 16), (1, 2, 3)).save(tmp_path / "5.png")
    train(made, folder, resume=True)
    said = " ".join(capsys.readouterr().err.split())
    notes = " ".join(read_run(folder)["notes"])
    for text in (said, notes):
        assert "threads was 1, is 2" in text and "pictures of the data have other sizes" in text
        assert "no longer bit for bit" in text


def test_a_picture_that_cannot_be_read_is_named_and_the_run_goes_on_once_it_is_mended(place, finished, tmp_path):
    write_lines(tmp_path)
    made = recipe(place, f"data.train={tmp_path}/lines.jsonl")
    good = {number: (tmp_path / f"{number}.png").read_bytes() for number in range(6)}
    folder, told = tmp_path / "run", []
    for number in good:
        (tmp_path / f"{number}.png").write_bytes(good[number][:60])
    for _ in range(len(good)):
        try:
            train(made, folder, resume=True, quiet=True)
            break
        except DataError as error:
            line = int(str(error).partition("lines.jsonl:")[2].partition(":")[0])
            assert f"{line - 1}.png" in str(error) and "--resume goes on" in str(error) and "\n" not in str(error)
            told.append(line)
            (tmp_path / f"{line - 1}.png").write_bytes(good[line - 1])
    assert len(set(told)) == len(told) >= 2
    assert curve(folder) == curve(finished)


def test_a_limit_on_files_keeps_the_last_state_whole(place, finished, tmp_path):
    folder = stopped(recipe(place), tmp_path / "run", 2)
    before = content(folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before[STATE_FILE]) // 2, hard))
    try:
        with pytest.raises(FileError, match=r"state\.pt: .*; the same command with --resume goes on") as caught:
            train(recipe(place), folder, resume=True, quiet=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert (folder / STATE_FILE).read_bytes() == before[STATE_FILE]
    assert list(folder.rglob(".*")) == []
    train(recipe(place), folder, resume=True, quiet=True)
    assert curve(folder) == curve(finished)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_ablation_on_a_full_disk_names_no_option_that_it_has_not(place, tmp_path):
    """`lrkit ablate` resumes by itself: told to add --resume, it answered that there is no such option."""
    (tmp_path / "recipe.yaml").write_text(json.dumps(as_written(recipe(place))))  # which is YAML too
    sweep = Sweep(name="full", recipe=str(tmp_path / "recipe.yaml"), variants={"one": ()}, seeds=(0,))
    run = Run(sweep, "one", 0, stopped(load_recipe(tmp_path / "recipe.yaml", ["seed=0"]), tmp_path / "run", 2))
    (run.folder / METRICS_FILE).unlink()
    (run.folder / METRICS_FILE).symlink_to("/dev/full")
    with pytest.raises(FileError, match=r"the disk is full; free some space; the same command goes on from") as caught:
        run_one(run)
    assert "--" not in str(caught.value)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_the_metrics_is_one_sentence(place, tmp_path):
    folder = stopped(recipe(place), tmp_path / "run", 2)
    (folder / METRICS_FILE).unlink()
    (folder / METRICS_FILE).symlink_to("/dev/full")
    with pytest.raises(FileError, match=r"metrics\.jsonl: the disk is full; free some space; .*--resume"):
        train(recipe(place), folder, resume=True, quiet=True)


def test_pictures_are_shrunk_to_the_limit_of_the_recipe_in_training_and_in_use(place, tmp_path):
    """Phones make pictures of 12 megapixels, which no GPU trains on."""
    train(recipe(place, "max_pixels=256", "stages.0.updates=1"), tmp_path / "run", quiet=True)
    checkpoint = resolve_checkpoint(tmp_path / "run")
    written = json.loads((checkpoint / "preprocessor_config.json").read_text())
    assert written["size"]["longest_edge"] == 256
    counts = [
        Processor.from_folder(folder).encode_prompt([place / "1.png"], "Which room ?").grids
        for folder in (checkpoint, place / "base")
    ]
    assert counts == [[(1, 2, 2)], [(1, 2, 4)]]
