"""A second family takes the rest of the road: exported, validated, asked without torch, and profiled as a bundle.

The fake family of tests/fake_family; an export compares logits, states and every spoken token with torch.
"""

import json
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from lrkit import Reasoner
from lrkit.cli.main import main
from lrkit.contract.settings import ReasonerSettings
from lrkit.model.build import build_reasoner
from lrkit.model.checkpoint import save_checkpoint
from lrkit.runtime.engines.programs.counts import count_program
from tests.fake_family import NAME, installed
from tests.fake_family.backbone import RowwiseBackbone
from tests.fake_family.folder import rowwise_model, rowwise_processor, write_data

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = ReasonerSettings.model_validate(
    {
        "think": {"max_latent_steps": 2, "halting": "fixed"},
        "replay": {"num_tokens": 4},
        "routing": {"depth": 1, "alpha": 4},
    }
)
QUESTION = "Which colour ?"
WITHOUT_TORCH = """
import sys
for name in ("torch", "transformers", "peft", "onnx", "onnx_ir"):
    sys.modules[name] = None
from lrkit.cli.main import main
from tests.fake_family import NAME, installed
with installed():
    main(["ask", sys.argv[1], "--image", sys.argv[2], "--image", sys.argv[3], sys.argv[4]])
"""
SHAPE = {
    "description": "a few thousand weights", "family": NAME, "hidden_size": 32, "num_layers": 2, "num_heads": 4,
    "num_kv_heads": 2, "intermediate_size": 64, "vocabulary": 256, "tied_embeddings": False, "vision_depth": 1,
    "vision_width": 32, "vision_heads": 2, "vision_mlp_ratio": 2, "patch_size": 8, "merge_size": 1,
    "image_size": [48, 32],
}  # fmt: skip


def lrkit(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    return int(left.value.code or 0)


pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Generator[Path]:
    """A working folder with a checkpoint of random weights, data, and the bundle of its fp32 program."""
    home = tmp_path_factory.mktemp("rowwise-export")
    with installed(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        processor = rowwise_processor()
        backbone = RowwiseBackbone(rowwise_model(processor, seed=5))  # says more than one word
        reasoner = build_reasoner(backbone, SETTINGS, processor.latent_id).eval()
        save_checkpoint(home / "trained", reasoner, processor, base=None, info={})
        write_data(home / "data")
        assert export("fp32", "--target", "cpu-fp32") == 0
        yield home


def load_engine(what: str) -> Any:
    load = Reasoner.load if what == "fp32" else Reasoner.from_checkpoint
    return load(what).engine


def export(name: str, *options: str) -> int:
    small = ("limits.max_images=2", "limits.max_new_tokens=6")
    data = ("--data", "data/data.jsonl", "--samples", "5", "--allow-unproven")
    return lrkit("export", "trained", *options, *small, *data, "-o", name, "--json", f"{name}.json")


def report(name: str) -> dict:
    return json.loads(Path(f"{name}.json").read_text(encoding="utf-8"))


def measured(name: str) -> dict:
    return report(name)["manifest"]["validation"]["latent"]["measured"]


def test_its_program_is_torchs_model_token_by_token(home: Path) -> None:
    found = measured("fp32")
    assert max(found["prefill_logits"], found["latent_states"]) < 1e-5
    assert set(found["agreement"].values()) == {1.0} and "spoken tokens" in found["agreement"]
    manifest = report("fp32")["manifest"]
    inputs = {one["name"]: one["shape"] for one in manifest["programs"]["latent"]["spec"]["inputs"]}
    assert (inputs["position_ids"], inputs["patch_places"]) == ([1, "P"], ["N", 3])
    assert manifest["family"] == NAME


def test_its_bundle_is_valid_and_answers_without_torch(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Answers of the checkpoint on torch are those of the bundle in a Python that has no torch."""
    assert lrkit("validate", "fp32") == 0
    pictures = ["data/1.png", "data/0.png"]
    capsys.readouterr()
    asked = ("--image", pictures[0], "--image", pictures[1], QUESTION, "--max-new-tokens", "6")
    assert lrkit("ask", "trained", *asked) == 0
    command = [sys.executable, "-c", WITHOUT_TORCH, "fp32", *pictures, QUESTION]
    path = {"PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, cwd=home, env=path, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == capsys.readouterr().out != "\n"


def test_its_bundle_is_profiled(home: Path) -> None:
    small = ("max_new_tokens=3", "repeats=1", "phase_samples=1")
    assert lrkit("profile", "fp32", "--suite", "smoke", "--data", "data/data.jsonl", "-o", "profile", *small) == 0
    assert json.loads(Path("profile/report.json").read_text(encoding="utf-8"))


def test_weights_are_counted_from_its_bundle_as_on_torch(home: Path) -> None:
    """What its profile's ceilings come from. Without a gate a layer has one matrix less."""
    engine = load_engine("fp32")
    on_torch, counted = load_engine("trained").counts().weights, engine.counts().weights
    same = ("merger", "layers", "head")
    assert [counted[part] for part in same] == [on_torch[part] for part in same]
    assert counted["vision"] == on_torch["vision"], "tables that patches look up are no products"
    sizes = engine.entry.sizes.model_copy(update={"inner_matrices": 2})
    without = count_program(engine.bundle.manifest, engine.entry.model_copy(update={"sizes": sizes})).weights
    assert counted["layers"] - without["layers"] == 3 * 32 * 64


def test_a_shape_that_names_it_becomes_a_bundle(home: Path) -> None:
    """The other precision, dialect and form. In int4 too the program is torch's model token by token, where torch holds
    what the integers stand for."""
    Path("shape.json").write_text(json.dumps(SHAPE), encoding="utf-8")
    other = ("--int4", "--dialect", "standard", "--form", "step", "int4.block=32", "limits.max_new_tokens=4")
    assert lrkit("export", "random:shape.json", *other, "-o", "shape", "--json", "shape.report.json") == 0
    found = measured("shape.report")
    assert max(found["prefill_logits"], found["latent_states"]) < 1e-5
    assert set(found["agreement"].values()) == {1.0}
    assert len(report("shape.report")["quantization_errors"]["latent"]) == 2 * 4 + 1, (
        "qkv, out, gate and up, down; head"
    )
    assert lrkit("validate", "shape") == 0
