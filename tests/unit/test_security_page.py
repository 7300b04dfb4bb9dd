"""docs/security.md names a test for each promise; the numbers in it are those of the code."""

import re
from pathlib import Path

import pytest
import torch

from lrkit import strict_yaml
from lrkit.contract.bundle.bundle_folder import MAX_MANIFEST_BYTES
from lrkit.data.jsonl import MAX_LINE_BYTES
from lrkit.errors import CheckpointError
from lrkit.files import MAX_JSON_BYTES, MAX_JSON_DEPTH
from lrkit.pictures import input as picture_input
from lrkit.pictures import load as pictures
from lrkit.runtime.encode import render_template, tokenizer_files
from lrkit.runtime.engines.programs.patience import SECONDS
from lrkit.train.training_state import _read

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/security.md").read_text(encoding="utf-8")


def test_every_file_that_it_names_is_there() -> None:
    named = re.findall(r"`((?:tests|lrkit)/[\w/.]+)`", PAGE)
    assert len(named) > 15
    assert [name for name in named if not (ROOT / name).is_file()] == []
    assert "docs/security.md" in (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def test_its_numbers_are_those_of_the_code() -> None:
    mib = 1 << 20
    for text in (
        f"{picture_input.MAX_FILE_BYTES // mib} MiB of file, {pictures.MAX_INPUT_PIXELS // 10**6} megapixels, "
        f"{pictures.MAX_DECODE_SECONDS:g} s of decoding",
        f"{MAX_LINE_BYTES // mib} MiB a line",
        f"{tokenizer_files._MAX_BYTES // mib} MiB; ids below {tokenizer_files._MAX_ID:,}",
        f"{strict_yaml.MAX_BYTES // mib} MiB, {strict_yaml.MAX_VALUES:,} values, {strict_yaml.MAX_DEPTH} levels",
        f"at most {MAX_JSON_BYTES // mib} MiB (bundle.json: {MAX_MANIFEST_BYTES // mib} MiB), {MAX_JSON_DEPTH} levels",
        f"{render_template.MAX_SECONDS} s of computing, {render_template.MAX_MEMORY >> 20} MiB, "
        f"{render_template.MAX_TEXT:,} characters",
        f"time-out of their own: {SECONDS:g} s",
    ):
        assert text in PAGE
    assert all(name.casefold() in PAGE.casefold() for name in pictures.FORMATS)


class Writes:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.place), "w")


def test_a_state_of_a_stranger_runs_no_code(tmp_path: Path) -> None:
    torch.save({"recipe": Writes(tmp_path / "ran")}, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        _read(tmp_path / "state.pt")
    assert not (tmp_path / "ran").exists()
