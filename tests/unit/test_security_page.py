"""docs/security.md names a test for each promise; the numbers in it are those of the code."""

import re
from pathlib import Path

from lrkit import strict_yaml
from lrkit.data.jsonl import MAX_LINE_BYTES
from lrkit.files import MAX_JSON_BYTES, MAX_JSON_DEPTH
from lrkit.runtime import picture_input, pictures, render_template
from lrkit.runtime.bundle import MAX_MANIFEST_BYTES
from lrkit.runtime.patience import SECONDS

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
        f"{strict_yaml.MAX_BYTES // mib} MiB, {strict_yaml.MAX_VALUES:,} values, {strict_yaml.MAX_DEPTH} levels",
        f"at most {MAX_JSON_BYTES // mib} MiB (bundle.json: {MAX_MANIFEST_BYTES // mib} MiB), {MAX_JSON_DEPTH} levels",
        f"{render_template.MAX_SECONDS} s of computing, {render_template.MAX_MEMORY >> 20} MiB, "
        f"{render_template.MAX_TEXT:,} characters",
        f"time-out of their own: {SECONDS:g} s",
    ):
        assert text in PAGE
    assert all(name.casefold() in PAGE.casefold() for name in pictures.FORMATS)
