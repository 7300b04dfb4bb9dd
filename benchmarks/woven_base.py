"""Writes tiny/latent with a tower that reads woven signs, which trail-full and trail-fine start from.

    python benchmarks/woven_base.py runs/woven      # writes runs/woven/start, on the base of tiny

Weaving darkens each second pixel of a sign: it multiplies the ink by 1 and -1 in turn, keeps the tint, and is linear.
The first matrix of the tower is linear too. So a folded matrix sees in a woven sign exactly what tiny's own sees in a
plain one, and nothing is trained. Plain signs are then what it cannot read. The checkpoint holds that one matrix in
place of the base's, and what is trained from it does too.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from lrkit.checkpoints.checkpoint_folder import EXTRAS_FILE, INFO_FILE, OWN_BACKBONE, read_info
from lrkit.checkpoints.whole_weights import check_weights
from lrkit.data.board import WEAVE, WOVEN_CONTRAST, WOVEN_TINT
from lrkit.files import write_json
from lrkit.model.checkpoint import copy_checkpoint
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


def write_start(folder: Path) -> None:
    """The adapter of tiny/latent, with the folded matrix."""
    copy_checkpoint(resolve_checkpoint("tiny/latent"), folder)
    write_json(folder / INFO_FILE, {**read_info(folder), "baselines": {}})
    ((name, matrix),) = [one for one in check_weights(folder).backbone.items() if one[0].endswith(MATRIX)]
    extras = load_file(folder / EXTRAS_FILE)
    save_file({**extras, OWN_BACKBONE + name: fold(torch.from_numpy(matrix.read()))}, folder / EXTRAS_FILE)
    (folder / EXTRAS_FILE).chmod(0o644)  # safetensors writes files that only their owner may read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a new folder")
    write_start(parser.parse_args().folder / "start")


if __name__ == "__main__":
    main()
