"""`lrkit export` through the command line: both forms, int4, and that a failed or stopped export leaves nothing."""

import json
import os
import re
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from PIL import Image

from lrkit.contract.sample import Sample
from lrkit.errors import ExportError
from lrkit.export import bundle as bundle_module
from lrkit.export.before import refuse_taken
from lrkit.export.bundle import export_bundle
from lrkit.export.targets.target import ProgramLimits, Target
from lrkit.folders import locked
from lrkit.runtime.checks.bundle_check import check_bundle
from lrkit.runtime.engines.common.protocol import AskOptions
from lrkit.runtime.engines.onnxruntime.engine import OrtEngine
from tests.bundles import CAPACITY, QUESTION, SETTINGS, TARGET, picture, processor, torch_reasoner
from tests.commands import lrkit
from tests.tiny import PATCH, tiny_reasoner

LIMITS = [f"limits.{name}={value}" for name, value in CAPACITY.items()]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    from lrkit.model.checkpoint import save_checkpoint

    folder = tmp_path_factory.mktemp("export") / "latent"
    save_checkpoint(folder, tiny_reasoner(SETTINGS["latent"]), processor(), base=None, info={"stage": "latent"})
    return folder


def ask(folder, on_token=None):
    from lrkit.data.trail import trail_set

    engine = OrtEngine.from_bundle(folder, threads=1)
    sample = trail_set("main", "test", 1)[0]
    prompt = engine.processor.encode_prompt(sample.images, sample.question)
    return prompt, engine.generate([prompt], AskOptions(), on_token)[0]


def test_int4_bundle_from_the_command_line(checkpoint, tmp_path, capsys):
    place, figures = tmp_path / "small", tmp_path / "figures.json"
    place.symlink_to(tmp_path / "real")  # which is followed and stays
    asked = ("export", checkpoint, "--int4", "--samples", 2, "-o", place, "--json", figures, *LIMITS)
    assert lrkit(*asked) == 2, "the model is not trained: it has no right answers, and rounding changes all it says"
    refused = capsys.readouterr().err.strip().splitlines()[-1]
    assert refused.startswith("error: nothing proves the latent program") and not place.exists()
    assert lrkit(*asked, "--allow-unproven") == 0
    said = capsys.readouterr().out
    assert "against torch" in said and "weights, MB" in said
    written = json.loads(figures.read_text())["manifest"]["programs"]["latent"]
    assert (written["precision"], written["accuracy_level"]) == ("int4", 4)
    assert check_bundle(place).problems == []
    assert place.is_symlink() and sorted(path.name for path in tmp_path.iterdir()) == ["figures.json", "real", "small"]
    assert lrkit("export", checkpoint, "--samples", 2, "-o", place) == 2
    assert "--force" in capsys.readouterr().err


def test_step_form_answers_as_torch_and_streams(checkpoint, tmp_path):
    from lrkit.data.trail import trail_set

    target = Target(limits=ProgramLimits(**CAPACITY))
    folder = export_bundle(checkpoint, tmp_path / "steps", target, trail_set("main", "test", 3), form="step").folder
    assert check_bundle(folder).problems == []
    streamed: list[int | None] = []
    prompt, answer = ask(folder, lambda tokens: streamed.extend(tokens))
    (expected,) = torch_reasoner().engine.generate([prompt], AskOptions(max_new_tokens=CAPACITY["max_new_tokens"]))
    assert answer.token_ids == expected.token_ids == streamed
    assert answer.latent_steps == expected.latent_steps == 3
    sizes = {file.name: file.stat().st_size for file in folder.glob("latent.*")}
    assert len(sizes) == 4, "three graphs and one file of weights"
    assert not any(isinstance(v.const_value, ir.Tensor) and v.const_value.nbytes > 4096 for v in _weights(folder))


def _weights(folder):
    return [value for file in folder.glob("latent.*.onnx") for value in ir.load(file).graph.initializers.values()]


def test_a_program_that_differs_leaves_nothing(checkpoint, tmp_path, monkeypatch):
    """One wrong weight in the graph, and the message says what differed and where it was first seen."""
    from lrkit.data.trail import trail_set
    from lrkit.export.weights.source import Source

    honest = Source.weight

    def wrong(self, role):
        found = honest(self, role)
        return np.flip(found, 0) if role == "1.out" else found

    monkeypatch.setattr(Source, "weight", wrong)
    place = tmp_path / "bundle"
    with pytest.raises(ExportError, match=r"(?s)latent program differs from torch.*prefill_logits.*sample 0.*nothing"):
        export_bundle(checkpoint, place, Target(limits=ProgramLimits(**CAPACITY)), trail_set("main", "test", 2))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stage", ["write_tower", "build_program", "check_program", "digest"])
def test_a_stopped_export_leaves_nothing_or_the_old_bundle(checkpoint, tmp_path, monkeypatch, stage):
    from lrkit.data.trail import trail_set

    place = tmp_path / "bundle"
    place.mkdir()
    (place / "bundle.json").write_text("old")

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(bundle_module, stage, stop)
    with pytest.raises(KeyboardInterrupt):
        target = Target(limits=ProgramLimits(**CAPACITY))
        export_bundle(checkpoint, place, target, trail_set("main", "test", 1), force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert (place / "bundle.json").read_text() == "old"


def test_wrong_requests_are_one_sentence(checkpoint, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    file = tmp_path / "file"
    file.write_text("keep")
    os.symlink(tmp_path / "circle", tmp_path / "circle")
    for arguments, part in (
        ((checkpoint, "-o", tmp_path / "mine"), "is no bundle"),
        ((checkpoint, "--form", "loop"), "--form is 'loop'"),
        ((checkpoint, "--int4", "--target", "cpu-fp32"), "--int4 is short for"),
        ((checkpoint, "--target", "cpu-int5"), "did you mean 'cpu-int4'"),
        ((checkpoint, "int4.block=7"), "int4.block"),
        ((tmp_path / "absent",), "no such checkpoint"),
        (("", "--int4"), "the model's path is empty; give a folder or a name"),
        ((checkpoint, "--samples", 0), "nothing would be compared with torch; give 1 or more, or --allow-unproven"),
        ((checkpoint, "--samples", -7), "--samples is -7; give 1"),
        ((checkpoint, "--samples", 10**20), "give 1 to 100,000"),
        ((checkpoint, "--target", ""), "unknown target ''; known: cpu-fp32"),
        ((checkpoint, "--data", ""), "is no file; give a JSONL file or one of trail:main"),
        ((checkpoint, "limits.max_patches=1000000000000"), "max_patches: got 1000000000000; input should be less"),
        ((checkpoint, "limits.max_new_tokens=-1"), "max_new_tokens: got -1; input should be greater"),
        ((checkpoint, "limits.max_latent_steps=65"), "max_latent_steps: got 65; input should be less"),
        ((checkpoint, "--engine", "tensorrt-rtx", "--arch", " , "), "--arch ' , ' names no GPU; give compute"),
        ((checkpoint, "--target", "l4", "--script", ""), "--script was given an empty name; give the path"),
        ((checkpoint, "--target", "l4", "--script", file / "x"), "is a file, so nothing can be written below it; give"),
        ((checkpoint, "-o", file), "exists and is no bundle; give another folder"),
        ((checkpoint, "-o", file / "below"), "a file of that name is there already; give another name"),
        ((checkpoint, "-o", "/dev/null"), "exists and is no bundle; give another folder"),
        ((checkpoint, "-o", tmp_path / "circle"), "exists and is no bundle; give another folder"),
        ((checkpoint, "-o", tmp_path / ("n" * 300)), "the name is too long; shorten it"),
        ((checkpoint, "-o", "/proc/self/bundle"), "check the path"),
    ):
        assert lrkit("export", *arguments) == 2
        said = capsys.readouterr().err
        assert part in said and len(said.strip().splitlines()) == 1, said
    assert (tmp_path / "mine" / "notes.txt").read_text() == file.read_text() == "keep"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["circle", "file", "mine"]


def test_folders_that_nothing_can_replace_are_refused_at_once(tmp_path, monkeypatch):
    """A working folder would be gone under its shell; a mount point cannot be renamed, which was found at the end."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for place, what in ((Path(), "the working folder"), (tmp_path / "here", "the working folder")):
        with pytest.raises(ExportError, match=f"is {what}, which no other folder can replace; give"):
            refuse_taken(place, force=True)
    monkeypatch.setattr("os.path.ismount", lambda path: Path(path) == tmp_path)
    (tmp_path / "here").rmdir()
    with pytest.raises(ExportError, match="is a mount point"):
        refuse_taken(tmp_path, force=True)
    refuse_taken(tmp_path / "new", force=False)


def test_two_exports_into_one_folder_are_refused(checkpoint, tmp_path, capsys):
    with locked(tmp_path / "bundle", "writes into"):
        assert lrkit("export", checkpoint, "-o", tmp_path / "bundle", "--samples", 1, *LIMITS) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    writing = (
        rf"another process writes into it; wait until it is done \(process {os.getpid()} on \S+\), or give another "
    )
    assert re.search(writing + "folder$", said), said
    assert list(tmp_path.iterdir()) == []


def test_a_photo_among_the_samples_is_recorded_as_the_program_sees_it(checkpoint: Path, tmp_path: Path) -> None:
    """Samples above the bundle's limits once failed the export; in their own size they would fill the bundle."""
    samples = [Sample((picture().resize((1600, 640)),), QUESTION, (), "3", "photo")]
    report = export_bundle(checkpoint, tmp_path / "bundle", TARGET, samples, baselines=False)
    (recorded,) = report.manifest.samples
    with Image.open(report.folder / recorded.images[0]) as kept:
        assert 160 < kept.width * kept.height // PATCH**2 <= report.manifest.limits.max_patches
    checked = check_bundle(report.folder)
    assert (checked.samples, checked.same, checked.problems) == (1, 1, [])
