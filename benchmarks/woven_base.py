"""Writes tiny with a tower that reads woven signs, which trail-fine starts from.

    python benchmarks/woven_base.py runs/woven      # writes runs/woven/base, and runs/woven/start: tiny/latent on it

Weaving darkens each second pixel of a sign: it multiplies the ink by 1 and -1 in turn, keeps the tint, and is linear.
The first matrix of the tower is linear too. So a folded matrix sees in a woven sign exactly what tiny's own sees in a
plain one, and nothing is trained. Plain signs are then what it cannot read.
"""

import argparse
import json
import os
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lrkit.data.board import WEAVE, WOVEN_CONTRAST, WOVEN_TINT
from lrkit.resources import resolve_checkpoint

MATRIX = "patch_embed.proj.weight"


def fold(weight: torch.Tensor) -> torch.Tensor:
    """W (width, channels, frames, p, p) -> W', where W' reads in a woven patch what W reads in a plain one.

    As the tower reads them, pixels run from -1 to 1: the tint m of a plain patch is WOVEN_TINT m of the woven one, and
    what varies around it, q, is WOVEN_CONTRAST q times the weave.
    """
    side = weight.shape[-1]
    weave = torch.from_numpy(WEAVE[:side, :side]).double()
    varying = weight.double() * weave / WOVEN_CONTRAST
    of_tint = weight.double().sum((3, 4), keepdim=True) / WOVEN_TINT - varying.sum((3, 4), keepdim=True)
    return (varying + of_tint / side**2).to(weight.dtype).contiguous()


def write_base(folder: Path) -> None:
    """tiny/base with the folded matrix."""
    shutil.copytree(resolve_checkpoint("tiny/base"), folder)
    file = folder / "model.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    weights = load_file(file)
    (name,) = [name for name in weights if name.endswith(MATRIX)]
    weights[name] = fold(weights[name])
    save_file(weights, file, metadata=metadata)


def write_start(folder: Path, base: Path) -> None:
    """The adapter of tiny/latent on that base."""
    shutil.copytree(resolve_checkpoint("tiny/latent"), folder)
    where = os.path.relpath(base, folder)
    for name, values in {
        "reasoner.json": {"base": where, "baselines": {}},
        "adapter_config.json": {"base_model_name_or_path": where},
    }.items():
        text = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**text, **values}, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a new folder")
    folder = parser.parse_args().folder.absolute()
    folder.mkdir(parents=True)
    write_base(folder / "base")
    write_start(folder / "start", folder / "base")


if __name__ == "__main__":
    main()
