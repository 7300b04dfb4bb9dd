"""Lazy name tables: a name -> where its object lives -> the object, imported on first use.

A table (backbones, engines, tasks, verbs) is one `Registry` with rows `"name": "module:attribute"`, so listing
the names imports nothing, and a wrong name is answered with the right ones.
"""

from collections.abc import Iterator, Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Any, Generic, TypeVar, cast

from lrkit.errors import UnknownNameError, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """A fixed table of names whose objects are imported when asked for."""

    def __init__(self, kind: str, rows: Mapping[str, str]) -> None:
        """`kind` is what a row is, for messages ("backbone"); `rows` maps a name to "module:attribute"."""
        self.kind = kind
        self.rows = MappingProxyType(dict(rows))

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.rows))

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, name: object) -> bool:
        return name in self.rows

    def check(self, name: str) -> None:
        """Raises `UnknownNameError` where there is no such row; the message lists the rows."""
        if name not in self.rows:
            known = ", ".join(self) or "none"
            raise UnknownNameError(f"unknown {self.kind} {name!r}; known: {known}{did_you_mean(name, self.rows)}")

    def load(self, name: str, within: str = "") -> T:
        """The object of the row `name`; of a row that is a package, the object `within` it (".module:attribute").

        Raises:
            UnknownNameError: as `check`.
        """
        self.check(name)
        return cast(T, load_object(self.rows[name] + within))


def load_object(place: str) -> Any:
    """What "module:attribute" names, imported."""
    module, _, attribute = place.partition(":")
    return getattr(import_module(module), attribute)
