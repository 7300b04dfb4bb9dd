"""Lazy name tables: a name -> where its object lives -> the object, imported on first use.

A table (backbones, engines, tasks, verbs) is one `Registry` with rows `"name": "module:attribute"`, so listing
the names imports nothing, and a wrong name is answered with the right ones.
"""

from collections.abc import Collection, Generator, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from types import MappingProxyType
from typing import Any, Generic, TypeVar, cast

from lrkit.errors import LrkitError, RowError, UnknownNameError, did_you_mean, missing_extra, one_line

T = TypeVar("T")


class Registry(Generic[T]):
    """A fixed table of names whose objects are imported when asked for."""

    def __init__(self, kind: str, rows: Mapping[str, str], offers: type | None = None) -> None:
        """`kind` is what a row is, for messages ("backbone"); `rows` maps a name to "module:attribute"; `offers` as in
        `load_object`."""
        self.kind, self.offers = kind, offers
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

    def load(self, name: str, within: str = "", offers: type | None = None, may_lack: Collection[str] = ()) -> T:
        """The object of the row `name`; of a row that is a package, the object `within` it (".module:attribute").
        `offers` and `may_lack` as in `load_object`.

        Raises:
            UnknownNameError: as `check`.
            RowError: as `load_object`.
        """
        self.check(name)
        return cast(T, load_object(self.rows[name] + within, f"{self.kind} {name}", offers or self.offers, may_lack))


def load_object(place: str, what: str = "a row", offers: type | None = None, may_lack: Collection[str] = ()) -> Any:
    """What "module:attribute" names, imported; `what` names the row in messages. `offers` is the class of the object or
    above it, or a protocol whose members it must have but for those of `may_lack`.

    Raises:
        RowError: there is no such object, its module cannot be imported, or the object is not what `offers` says.
        MissingExtraError: its module needs a package that is not installed.
    """
    module, _, attribute = place.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except (LrkitError, OSError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, ImportError) and missing_extra(error) is not None:
            raise  # the command line says which package brings it
        raise RowError(f"{what}: {place} cannot be loaded ({one_line(error)}); write it, or correct the row") from error
    if offers is not None and (fault := _unlike(found, offers, may_lack)):
        raise RowError(f"{what}: {place} {fault}; complete it, or correct the row")
    return found


def _unlike(found: Any, offers: type, may_lack: Collection[str]) -> str | None:
    """What keeps an object from being what `offers` says; None: nothing."""
    if getattr(offers, "_is_protocol", False):
        asked, has = _members(offers) - set(may_lack), _members(found) if isinstance(found, type) else set[str]()
        lacking = [n for n in sorted(asked) if not n.startswith("_") and n not in has and not hasattr(found, n)]
    elif isinstance(found, offers) or (isinstance(found, type) and issubclass(found, offers)):
        lacking = sorted(getattr(found, "__abstractmethods__", ())) if isinstance(found, type) else []
    else:
        return f"is no {offers.__name__}"
    return f"has no {', '.join(lacking)}, which {offers.__name__} asks for" if lacking else None


def _members(kind: type) -> set[str]:
    """Names of methods, and of fields of its objects."""
    return {n for base in kind.__mro__[:-1] for n in (*vars(base), *vars(base).get("__annotations__", ()))}


@contextmanager
def complete(what: str) -> Generator[None]:
    """While a plug-in makes its objects: a class that lacks a method is a `RowError`, one sentence."""
    try:
        yield
    except TypeError as error:
        if "instantiate abstract class" not in str(error):
            raise
        raise RowError(f"{what} is not complete ({one_line(error)}); write what is missing") from error
