"""The table of families: rows, parts, and bundles from before it. The laws that each family keeps: tests/families/."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lrkit import Reasoner
from lrkit.errors import UnknownNameError, UserError
from lrkit.families.common.no_windows import NoWindows, zoomed
from lrkit.families.protocols import WINDOWS
from lrkit.families.table import FAMILIES, geometry_of, load_part
from tests.bundles import QUESTION, picture
from tests.fake_family import NAME, installed
from tests.fake_family.geometry import RowwiseGeometry


def test_a_row_is_found_by_name_and_only_while_it_is_there() -> None:
    with installed():
        assert geometry_of(NAME) is RowwiseGeometry
    with pytest.raises(UnknownNameError, match=f"unknown backbone '{NAME}'; known: .*qwen2_vl"):
        load_part(NAME, "geometry")


def test_a_part_that_a_family_lacks_is_named() -> None:
    with installed(), pytest.raises(UnknownNameError, match=f"{NAME} has no part tune"):
        load_part(NAME, "tune")


def test_a_geometry_that_was_written_before_windows_still_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fine replay added three members to the protocol, and the table then refused a stranger's family for them."""
    for name in WINDOWS:
        monkeypatch.delattr(NoWindows, name)
    with installed():
        geometry = geometry_of(NAME)()
    assert not any(hasattr(type(geometry), name) for name in WINDOWS)
    assert zoomed(geometry, 1) is geometry
    with pytest.raises(UserError, match=f"pictures of {NAME} are all seen at one size, so they have no windows"):
        zoomed(geometry, 2)


def test_parts_that_serve_bundles_need_no_torch() -> None:
    program = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'peft', 'onnx'): sys.modules[name] = None\n"
        "from lrkit.families.table import FAMILIES, load_part\n"
        "for family in FAMILIES:\n"
        "    for part in ('layout', 'geometry', 'prompt', 'fresh'): load_part(family, part)\n"
    )
    assert len(FAMILIES) > 0
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_bundle_that_names_no_family_is_the_first_familys(own_bundle: Path) -> None:
    """As they were written before the family was recorded."""
    before = Reasoner.load(own_bundle).ask(picture(), QUESTION)
    file = own_bundle / "bundle.json"
    values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    assert values.pop("family") == "qwen2_vl" and values.pop("patches_per_token") == 4
    file.write_text(json.dumps({**values, "merge_size": 2}), encoding="utf-8")
    after = Reasoner.load(own_bundle, verify=False).ask(picture(), QUESTION)
    assert (after.text, after.regions) == (before.text, before.regions)
