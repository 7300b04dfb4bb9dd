"""A second family, as unlike Qwen2-VL as a family can be, that keeps the seams honest.

One position a token, no patch merging, no bias in attention, an untied head, a marker between the rows of a picture's
image tokens, a tower without LayerNorm and without attention. Its parts are found by the table as those of a real
family: `installed` adds the row.
"""

from collections.abc import Generator
from contextlib import contextmanager
from types import MappingProxyType

from lrkit.families.table import FAMILIES

NAME = "rowwise"
"""Its model_type."""


@contextmanager
def installed() -> Generator[None]:
    """The table with a row for it."""
    before = FAMILIES.rows
    FAMILIES.rows = MappingProxyType({**before, NAME: __name__})
    try:
        yield
    finally:
        FAMILIES.rows = before
