"""The engines, by name: one row each, imported when it is asked for. Torch-free.

Place in the pipeline: `Reasoner.load(engine=...)`, `lrkit ask|eval|validate|profile --engine` -> `open_engine` or
`open_checkpoint` -> the row's own file. A new engine is that file and a row here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from lrkit.config import Config, load_config
from lrkit.contract.bundle.bundle_folder import made_for
from lrkit.errors import UnknownNameError, UserError, did_you_mean, one_line
from lrkit.registry import Registry, complete
from lrkit.runtime.engines.common.protocol import Engine
from lrkit.runtime.engines.common.row import EngineRow
from lrkit.runtime.engines.programs.program_engine import ProgramEngine

ENGINES: Registry[EngineRow] = Registry(
    "engine",
    {
        "onnxruntime": "lrkit.runtime.engines.onnxruntime.row:ROW",
        "openvino": "lrkit.runtime.engines.openvino.row:ROW",
        "tensorrt-rtx": "lrkit.runtime.engines.tensorrt.row:RTX",
        "tensorrt": "lrkit.runtime.engines.tensorrt.row:STANDARD",
        "torch": "lrkit.runtime.engines.torch.row:ROW",
    },
    EngineRow,
)
"""onnxruntime runs every bundle, openvino those of the dialect standard, tensorrt-rtx and tensorrt the engines that
`lrkit engines` or an export put into one, torch checkpoints."""
FOR_BUNDLES, FOR_CHECKPOINTS = "onnxruntime", "torch"
"""What runs them where no engine is named. A bundle may say that it is meant for another (`Manifest.made_for`)."""


@dataclass(frozen=True)
class EngineChoice:
    """What runs a model, and how."""

    name: str | None = None
    """A name of ENGINES; None: the one for that kind of model."""
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Values of the row's options."""

    @classmethod
    def of(cls, name: str | None, options: Mapping[str, Any], **given: Any) -> Self:
        """`given` are options that callers may give by name, such as threads; None where one is not given.

        Raises:
            UserError: one that `options` gives too.
        """
        named = {key: value for key, value in given.items() if value is not None}
        if twice := next((key for key in named if key in options), None):
            raise UserError(f"{twice} is given twice, by itself and among the engine's options; give it once")
        return cls(name, {**named, **options})


def engine_row(name: str) -> EngineRow:
    """The row of that name.

    Raises:
        UnknownNameError: there is none.
    """
    if name not in ENGINES:
        rows = list(ENGINES.rows)
        raise UnknownNameError(
            f"unknown engine {one_line(repr(name), 80)}; known are {', '.join(rows)}{did_you_mean(name, rows)}"
        )
    return ENGINES.load(name)


def engine_rows() -> list[EngineRow]:
    """All rows, in the order of the table."""
    return [ENGINES.load(name) for name in ENGINES.rows]


def open_engine(path: Path | str, choice: EngineChoice | None = None, verify: bool = True) -> ProgramEngine:
    """Opens a bundle with what runs it; programs are loaded when first asked. `verify` compares every file with its
    SHA-256.

    Raises:
        UnknownNameError: no engine or provider of that name.
        BundleError: no bundle, or one that is damaged, incomplete or of a later schema, or has no engine of that kind.
        UserError: an option that is wrong, or for another engine.
    """
    choice = choice or EngineChoice()
    name, note = (choice.name, None) if choice.name else _for_bundle(path, choice.options)
    row = engine_row(name)
    if row.checkpoints:
        raise UserError(f"{path} is opened as a bundle, and engine {row.name} runs checkpoints; leave engine out")
    options = read_options(row, choice.options)
    with complete(f"engine {row.name}"):
        engine = row.open(path, options, verify)
    engine.note = engine.note or note
    return engine


def _for_bundle(path: Path | str, options: Mapping[str, Any]) -> tuple[str, str | None]:
    """(the engine that a bundle is meant for, None); where that is not installed, or has not the options that were
    given, ONNX Runtime, and what a user should know of it."""
    wanted = made_for(path)
    if wanted is None or wanted not in ENGINES:
        return FOR_BUNDLES, None
    row = engine_row(wanted)
    if any(key not in row.options.model_fields for key in options):
        return FOR_BUNDLES, None
    if row.installed():
        return wanted, None
    return FOR_BUNDLES, (
        f"this bundle was made for {wanted}, which is not installed, so {FOR_BUNDLES} runs it; "
        f'pip install "lrkit[{wanted}]"'
    )


def open_checkpoint(folder: Path, choice: EngineChoice) -> Engine:
    """Loads a checkpoint with what runs it.

    Raises:
        CheckpointError: nothing usable there.
        UserError: an option that is wrong, or for another engine, or an engine that runs bundles.
        MissingExtraError: the engine's packages are not installed.
    """
    row = engine_row(choice.name or FOR_CHECKPOINTS)
    if not row.checkpoints:
        raise UserError(f"{folder} is no bundle, and an engine runs bundles; export it first, or leave engine out")
    options = read_options(row, choice.options)
    with complete(f"engine {row.name}"):
        return row.open(folder, options, True)


def read_options(row: EngineRow, given: Mapping[str, Any], overrides: Sequence[str] = ()) -> Config:
    """The options of an engine from values and from texts such as "device=1", whose values are read as YAML.

    Raises:
        UserError: an option of another engine.
        ConfigError: an option that there is not, or a wrong value.
    """
    named = [*given, *(text.partition("=")[0].strip().split(".")[0] for text in overrides)]
    for key in named:
        if key not in row.options.model_fields and (others := _engines_with(key)):
            raise UserError(f"{key} is for engine {' or '.join(others)}, and the engine is {row.name}; leave it out")
    return load_config(row.options, given, overrides, f"engine {row.name}")


def parse_options(given: Sequence[str], engine: str | None = None) -> dict[str, Any]:
    """Engine options from "cuda_graphs=[speak]", "device=1": values as in YAML. Raises as `engine_row` and
    `read_options`."""
    if not given:
        return {}
    row = engine_row(engine or FOR_BUNDLES)
    return read_options(row, {}, given).model_dump(mode="json", exclude_unset=True)


def _engines_with(option: str) -> list[str]:
    return [row.name for row in engine_rows() if option in row.options.model_fields]
