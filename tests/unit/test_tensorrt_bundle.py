"""Engines that are put into a bundle: it is whole at every moment. No engine is built or run here, so any bytes do."""

import json
from pathlib import Path

import pytest

from lrkit.contract.bundle.bundle_folder import open_bundle
from lrkit.errors import ExportError, UserError
from lrkit.export.tensorrt import into_bundle as tensorrt_bundle
from lrkit.export.tensorrt.into_bundle import STAGING, take_engines
from lrkit.folders import locked


def engines_file(bundle: Path, folder: Path, content: bytes, version: str = "10.13.0") -> Path:
    """What `build_engine.py` leaves on a device: an engine for the latent program, and the list."""
    folder.mkdir()
    (folder / "some.engine").write_bytes(content)
    manifest = open_bundle(bundle).manifest
    entry = {
        "file": "engines/some.engine", "kind": "tensorrt", "version": version, "graph": "program", "archs": ["sm87"],
        "profile": {"input_ids": [[1], [9], [99]]}, "build_seconds": 1.5,
    }  # fmt: skip
    taken = {"role": "latent", "entry": entry, "onnx_sha256": manifest.files["latent.onnx"].sha256}
    file = folder / "engines.json"
    file.write_text(json.dumps({"schema": 1, "kind": "engines", "engines": [taken]}))
    return file


def test_an_engine_replaces_its_like_and_stands_beside_others(own_bundle, tmp_path):
    for number, version in enumerate(("10.13.0", "10.13.0", "11.4.1")):
        take_engines(own_bundle, engines_file(own_bundle, tmp_path / f"device{number}", b"x" * (5 + number), version))
    entries = open_bundle(own_bundle).manifest.programs["latent"].engines
    assert [entry.version for entry in entries] == ["10.13.0", "11.4.1"]
    files = {path.relative_to(own_bundle).as_posix(): path.stat().st_size for path in own_bundle.glob("engines/*")}
    assert files == {entry.file: size for entry, size in zip(entries, (6, 7), strict=True)}
    assert entries[1].file == "engines/latent.tensorrt.sm87.engine", "a name is free again once its engine is gone"


class Stop(KeyboardInterrupt):
    """Ctrl-C at a chosen moment."""


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("moment", [0, 1, 2])
def test_stopped_at_any_moment_a_bundle_is_the_old_one_or_the_new_one(
    own_bundle, tmp_path, monkeypatch, moment, before
):
    """Three renames make the change: a list of what moves is written, the engine comes in under a name of its own, and
    bundle.json is replaced."""
    take_engines(own_bundle, engines_file(own_bundle, tmp_path / "first", b"first"))
    old = open_bundle(own_bundle).manifest
    file = engines_file(own_bundle, tmp_path / "second", b"second")
    calls: list[object] = []
    honest = tensorrt_bundle.os.replace

    def replace(source, target):
        if before and len(calls) == moment:
            raise Stop
        honest(source, target)
        calls.append(target)
        if not before and len(calls) == moment + 1:
            raise Stop

    monkeypatch.setattr(tensorrt_bundle.os, "replace", replace)
    with pytest.raises(Stop):
        take_engines(own_bundle, file)
    found = open_bundle(own_bundle).manifest
    switched = moment == 2 and not before
    assert (found == old) != switched
    assert (own_bundle / found.programs["latent"].engines[0].file).read_bytes() == (b"second" if switched else b"first")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "own", "second"]
    assert not (own_bundle / STAGING).exists()


def test_what_a_killed_process_left_is_taken_away_by_the_next(own_bundle, tmp_path):
    """Killed between its renames, it could not clean up: the list that it left says what moved. Nothing else goes."""
    names = {"engines/half.engine", "engines/../latent.onnx", "latent.onnx", "engines/kept.engine"}
    (own_bundle / STAGING / "engines").mkdir(parents=True)
    (own_bundle / STAGING / "moving.json").write_text(json.dumps({"names": sorted(names)}))
    (own_bundle / "engines").mkdir()
    for name in ("half.engine", "mine.engine"):
        (own_bundle / "engines" / name).write_bytes(b"x")
    take_engines(own_bundle, engines_file(own_bundle, tmp_path / "device", b"engine"))
    left = sorted(path.relative_to(own_bundle).as_posix() for path in own_bundle.rglob("*.engine"))
    assert left == ["engines/latent.tensorrt.sm87.engine", "engines/mine.engine"]
    assert not (own_bundle / STAGING).exists() and open_bundle(own_bundle)


def test_a_bundle_that_another_process_writes_into_is_refused(own_bundle, tmp_path):
    file = engines_file(own_bundle, tmp_path / "device", b"engine")
    before = (own_bundle / "bundle.json").read_text()
    with locked(own_bundle, "writes into"), pytest.raises(UserError, match=r"another process writes into it; wait"):
        take_engines(own_bundle, file)
    assert (own_bundle / "bundle.json").read_text() == before


def test_engines_of_other_programs_or_without_their_file_are_refused(own_bundle, tmp_path):
    file = engines_file(own_bundle, tmp_path / "device", b"engine")
    (file.parent / "some.engine").unlink()
    with pytest.raises(ExportError, match=r"names some\.engine, which is not beside it"):
        take_engines(own_bundle, file)
    content = json.loads(file.read_text())
    for key, value, part in (
        ("role", "direct", "was built from another program"),
        ("onnx_sha256", "0" * 64, "was built from another program"),
        ("role", "talker", "is damaged"),
        ("entry", {**content["engines"][0]["entry"], "archs": ["sm87/../../../x"]}, r"is damaged .*archs"),
    ):
        changed = {**content, "engines": [{**content["engines"][0], key: value}]}
        file.write_text(json.dumps(changed))
        with pytest.raises(ExportError, match=part):
            take_engines(own_bundle, file)
    file.write_text("{")
    with pytest.raises(ExportError, match="is not valid JSON"):
        take_engines(own_bundle, file)
    assert not open_bundle(own_bundle).manifest.programs["latent"].engines
