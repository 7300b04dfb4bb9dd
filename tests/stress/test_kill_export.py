"""A killed export leaves the old bundle, the new one, or none: a few chosen moments, and many random ones."""

import os

import pytest

from tests.commands import killer

pytest.importorskip("onnx")

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the killer forks")

CHOSEN = {
    "force:before:bundle:1": "old",
    "take:after:bundle.json:1": "new",
}
"""Moment -> what is there then."""
MORE = {
    "take:after:latent.tensorrt.sm87.engine:1": "old",
    "export:before:bundle:1": "absent",
    "export:after:bundle:1": "new",
    "force:after:bundle:1": "new",
    "take:after:moving.json:1": "old",
    "take:before:bundle.json:1": "old",
}


@pytest.mark.long
def test_an_export_killed_between_two_renames_leaves_a_whole_bundle() -> None:
    """--force once moved the old bundle away first: killed then, nothing had its name."""
    assert_at(CHOSEN)


@pytest.mark.slow
def test_an_export_killed_at_other_chosen_moments_leaves_a_whole_bundle() -> None:
    assert_at(MORE)


def assert_at(moments: dict[str, str]) -> None:
    options = [argument for moment in moments for argument in ("--at", moment)]
    assert killer("kill_export", *options) == [f"{moment}: {seen}" for moment, seen in moments.items()]


@pytest.mark.slow
def test_exports_killed_at_random_moments_leave_whole_bundles() -> None:
    lines = killer("kill_export", "--kills", "40", "--seed", "3")
    assert lines[-1].startswith("40 kills: ")
