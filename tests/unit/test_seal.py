"""state.pt holds its own digest (lrkit/train/seal.py)."""

import zipfile
from pathlib import Path

import pytest
import torch

from lrkit.train.failures import StateError
from lrkit.train.seal import is_broken, seal
from lrkit.train.training_state import _read


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    file = tmp_path / "state.pt"
    torch.save({"weights": torch.arange(1000.0)}, file)
    seal(file)
    return file


def test_a_sealed_file_is_read_as_any_other_and_by_others(sealed: Path) -> None:
    assert not is_broken(sealed)
    assert torch.equal(_read(sealed)["weights"], torch.arange(1000.0))
    with zipfile.ZipFile(sealed) as archive:
        assert archive.testzip() is None and archive.comment.startswith(b"lrkit sha256 ")


def test_a_file_without_a_seal_is_read_as_before(tmp_path: Path) -> None:
    for content in (b"", b"short", b"x" * 500):
        (tmp_path / "other").write_bytes(content)
        assert not is_broken(tmp_path / "other")
    torch.save({"weights": torch.ones(3)}, tmp_path / "state.pt")
    assert _read(tmp_path / "state.pt")["weights"].tolist() == [1.0, 1.0, 1.0]


def test_one_changed_bit_is_told_wherever_it_is(sealed: Path) -> None:
    whole = sealed.read_bytes()
    for place in (*range(0, len(whole) - 100, 97), len(whole) - 5):
        damaged = bytearray(whole)
        damaged[place] ^= 4
        sealed.write_bytes(damaged)
        with pytest.raises(StateError, match=r"state\.pt is damaged: .* \(sha256\); copy it back .* in a new folder$"):
            _read(sealed)


def test_a_piece_that_is_missing_or_doubled_is_told(sealed: Path) -> None:
    whole = sealed.read_bytes()
    for damaged in (whole[:500] + whole[600:], whole[:500] + whole[400:], whole[:-1000] + whole[-77:]):
        sealed.write_bytes(damaged)
        with pytest.raises(StateError, match="is damaged"):
            _read(sealed)
    sealed.write_bytes(whole[:-77])  # the seal alone
    assert torch.equal(_read(sealed)["weights"], torch.arange(1000.0))
