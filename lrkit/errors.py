"""Every error lrkit raises on purpose. The base of all packages: imports nothing of lrkit.

    LrkitError
    |-- UserError (also ValueError)      the input can be corrected by whoever gave it
    |   |-- ConfigError                  a recipe, target, suite or override
    |   |-- DataError                    a sample, an image, a JSONL line
    |   |-- CheckpointError              a checkpoint folder
    |   |-- BundleError                  an exported bundle
    |   |-- ExportError                  a model that cannot be exported as asked, or failed validation
    |   |-- CapacityError                an input larger than the model or bundle was made for
    |   |-- FileError                    a file or folder that cannot be written
    |   `-- UnknownNameError             a name that is in no table
    |-- RowError                         a row of a table names what is not there, or is incomplete
    |-- StoppedError                     an answer that was ended before it was complete
    |   |-- TimeoutExceeded              its time was over
    |   `-- Cancelled                    the caller took the question back
    `-- MissingExtraError (also ImportError)

A message is one sentence: what was seen, what is allowed, what to do. The command line prints it and exits
with `EXIT_CODE`; `--debug` shows the traceback.
"""

import errno
import os
import re
import shutil
import sys
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


class FileError(UserError):
    """A file or folder cannot be written: a full disk, missing rights, a name that is taken."""


class UnknownNameError(UserError):
    """A name is in no table; the message lists the known ones."""


class RowError(LrkitError):
    """A row of a table names what cannot be imported, or lacks what its kind needs."""


class StoppedError(LrkitError):
    """An answer was ended before it was complete."""


class TimeoutExceeded(StoppedError):
    """An answer took longer than was allowed."""


class Cancelled(StoppedError):
    """The caller took a question back."""


class MissingExtraError(LrkitError, ImportError):
    """A package that an optional part of lrkit needs is not installed, or cannot be imported."""


_EXTRA_OF = {
    **dict.fromkeys(
        ("torch", "transformers", "peft", "accelerate", "sklearn", "tensorboard", "safetensors", "jinja2",
         "huggingface_hub"), "train",
    ),
    **dict.fromkeys(("onnx", "onnx_ir", "onnxscript"), "export"),
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "tensorrt-rtx",
    "cuda": "tensorrt",
    "matplotlib": "analyze",
    "datasets": "data",
    "pyarrow": "data",
    "ray": "ray",
    "gguf": "smollm2",
    "wandb": "wandb",
    **dict.fromkeys(("uvicorn", "starlette", "prometheus_client"), "serve"),
}  # fmt: skip
"""Package -> the optional part that brings it."""
_BASE_PACKAGES = {"onnxruntime": "onnxruntime", "tokenizers": "tokenizers", "PIL": "pillow", "numpy": "numpy"}
"""Module -> what brings it, of packages that every install has: without them it is a damaged one."""


def require(module: str, extra: str) -> ModuleType:
    """Import `module`, which the optional part `extra` needs.

    Raises:
        MissingExtraError: the package is not installed, and the message holds the pip command that brings it; or it
            cannot be imported, and the message says why.
    """
    top_level = module.partition(".")[0]
    if top_level == "transformers" and sys.flags.optimize > 1:
        raise MissingExtraError(
            "the package transformers reads docstrings, which python -OO (PYTHONOPTIMIZE=2) takes away; leave that out"
        )
    try:
        return import_module(module)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == top_level:
            raise MissingExtraError(_missing(top_level, extra)) from error
        if isinstance(error, OSError | MemoryError):
            raise
        raise MissingExtraError(
            f"the package {top_level} is installed but cannot be imported ({one_line(error)}); install it again, or "
            "what it needs"
        ) from error


def missing_extra(error: ImportError) -> MissingExtraError | None:
    """What to say of a failed import of a package that lrkit installs; None for other packages."""
    top_level = (error.name or "").partition(".")[0]
    if top_level in _BASE_PACKAGES:
        return MissingExtraError(
            f"the package {_BASE_PACKAGES[top_level]}, which every install of lrkit has, cannot be imported; bring it "
            f"back: pip install --force-reinstall {_BASE_PACKAGES[top_level]}"
        )
    extra = _EXTRA_OF.get(top_level)
    return None if extra is None else MissingExtraError(_missing(top_level, extra))


def _missing(package: str, extra: str) -> str:
    return f'this needs the package {package}, which is not installed; pip install "lrkit[{extra}]"'


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the known name nearest to `name`, or nothing where none is near."""
    assert not isinstance(known, str), "names, not a joined text: its letters are near to nothing"
    matches = get_close_matches(name[:100], list(known), n=1, cutoff=0.6)  # of long texts it would take minutes
    return f"; did you mean {matches[0]!r}?" if matches else ""


_WHAT_TO_DO = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EFBIG: "it is larger than the system allows (ulimit -f); raise the limit",
    errno.EROFS: "the disk can only be read; give a place that can be written",
    errno.EACCES: "permission denied; check its rights",
    errno.EPERM: "the system does not allow it; check its rights",
    errno.ENOENT: "no such file or folder; check the path",
    errno.ENOTDIR: "a part of the path is a file, not a folder; check the path",
    errno.EISDIR: "is a folder where a file belongs; give the path of a file",
    errno.EEXIST: "a file of that name is there already; give another name",
    errno.ENAMETOOLONG: "the name is too long; shorten it",
    errno.EMFILE: "too many files are open; raise the limit (ulimit -n)",
    errno.ENOMEM: "there is not enough memory; free some, or ask for less",
    errno.EPIPE: "whoever read the output has closed it",
    errno.EIO: "the disk reports an error; check it",
    errno.ELOOP: "its links lead in a circle; check them",
    errno.EBUSY: "it is in use (a mount point?); give another place",
    errno.ENXIO: "nobody is at the other end; check the path",
}
# torch, safetensors and shutil hide the number in a text.
_HIDDEN_NUMBER = re.compile(r"(?:os error |\[Errno )(\d+)")
_TORCH_WRITER = ("PytorchStreamWriter", "unexpected pos", "inline_container", "basic_ios::clear", "iostream error")
_NO_MEMORY = (
    "failed to map segment", "Cannot allocate memory", "std::bad_alloc", "can't allocate memory", "not enough memory",
    "can't start new thread", "CUDA out of memory",
)  # fmt: skip
"""What the loader of shared objects, torch and Python's threads say where there is no more."""
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")


def clean(text: str) -> str:
    """Foreign text for a terminal: control characters (escapes, line ends, changes of direction) become a space."""
    return _CONTROL.sub(" ", text).encode("utf-8", "replace").decode("utf-8")


def one_line(error: BaseException | str, limit: int = 300) -> str:
    """What a library's error says, as one clean line of at most `limit` characters; its class where it says nothing."""
    text = " ".join(clean(str(error)).split())
    if not text and isinstance(error, BaseException):
        text = type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def shown(value: object, limit: int = 80) -> str:
    """A value in a message: as Python writes it, as one clean line of at most `limit` characters."""
    return one_line(ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value), limit)


def is_write_failure(error: BaseException) -> bool:
    """Is it the system's refusal to write or to give memory, whichever library reports it?"""
    if isinstance(error, OSError | MemoryError):
        return True
    text = str(error)
    named = _HIDDEN_NUMBER.search(text) is not None and type(error).__name__ == "SafetensorError"
    if _no_memory(error):
        return True
    return named or (isinstance(error, RuntimeError) and any(mark in text for mark in _TORCH_WRITER))


def _no_memory(error: BaseException) -> bool:
    told = isinstance(error, ImportError | RuntimeError) and any(mark in str(error) for mark in _NO_MEMORY)
    return told or isinstance(error, MemoryError)


def os_sentence(error: BaseException, path: "os.PathLike[str] | str | None" = None) -> str:
    """The system's refusal as one sentence that says what to do; `path` where the error itself names no file."""
    if _no_memory(error):
        return f"{_place(path)}{_WHAT_TO_DO[errno.ENOMEM]}"
    hidden = _HIDDEN_NUMBER.search(str(error))
    number = error.errno if isinstance(error, OSError) else None
    if number is None and hidden:
        number = int(hidden[1])
    if number is None and any(mark in str(error) for mark in _TORCH_WRITER):
        return f"{_place(path)}cannot be written whole; check for a full disk or a limit on file sizes"
    if number in _WHAT_TO_DO:
        reason = _WHAT_TO_DO[number]
    else:
        said = (error.strerror if isinstance(error, OSError) else None) or one_line(error)
        reason = f"{clean(str(said)).lower()}; check the path and its rights"
    named = path if path is not None else getattr(error, "filename", None)
    if named is None and isinstance(error, shutil.Error) and isinstance(error.args[0], list):
        named = error.args[0][0][1]  # (from, to, why) of each file that could not be copied
    return f"{_place(named)}{reason}"


def _place(path: object) -> str:
    if path is None or isinstance(path, int):
        return ""
    return f"{clean(os.fsdecode(path) if isinstance(path, bytes) else str(path))}: "
