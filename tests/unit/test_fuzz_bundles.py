"""Any value of any type at any place of bundle.json: an answer, or a sentence."""

from pathlib import Path

import pytest

from tests.bundles import QUESTION
from tests.fuzz.bundles import attempt, cases, every_place, prepare


def test_seeded_edits_of_bundle_json(own_bundle: Path) -> None:
    text = prepare(own_bundle)
    said = [attempt(own_bundle, edit, text, QUESTION) for _, edit in cases(1, 500)]
    assert "taken" in said and len(set(said)) > 100, "the edits reach many places"


@pytest.mark.slow
def test_every_place_of_bundle_json(own_bundle: Path) -> None:
    text = prepare(own_bundle)
    assert len([attempt(own_bundle, edit, text, QUESTION) for _, edit in every_place(text)]) > 500


@pytest.mark.slow
@pytest.mark.parametrize("form", ["program", "step"])
def test_many_edits_of_bundle_json(bundle: Path, step_bundle: Path, tmp_path: Path, form: str) -> None:
    import shutil

    own = Path(shutil.copytree(bundle if form == "program" else step_bundle, tmp_path / "own"))
    text = prepare(own)
    for name, edit in cases(2, 3000):
        try:
            attempt(own, edit, text, QUESTION)
        except Exception as error:
            raise AssertionError(name) from error
