"""Woven boards: their signs are in the full picture and nowhere in one of half the size; a folded tower reads them."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.woven_base import MATRIX, fold, write_start
from lrkit.checkpoints.whole_weights import check_weights
from lrkit.data.board import NOTHING, WEAVE, WOVEN_CONTRAST, WOVEN_TINT, draw_board
from lrkit.resources import resolve_checkpoint
from lrkit.runtime.checks.checkpoint_files import check_checkpoint


def halved(picture: np.ndarray) -> np.ndarray:
    image = Image.fromarray(picture)
    return np.asarray(image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC)).astype(int)


def test_each_room_has_one_sign_in_one_of_its_four_tiles() -> None:
    board = draw_board("test", "woven", np.random.default_rng(0))
    (signs,) = board.signs
    rooms = signs.reshape(2, 2, 5, 2).swapaxes(1, 2).reshape(10, 4)
    assert ((rooms != NOTHING).sum(1) == 1).all()
    assert sorted(board.next_room) == list(range(10)) and len(board.token_digits) == 40


def test_half_the_size_shows_no_sign() -> None:
    # Boards that differ in their signs alone: what is left of the difference is rounding, and in full it is not.
    one, other = (draw_board("test", "woven", np.random.default_rng(seed)).pictures[0] for seed in (1, 2))
    assert np.abs(one.astype(int) - other).max() > 60
    assert np.abs(halved(one) - halved(other)).max() <= 2


def test_a_folded_matrix_reads_in_woven_patches_what_the_matrix_reads_in_plain_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 3, 2, 8, 8, generator=generator)
    tint, varying = torch.rand(3, 1, 1, generator=generator), torch.rand(3, 8, 8, generator=generator)
    weave = torch.from_numpy(WEAVE[:8, :8])
    # A sign that darkens as much as it lightens, so that the tint is the mean.
    varying = varying - (varying * weave).mean((1, 2), keepdim=True) * weave
    varying = varying - varying.mean((1, 2), keepdim=True)
    varying = varying - (varying * weave).mean((1, 2), keepdim=True) * weave
    plain = tint + varying
    woven = WOVEN_TINT * tint + WOVEN_CONTRAST * varying * weave
    sums = [torch.einsum("wcfyx,cyx->w", w, p) for w, p in ((weight, plain), (fold(weight), woven))]
    torch.testing.assert_close(sums[1], sums[0], rtol=1e-4, atol=1e-4)


def test_the_recipes_start_from_what_the_script_writes() -> None:
    for name in ("trail-fine", "trail-full"):
        recipe = Path(f"train/recipes/{name}.yaml").read_text()
        assert "init: runs/woven/start" in recipe and "benchmarks/woven_base.py runs/woven" in recipe


def test_the_script_writes_one_matrix_which_is_the_shipped_one(tmp_path: Path) -> None:
    write_start(tmp_path / "start")
    start, shipped = (check_weights(folder) for folder in (tmp_path / "start", resolve_checkpoint("tiny/closer")))
    (name,) = start.replaced
    assert name.endswith(MATRIX) and (start.replaced[name].read() == shipped.replaced[name].read()).all()
    assert 100 * start.replaced[name].num_bytes < 3 * sum(one.num_bytes for one in start.backbone.values())
    assert check_checkpoint(tmp_path / "start").problems == []
