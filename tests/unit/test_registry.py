"""Rows of tables that name what is not there: each is one sentence, where there once was a traceback."""

from abc import ABC, abstractmethod
from typing import Protocol

import pytest

from lrkit.contract.schemes import Scheme, Tolerance
from lrkit.data.sources import SOURCES, DataSource
from lrkit.errors import RowError
from lrkit.families.protocols import Geometry
from lrkit.registry import Registry, complete, load_object
from lrkit.runtime.engines.common.row import EngineRow
from lrkit.runtime.engines.table import ENGINES


class Counts(Protocol):
    size: int

    def count(self) -> int: ...


class Half:
    """It has the field and no method."""

    size: int


class Made(ABC):
    @abstractmethod
    def go(self) -> None: ...


@pytest.mark.parametrize(
    ("place", "offers", "said"),
    [
        ("no_such_module:X", None, r"no_such_module:X cannot be loaded \(No module named 'no_such_module'\)"),
        ("json:Nothing", None, r"json:Nothing cannot be loaded \(module 'json' has no attribute 'Nothing'\)"),
        ("json", None, "json cannot be loaded"),
        ("json:JSONDecoder", DataSource, "json:JSONDecoder is no DataSource"),
        ("lrkit.data.sources:DataSource", DataSource, "has no open, samples, which DataSource asks for"),
        ("json:JSONDecoder", EngineRow, "is no EngineRow"),
        ("json:JSONDecoder", Geometry, "has no axes, check_size, cut, .*family, .*which Geometry asks for"),
        (f"{__name__}:Half", Counts, "has no count, which Counts asks for"),
    ],
)
def test_a_row_that_cannot_be_used_is_one_sentence(place: str, offers: type | None, said: str) -> None:
    with pytest.raises(RowError, match=said) as caught:
        Registry("part", {"mine": place}, offers).load("mine")
    assert str(caught.value).startswith("part mine: ") and "\n" not in str(caught.value)


def test_every_row_that_there_is_offers_what_its_table_says() -> None:
    for table in (ENGINES, SOURCES):
        assert table.offers is not None and all(table.load(name) for name in table)
    assert load_object(f"{__name__}:Counts", "a row", Counts) is Counts


def test_a_class_that_lacks_a_method_is_one_sentence() -> None:
    with pytest.raises(RowError, match=r"engine mine is not complete .*abstract method .?go"), complete("engine mine"):
        Made()  # pyright: ignore[reportAbstractUsage]
    with pytest.raises(TypeError, match="unsupported"), complete("engine mine"):
        raise TypeError("unsupported")


@pytest.mark.parametrize(("bits", "blocks"), [(3, (32,)), (8, ()), (16, (32,))])
def test_a_scheme_that_no_program_can_hold_is_refused(bits: int, blocks: tuple[int, ...]) -> None:
    with pytest.raises(RowError, match=rf"precision mine has {bits} bits"):
        Scheme("mine", bits, Tolerance({}, "none"), quantizer="json:JSONDecoder", blocks=blocks)
