"""Adapters over bases of integers, and calibration of a base below its adapter, through the command line.

A base that is quantized already keeps its integers beside an adapter that is kept apart, and is rounded once more,
with a note, where the adapter is merged.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lrkit import Reasoner
from lrkit.contract.bundle.bundle_folder import open_bundle
from lrkit.contract.bundle.manifest import Manifest
from lrkit.data.ledger.ledger_samples import ledger_set
from lrkit.data.trail import trail_set
from lrkit.export.weights.streaming import stream_source
from lrkit.files import sha256
from lrkit.resources import resolve_checkpoint
from lrkit.train.fetched_base import write_base
from lrkit.train.known_bases import SMOLLM2_135M, Tower
from tests.commands import lrkit
from tests.e2e.test_quantized_export import AWQ, GPTQ, stored
from tests.quantized import Base, awq, gptq, write_quantized

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("one_thread")]
ADAPTER = "adapter_model.safetensors"
RECIPE = """\
name: beside
init: {base}
trainable: lora
model:
  think: {{max_latent_steps: 2, halting: fixed}}
  replay: {{num_tokens: 2}}
  lora: {{rank: 3, alpha: 6.0}}
data: {{kind: ledger}}
optimizer: {{kind: adamw, lr: 1.0e-3}}
batch_size: 1
eval: {{every: 0, samples: 1, max_new_tokens: 2}}
stages:
  - {{name: short, tasks: {{short: 1.0}}, lengths: [1, 2], updates: 1}}
  - {{name: latent, tasks: {{short: 1.0}}, lengths: [2], latent_steps: 1, updates: 1}}
"""


def with_large_adapter(checkpoint: Path, size: float) -> Path:
    """Random values in B, which two updates leave near zero: what the adapter adds is then as large as the weights."""
    file, rng = checkpoint / ADAPTER, np.random.default_rng(0)
    tensors = load_file(file)
    for name, value in tensors.items():
        if ".lora_B." in name:
            tensors[name] = (rng.standard_normal(value.shape) * size).astype(value.dtype)
    save_file(tensors, file, {"format": "pt"})
    return checkpoint


@pytest.fixture(scope="module")
def over_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two updates on a base whose language model is a GGUF file."""
    pytest.importorskip("gguf")
    pytest.importorskip("sklearn")
    from tests.tiny_gguf import write_tiny_gguf

    folder = tmp_path_factory.mktemp("over")
    file = write_tiny_gguf(folder / "tiny.gguf")
    digest, size = sha256(file)
    base = replace(SMOLLM2_135M, sha256=digest, num_bytes=size)
    write_base(folder / "base", base, file, Tower(depth=1, width=16, heads=2, mlp_ratio=2), 0, floats=False)
    (folder / "recipe.yaml").write_text(RECIPE.format(base=folder / "base"), encoding="utf-8")
    assert lrkit("train", folder / "recipe.yaml", "-o", folder / "run") == 0
    run = json.loads((folder / "run" / "run.json").read_text())
    return with_large_adapter(folder / "run" / run["checkpoint"], 0.2)


def over_packed(kind: str, folder: Path) -> Path:
    """tiny's adapter over a base of drawn integers."""
    base = Base.of(resolve_checkpoint("tiny/base"), folder)
    config, pack = {"gptq": (GPTQ, gptq), "awq": (AWQ, awq)}[kind]
    write_quantized(base, folder / "base", config, pack, 32, symmetric=False)
    shutil.copytree(resolve_checkpoint("tiny/latent"), folder / "latent")
    return folder / "latent"


def export(checkpoint: Path, place: Path, *more: object, samples: int = 3) -> Manifest:
    """Random weights have no right answers, so what proves nothing is allowed."""
    asked = ("--no-baselines", "--allow-unproven", "--samples", samples, "limits.max_new_tokens=8", "-o", place)
    assert lrkit("export", checkpoint, "--int4", *asked, *more) == 0
    return open_bundle(place).manifest


LEDGER = ("--data", "ledger:main", "limits.max_prompt_tokens=512", "int4.accuracy_level=0")
TRAIL = ("--data", "trail:main", "int4.accuracy_level=0")


def largest_error(manifest: Manifest) -> float:
    """Of the logits behind the prompt and the latent states, in units of the largest number."""
    found: Any = manifest.validation["latent"].measured
    return max(found["prefill_logits"], found["latent_states"])


def phases(manifest: Manifest) -> dict[str, float]:
    """Mean error of the last latent step, and of the logits behind the prompt."""
    found: Any = manifest.validation["latent"].measured["phases"]
    return {name: found[name]["mean"] for name in ("prompt.logits", "latent.last")}


def integers_of(bundle: Path) -> dict[str, np.ndarray]:
    """Of the layers' matrices, packed."""
    found = {name: array for name, array in stored(bundle).items() if name[0].isdigit() and name.endswith(".int4")}
    assert len(found) == 4 * 4
    return found


def holds_integers_of(checkpoint: Path, bundle: Path, manifest: Manifest) -> None:
    """Of every matrix, the program has those of the base's files."""
    kept = manifest.provenance["stored_integers"]["latent"]
    assert manifest.programs["latent"].adapter == "keep" and kept["rounded_again"] == []
    source, arrays, seen = stream_source(checkpoint, keep=True), stored(bundle), 0
    for number in range(source.dimensions.num_layers):
        for role in ("qkv", "out", "gate_up", "down"):
            found = source.stored(f"{number}.{role}")
            packed = arrays[f"{number}.{role}.int4"]
            assert found is not None
            unpacked = np.stack([packed & 15, packed >> 4], -1).reshape(found.integers.shape)
            np.testing.assert_array_equal(unpacked.astype(np.int8) - 8, found.integers)
            seen += 1
    assert kept["kept"] >= seen > 0


def test_a_gguf_base_keeps_its_integers_beside_an_adapter(over_gguf: Path, tmp_path: Path) -> None:
    """The adapter changes what is said, and the program computes it as torch does."""
    manifest = export(over_gguf, tmp_path / "bundle", *LEDGER, "int4.head=float", "int4.embedding=float")
    holds_integers_of(over_gguf, tmp_path / "bundle", manifest)
    assert largest_error(manifest) < 1e-4
    (sample,) = ledger_set("main", "val", 1, lengths=(2,))
    image: Any = sample.images[0]
    program, torch = Reasoner.load(tmp_path / "bundle"), Reasoner.from_checkpoint(over_gguf)
    asked: dict[str, Any] = {"max_new_tokens": 6}
    ours, theirs = (one.ask(image, sample.question, **asked) for one in (program, torch))
    assert (ours.text, ours.latent_steps) == (theirs.text, theirs.latent_steps)


@pytest.mark.parametrize("kind", ["gptq", "awq"])
def test_a_packed_base_keeps_its_integers_beside_an_adapter(kind: str, tmp_path: Path) -> None:
    checkpoint = over_packed(kind, tmp_path)
    manifest = export(checkpoint, tmp_path / "bundle", *TRAIL, "int4.head=float", "int4.embedding=float", samples=2)
    holds_integers_of(checkpoint, tmp_path / "bundle", manifest)
    assert largest_error(manifest) < 1e-3


def test_a_merged_adapter_has_its_matrices_rounded_once_more(
    over_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bundle names them, and a note says how they are kept."""
    manifest = export(over_gguf, tmp_path / "bundle", *LEDGER, "--adapter", "merge", samples=1)
    assert "--adapter keep" in (said := " ".join(capsys.readouterr().err.split())) and "rounds once more" in said
    kept = manifest.provenance["stored_integers"]["latent"]
    matrices = {f"{number}.{name}" for number in range(2) for name in ("qkv", "out", "gate_up", "down")}
    assert manifest.programs["latent"].adapter == "merge" and set(kept["rounded_again"]) == matrices
    assert kept["kept"] == 2, "head and embedding, which no adapter changes"
    source = stream_source(over_gguf, keep=True)
    arrays = stored(tmp_path / "bundle")
    for role in matrices:
        found, packed = source.stored(role), arrays[f"{role}.int4"]
        assert found is not None
        unpacked = np.stack([packed & 15, packed >> 4], -1).reshape(found.shape).astype(np.int8) - 8
        assert np.mean(unpacked != found.integers.reshape(found.shape)) > 0.3


def test_a_quantized_base_that_is_calibrated_is_rounded_once_more(
    over_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The adapter stays apart, and the note does not blame it."""
    calibrate = ("--int4-method", "gptq", "--calibration", "ledger:main", "--calibration-samples", 2)
    manifest = export(over_gguf, tmp_path / "bundle", *LEDGER, *calibrate, samples=1)
    said = " ".join(capsys.readouterr().err.split())
    assert "rounds once more" in said and "--adapter keep" not in said
    kept = manifest.provenance["stored_integers"]["latent"]
    assert manifest.programs["latent"].adapter == "keep" and kept["kept"] == 0 and len(kept["rounded_again"]) == 10
    assert all(manifest.provenance["calibration"]["latent"]["inputs"].values())


def test_calibration_sees_the_model_with_its_adapter(tmp_path: Path) -> None:
    """Below another adapter the same base gets other integers. What is calibrated errs less than what is rounded, in
    the prompt and at the last latent step."""
    for name in ("base", "latent"):
        shutil.copytree(resolve_checkpoint(f"tiny/{name}"), tmp_path / name)
    shutil.copytree(tmp_path / "latent", tmp_path / "other")
    with_large_adapter(tmp_path / "other", 0.03)
    keep = ("--adapter", "keep", *TRAIL)
    calibrate = (*keep, "--int4-method", "gptq", "--calibration", write_trails(tmp_path / "seen", 14))
    rounded = export(tmp_path / "latent", tmp_path / "rtn", *keep, samples=8)
    seen = export(tmp_path / "latent", tmp_path / "gptq", *calibrate, samples=8)
    export(tmp_path / "other", tmp_path / "gptq-other", *calibrate, samples=1)
    assert rounded.programs["latent"].adapter == seen.programs["latent"].adapter == "keep"
    plain, ours, others = (integers_of(tmp_path / name) for name in ("rtn", "gptq", "gptq-other"))
    for role, packed in ours.items():
        assert np.mean(packed != plain[role]) > 0.02 and np.mean(packed != others[role]) > 0.02, role
    before, after = phases(rounded), phases(seen)
    assert all(after[phase] < before[phase] for phase in before), (before, after)
    assert seen.validation["latent"].passed


def write_trails(folder: Path, count: int) -> Path:
    """Questions of the training half, as a file."""
    folder.mkdir()
    lines: list[str] = []
    for number, sample in enumerate(trail_set("main", "train", count)):
        image: Any = sample.images[0]
        image.save(folder / f"{number}.png")
        asked = {"question": sample.question, "steps": list(sample.steps), "answer": sample.answer}
        lines.append(json.dumps({"image": f"{number}.png", **asked}))
    (folder / "trails.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "trails.jsonl"
