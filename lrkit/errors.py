"""Every error lrkit raises on purpose. The base of all packages: imports nothing of lrkit.

    LrkitError
    |-- UserError (also ValueError)      the input can be corrected by whoever gave it
    |   |-- ConfigError                  a recipe, target, suite or override
    |   |-- DataError                    a sample, an image, a JSONL line
    |   |-- CheckpointError              a checkpoint folder
    |   |-- BundleError                  an exported bundle
    |   |-- ExportError                  a model that cannot be exported as asked, or failed validation
    |   |-- CapacityError                an input larger than the model or bundle was made for
    |   `-- UnknownNameError             a name that is in no table
    `-- MissingExtraError (also ImportError)

A message is one sentence: what was seen, what is allowed, what to do. The command line prints it and exits
with `EXIT_CODE`; `--debug` shows the traceback.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module
from types import ModuleType

EXIT_CODE = 2


class LrkitError(Exception):
    """Base of every error that lrkit raises on purpose."""


class UserError(LrkitError, ValueError):
    """Something the caller gave cannot be used as it is."""


class ConfigError(UserError):
    """A recipe, target, suite or override is wrong; one line per problem."""


class DataError(UserError):
    """A sample, an image or a line of a data file is wrong."""


class CheckpointError(UserError):
    """A checkpoint folder is missing, incomplete or of another kind."""


class BundleError(UserError):
    """A bundle is missing, incomplete, altered or of another schema."""


class ExportError(UserError):
    """A model cannot be exported as asked, or its program failed validation."""


class CapacityError(UserError):
    """An input is larger than the model or bundle was made for."""


class UnknownNameError(UserError):
    """A name is in no table; the message lists the known ones."""


class MissingExtraError(LrkitError, ImportError):
    """A package that an optional part of lrkit needs is not installed."""


def require(module: str, extra: str) -> ModuleType:
    """Import `module`, which the optional part `extra` needs.

    Raises:
        MissingExtraError: the package is not installed; the message holds the pip command that brings it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        top_level = module.partition(".")[0]
        if (error.name or "").partition(".")[0] != top_level:
            raise  # the package is there and is itself broken: its own message says more than ours
        raise MissingExtraError(
            f'this needs the package {top_level}, which is not installed: pip install "lrkit[{extra}]"'
        ) from error


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the known name nearest to `name`, or nothing where none is near."""
    matches = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {matches[0]!r}?" if matches else ""
