"""Checks by its first bytes that an engine file is whole and was built by the package that is installed here.

Place in the pipeline: engine.py asks before it loads an engine. Torch-free.

TensorRT-RTX writes a header of 64 bytes (measured on 1.7.1): "vtrt", 12 bytes, the size of the whole file (8 bytes,
little-endian), and the version that wrote it (4 bytes: 1, 7, 1, 116).
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

from lrkit.contract.bundle.manifest import EngineEntry
from lrkit.errors import BundleError, one_line
from lrkit.runtime.engines.tensorrt.library import PACKAGES, TensorRT

HEADER_BYTES = 64
_MAGIC = b"vtrt"
_AGAIN = "copy the bundle again"


@dataclass(frozen=True)
class Header:
    """What the first bytes of a TensorRT-RTX engine say."""

    num_bytes: int
    """Of the whole file."""
    version: str
    """Of the package that wrote it."""


def read_header(start: bytes) -> Header | None:
    """The header at the start of a TensorRT-RTX engine; None where there is none."""
    if len(start) < HEADER_BYTES or start[:4] != _MAGIC:
        return None
    (size,) = struct.unpack_from("<Q", start, 16)
    return Header(int(size), ".".join(str(number) for number in start[24:28]))


def check_version(path: Path, entry: EngineEntry, library: TensorRT) -> None:
    """Refuses an engine that another major version built.

    Raises:
        BundleError: naming both versions.
    """
    if int(entry.version.partition(".")[0]) != library.major:
        package = PACKAGES[library.kind]
        raise BundleError(
            f"{path}: was built by {package} {entry.version}, and {library.version} is installed, which runs engines "
            f"of its own major version only; install {package} {entry.version}, or build the engine again"
        )


def open_engine_file(path: Path, entry: EngineEntry) -> mmap.mmap:
    """The content of an engine file, mapped.

    Raises:
        BundleError: the file is missing, empty, cut off or no engine of its kind.
    """
    try:
        with path.open("rb") as stream:
            content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise BundleError(f"{path}: cannot be read as an engine ({one_line(error)}); {_AGAIN}") from error
    if len(content) < HEADER_BYTES:
        raise BundleError(f"{path}: is cut off: it has {len(content)} bytes, not even an engine's header; {_AGAIN}")
    if entry.kind != "tensorrt-rtx":
        return content
    header = read_header(content[:HEADER_BYTES])
    if header is None:
        raise BundleError(f"{path}: is no engine of tensorrt-rtx (it begins with {content[:4]!r}); {_AGAIN}")
    if len(content) < header.num_bytes:
        raise BundleError(f"{path}: is cut off: it has {len(content)} bytes where {header.num_bytes} belong; {_AGAIN}")
    return content
