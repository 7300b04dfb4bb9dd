"""Scenes in files: safetensors with what the look left, and in the header by which model and of which pictures.
Torch-free.

Place in the pipeline: `Scene.save` -> file -> `Reasoner.open_scene`, in any process.

A file may be a stranger's: its header is read strictly, every number is held against what the model leaves before a
value is read, and the values have a checksum. What decides about a look must be the same: the model (`Engine.digest`),
its number type, and the words around pictures, which are the ids of the picture part.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from lrkit import __version__
from lrkit.checkpoints.tensors.stored import StoredTensor, read_header, read_notes
from lrkit.config import Config, load_config
from lrkit.errors import CheckpointError, ConfigError, DataError, clean, os_sentence
from lrkit.files import parse_json, write_bytes
from lrkit.runtime.encode.fitting import LimitName, Resized
from lrkit.runtime.encode.looked import Looked
from lrkit.runtime.encode.processor import EncodedPrompt
from lrkit.runtime.engines.common.protocol import Engine

VERSION = 1
_NOTE = "lrkit_scene"
_IDS, _WINDOWS = "prompt.ids", "prompt.windows"
_MAX_ARRAYS, _MAX_NOTE, _MAX_PICTURES, _MAX_TOKENS = 10_000, 1 << 20, 4096, 1 << 22
_AGAIN = "look at the pictures again"
_TYPES: Mapping[str, Any] = {
    "F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32, "I16": np.int16, "U8": np.uint8,
    "BOOL": np.bool_, "F64": np.float64,
}  # fmt: skip
_NAMES = {np.dtype(kind): name for name, kind in _TYPES.items()}
_Number = Annotated[int, Field(ge=0, le=1 << 40)]
_Size = tuple[_Number, _Number]


class _Shrunk(Config):
    """`Resized` in a file."""

    image: _Number
    """Which picture, from 0."""
    original: _Size
    """As given."""
    used: _Size
    """As seen."""
    limit: LimitName
    """What it was shrunk for."""


class SceneNote(Config):
    """What the header says of a scene."""

    version: int
    """Of this format."""
    lrkit: str = Field(max_length=60)
    """Version that wrote it."""
    model: str = Field(pattern="^[0-9a-f]{64}$")
    """`Engine.digest`."""
    engine: str = Field(max_length=60)
    """Name of the engine."""
    dtype: str = Field(max_length=40)
    """Number type, or precision of the program."""
    family: str = Field(max_length=60)
    """Whose geometry the grids are of."""
    grids: tuple[tuple[_Number, ...], ...] = Field(min_length=1, max_length=_MAX_PICTURES)
    """Per picture: how it was cut."""
    sizes: tuple[_Size, ...] = Field(max_length=_MAX_PICTURES)
    """Per picture: width and height in pixels."""
    resized: tuple[_Shrunk, ...] = Field(default=(), max_length=_MAX_PICTURES)
    """Pictures that a limit made smaller."""
    content: str = Field(pattern="^[0-9a-f]{64}$")
    """SHA-256 of all values, in the order of their names."""
    kind: Literal["scene"] = "scene"
    """What it is."""


def write_scene(path: Path, engine: Engine, prompt: EncodedPrompt, looked: Looked) -> None:
    """Writes a scene; an older file is replaced at once.

    Raises:
        FileError: it cannot be written.
    """
    arrays = {name: np.ascontiguousarray(array) for name, array in looked.arrays().items()}
    arrays[_IDS] = np.asarray(prompt.ids[: prompt.picture_part], np.int64)
    if prompt.windows is not None:  # latent steps of a fine replay read them
        arrays[_WINDOWS] = np.ascontiguousarray(prompt.windows)
    note = SceneNote(
        version=VERSION, lrkit=__version__, model=engine.digest, engine=engine.name, dtype=engine.dtype,
        family=engine.processor.geometry.family, grids=tuple(prompt.grids), sizes=tuple(prompt.sizes),
        resized=tuple(_Shrunk(**one.to_dict()) for one in prompt.resized), content=_checksum(arrays),
    )  # fmt: skip
    header: dict[str, Any] = {"__metadata__": {_NOTE: note.model_dump_json()}}
    start = 0
    for name in sorted(arrays):
        array = arrays[name]
        places = [start, start + array.nbytes]
        header[name] = {"dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": places}
        start = places[1]
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    body = b"".join(arrays[name].tobytes() for name in sorted(arrays))
    write_bytes(path, len(raw).to_bytes(8, "little") + raw + body)


class SceneFile:
    """A scene's file, held against the engine that is to read it."""

    def __init__(self, path: Path, engine: Engine) -> None:
        """Reads the header, and no values but the ids.

        Raises:
            DataError: no scene, a damaged one, or one of another model or prompt format.
        """
        self._path, self._engine = path, engine
        self._note, self._tensors = _read(path)
        self.prompt = self._prompt()

    def read(self) -> Looked:
        """What the look left.

        Raises:
            DataError: the file is damaged, is gone, or has changed since it was opened.
        """
        note, tensors = _read(self._path)
        if note != self._note:
            raise DataError(f"{self._path} has changed since it was opened; open it again")
        arrays = {name: _mapped(tensor) for name, tensor in tensors.items()}
        own = (_IDS, _WINDOWS)
        try:
            looked = self._engine.looked_of({n: array for n, array in arrays.items() if n not in own}, self.prompt)
        except DataError as error:
            raise DataError(f"{self._path}: {error}") from error
        if _checksum(arrays) != note.content:
            raise DataError(f"{self._path} is damaged: its values are not those that were written; {_AGAIN}")
        return looked

    def _prompt(self) -> EncodedPrompt:
        note, engine = self._note, self._engine
        processor = engine.processor
        if note.family != processor.geometry.family or (note.model, note.dtype) != (engine.digest, engine.dtype):
            raise DataError(
                f"{self._path} is a scene of another model ({clean(note.engine)}, {clean(note.dtype)}); open it with "
                "the model that made it, or look at the pictures again"
            )
        if len(note.sizes) != len(note.grids) or any(one.image >= len(note.grids) for one in note.resized):
            raise DataError(f"{self._path} is damaged: its numbers of pictures differ; {_AGAIN}")
        tensor = self._tensors.get(_IDS)
        if tensor is None or tensor.dtype != "I64" or len(tensor.shape) != 1 or tensor.shape[0] > _MAX_TOKENS:
            raise DataError(f"{self._path} is damaged: it has no ids of the picture part; {_AGAIN}")
        ids: list[int] = _mapped(tensor).tolist()
        self._check_ids(ids)
        resized = tuple(Resized(one.image, one.original, one.used, one.limit) for one in note.resized)
        given = list(note.grids), list(note.sizes), processor.geometry, resized, len(ids)
        return EncodedPrompt(ids, None, *given, windows=self._windows(ids))

    def _windows(self, ids: list[int]) -> np.ndarray | None:
        """What a fine replay reads."""
        processor, tensor = self._engine.processor, self._tensors.get(_WINDOWS)
        if processor.zoom == 1 and tensor is None:
            return None
        window = processor.geometry.window_grid
        wanted = ids.count(processor.image_id), processor.geometry.num_patches(window), processor.geometry.patch_bytes
        if tensor is None or processor.zoom == 1 or tensor.dtype != "U8" or tensor.shape != wanted:
            raise DataError(f"{self._path} has not the windows of its pictures that the model reads; {_AGAIN}")
        return np.array(_mapped(tensor))

    def _check_ids(self, ids: list[int]) -> None:
        """They are those that the model's own format makes of such pictures."""
        processor, grids = self._engine.processor, self._note.grids
        try:
            few = all(processor.geometry.num_prompt_tokens(grid) <= len(ids) for grid in grids)
            right = few and processor.picture_ids(grids) == ids
        except Exception:  # grids are a stranger's numbers, and each family reads its own
            right = False
        if not right:
            raise DataError(
                f"{self._path} was written with another prompt format or tokenizer, or is damaged; {_AGAIN}"
            )


def _read(path: Path) -> tuple[SceneNote, dict[str, StoredTensor]]:
    try:
        tensors, notes = read_header(path), read_notes(path)
    except CheckpointError as error:
        raise DataError(str(error).replace("safetensors file", "scene")) from error
    text = notes.get(_NOTE)
    if not isinstance(text, str) or len(text) > _MAX_NOTE or len(tensors) > _MAX_ARRAYS:
        raise DataError(f"{path} is no scene; give a file that `Scene.save` wrote")
    values = parse_json(text, f"{path}: what it says of its scene", DataError)
    if values.get("version") != VERSION or isinstance(values.get("version"), bool):
        raise DataError(
            f"{path} is a scene of version {clean(json.dumps(values.get('version')))[:40]}, and this lrkit reads "
            f"{VERSION}; use the lrkit that wrote it, or look at the pictures again"
        )
    try:
        note = load_config(SceneNote, values)
    except ConfigError as error:
        raise DataError(f"{path} is damaged ({clean(str(error).splitlines()[0])[:200]}); {_AGAIN}") from error
    if odd := next((one.name for one in tensors.values() if one.dtype not in _TYPES), None):
        raise DataError(f"{path}: {clean(odd)[:60]} has a type that no scene holds; {_AGAIN}")
    return note, tensors


def _mapped(tensor: StoredTensor) -> np.ndarray:
    """The values where they lie in the file: a huge array costs nothing before its shape is found to be right."""
    if tensor.num_bytes == 0:
        return np.zeros(tensor.shape, _TYPES[tensor.dtype])
    try:
        return np.memmap(tensor.file, _TYPES[tensor.dtype], "r", tensor.start, tensor.shape)
    except (OSError, ValueError) as error:
        said = os_sentence(error, tensor.file) if isinstance(error, OSError) else f"{tensor.file} is damaged; {_AGAIN}"
        raise DataError(said) from error


def _checksum(arrays: Mapping[str, np.ndarray]) -> str:
    found = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        found.update(f"{name} {array.dtype} {array.shape}\n".encode())
        found.update(array.tobytes())
    return found.hexdigest()
