"""`lrkit export --int4 --max-loss` on a model whose answers rounding takes: it is refused, and nothing is written.

The model is tiny with one number in each block made 400 times as large: a row of the up projection is divided, and the
column of the down projection that reads it multiplied, so that in float32 it answers as before. Rounded to 16 values,
the other numbers of each block are lost beside it.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lrkit.resources import resolve_checkpoint
from tests.commands import lrkit

FACTOR, BLOCK = 400.0, 32
LORA = "base_model.model.model.language_model."


@pytest.fixture
def outlying(tmp_path: Path) -> Path:
    """tiny, with one outlier in each block of its down projections."""
    for name in ("base", "latent"):
        shutil.copytree(resolve_checkpoint(f"tiny/{name}"), tmp_path / name)
    base_file, adapter_file = tmp_path / "base/model.safetensors", tmp_path / "latent/adapter_model.safetensors"
    base, adapter = load_file(base_file), load_file(adapter_file)
    for layer in range(4):
        up, down = f"layers.{layer}.mlp.up_proj", f"layers.{layer}.mlp.down_proj"
        place = np.arange(0, base[f"model.{down}.weight"].shape[1], BLOCK)
        base[f"model.{up}.weight"][place] /= FACTOR
        adapter[f"{LORA}{up}.lora_B.weight"][place] /= FACTOR
        base[f"model.{down}.weight"][:, place] *= FACTOR
        adapter[f"{LORA}{down}.lora_A.weight"][:, place] *= FACTOR
    save_file(base, base_file, {"format": "pt"})
    save_file(adapter, adapter_file, {"format": "pt"})
    return tmp_path / "latent"


@pytest.mark.long
def test_a_real_loss_is_refused_and_nothing_is_written(
    outlying: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same model without rounding is written, for it answers as torch does."""
    common = ("--no-baselines", "--data", "trail:main", "--samples", "60", "--max-loss", "5")
    bundle, folder = tmp_path / "bundle", {path.name for path in tmp_path.iterdir()}
    assert lrkit("export", outlying, "--int4", *common, "-o", bundle) == 2
    said = capsys.readouterr().err
    assert "points of accuracy, where --max-loss allows 5" in said and "right in torch" in said
    assert {path.name for path in tmp_path.iterdir()} == folder, "no bundle, and nothing half-written beside it"
    assert lrkit("export", outlying, *common, "-o", bundle) == 0 and (bundle / "bundle.json").is_file()
