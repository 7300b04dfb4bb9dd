"""Opening a bundle: each fault is one sentence that names the file and what to do."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lrkit.contract.bundle.bundle_folder import is_bundle, open_bundle
from lrkit.contract.bundle.manifest import SCHEMA
from lrkit.errors import BundleError


def edit(folder: Path, change: Callable[[dict], object]) -> None:
    """Alters bundle.json."""
    path = folder / "bundle.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def unlist(folder: Path, name: str) -> None:
    edit(folder, lambda manifest: manifest["files"].pop(name))


def message(folder: Path, **how: bool) -> str:
    with pytest.raises(BundleError) as caught:
        open_bundle(folder, **how)
    text = str(caught.value)
    assert "\n" not in text, "one sentence"
    return text


def test_a_whole_bundle_opens(bundle: Path) -> None:
    opened = open_bundle(bundle)
    assert set(opened.manifest.programs) == {"latent", "cot"}
    assert opened.program("cot").file == "cot.onnx"
    sizes = [path.stat().st_size for path in bundle.rglob("*") if path.is_file() and path.name != "bundle.json"]
    assert opened.num_bytes == sum(sizes)


ANY_FILE = {"sha256": "0" * 64, "bytes": 1}
FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda b: (b / "cot.onnx").unlink(), "has no cot.onnx; copy the bundle again"),
    "renamed": (lambda b: (b / "cot.onnx").rename(b / "c.onnx"), "has no cot.onnx (c.onnx has its content: was it"),
    "truncated": (lambda b: cut(b / "latent.onnx"), "latent.onnx is cut off: it has"),
    "longer": (lambda b: lengthen(b / "latent.onnx"), "latent.onnx is too long: it has"),
    "altered": (lambda b: flip_byte(b / "latent.onnx"), "latent.onnx was altered: its SHA-256 is not the one in"),
    "altered tokenizer": (lambda b: flip_byte(b / "tokenizer.json"), "tokenizer.json was altered"),
    "no manifest": (lambda b: (b / "bundle.json").unlink(), "is no bundle (no bundle.json)"),
    "cut manifest": (lambda b: cut(b / "bundle.json"), "is not valid JSON"),
    "binary manifest": (lambda b: (b / "bundle.json").write_bytes(b"\xff\xfe\x00"), "is not UTF-8 text"),
    "list": (lambda b: (b / "bundle.json").write_text("[]"), "holds a list where a mapping belongs"),
    "future": (lambda b: edit(b, lambda m: m.update(schema_version=SCHEMA + 1, new=1)), "update lrkit"),
    "old": (lambda b: edit(b, lambda m: m.update(schema_version=SCHEMA - 1)), "export the checkpoint again"),
    "unknown field": (lambda b: edit(b, lambda m: m.update(surprise=1)), "is damaged (Manifest: surprise"),
    "no limits": (lambda b: edit(b, lambda m: m.pop("limits")), "is damaged (Manifest: limits"),
    "no programs": (lambda b: edit(b, lambda m: m["programs"].clear()), "names no program"),
    "unlisted": (lambda b: unlist(b, "cot.onnx"), "has no entry for cot.onnx, which the cot program needs"),
    "unlisted picture": (lambda b: unlist(b, "samples/1-0.png"), "which a recorded sample needs"),
    "outside": (lambda b: edit(b, lambda m: m["files"].update({"../x": ANY_FILE})), "lies outside"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_sentence(own_bundle: Path, fault: str) -> None:
    do, expected = FAULTS[fault]
    do(own_bundle)
    assert expected in message(own_bundle)


def test_two_faults_are_two_lines(own_bundle: Path) -> None:
    flip_byte(own_bundle / "latent.onnx")
    cut(own_bundle / "cot.onnx")
    with pytest.raises(BundleError) as caught:
        open_bundle(own_bundle)
    assert [line.split(" ")[1] for line in str(caught.value).splitlines()] == ["cot.onnx", "latent.onnx"]


def test_without_verifying_only_names_and_sizes_count(own_bundle: Path) -> None:
    flip_byte(own_bundle / "latent.onnx")
    assert open_bundle(own_bundle, verify=False).manifest.name == "latent"
    cut(own_bundle / "latent.onnx")
    assert "is cut off" in message(own_bundle, verify=False)


def test_what_is_no_folder(tmp_path: Path) -> None:
    assert "no such folder" in message(tmp_path / "nothing")
    (tmp_path / "file").write_text("x")
    assert "is a file" in message(tmp_path / "file")
    assert "is no bundle" in message(tmp_path)


def test_a_role_that_is_not_there(bundle: Path) -> None:
    with pytest.raises(BundleError, match="has no direct program, only latent, cot"):
        open_bundle(bundle).program("direct")


def test_what_counts_as_a_bundle(own_bundle: Path, tmp_path: Path) -> None:
    assert is_bundle(own_bundle)
    (own_bundle / "bundle.json").unlink()
    assert is_bundle(own_bundle), "a bundle that lost its manifest is to be reported as such"
    assert not is_bundle(tmp_path)
    assert not is_bundle("tiny")


def test_the_earlier_name_of_a_dialect_is_read() -> None:
    """It was called tensorrt when nothing else read it."""
    from lrkit.export.targets.target import Target

    assert Target.model_validate({"dialect": "tensorrt"}).dialect == "standard"
    assert Target.model_validate({"dialect": "standard"}).dialect == "standard"
    with pytest.raises(ValueError, match="dialect"):
        Target.model_validate({"dialect": "tensor"})
