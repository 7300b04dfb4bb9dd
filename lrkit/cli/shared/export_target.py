"""What `lrkit export`, `engines` and `preflight` were asked for: the target and, in it, the TensorRT engines."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from lrkit.contract.bundle.io_spec import Form
from lrkit.contract.bundle.manifest import AdapterKind
from lrkit.errors import UserError

if TYPE_CHECKING:
    from lrkit.export.subject import CheckpointSubject
    from lrkit.export.targets.engine_target import EngineTarget
    from lrkit.export.targets.target import Target

Changes = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes of the target, by dotted path.")
]
Int4 = Annotated[bool, typer.Option("--int4", help="Short for --target cpu-int4.")]
FormName = Annotated[
    str, typer.Option(help="program: one graph with its loops inside; step: graphs that the host drives.")
]
AdapterName = Annotated[
    str | None,
    typer.Option(
        "--adapter",
        help="LoRA: merge adds it to the matrices, keep lets it run beside them in floats. [default: merge]",
        rich_help_panel="Adapter",
    ),
]
WithAdapter = Annotated[
    list[str] | None,
    typer.Option(
        "--with-adapter",
        help="NAME=CHECKPOINT over the same base: the program can be asked by its adapter too; repeat.",
        rich_help_panel="Adapter",
    ),
]
Arch = Annotated[str | None, typer.Option(help="GPUs for tensorrt-rtx: sm89,sm120. [default: all it knows]")]

OPENVINO = "openvino"
ENGINE_TARGET = {"tensorrt-rtx": "rtx-pc", OPENVINO: "openvino"}
"""The target of --engine NAME alone."""


def load_target(
    name: str | None, int4: bool, overrides: list[str], engine: str | None = None, arch: str | None = None
) -> "tuple[str, Target]":
    """(name, target) of what was asked for.

    Raises:
        UserError: --int4 beside --target, or --engine tensorrt without saying for which device.
        ConfigError, UnknownNameError: no such target, or a wrong value in it.
    """
    from lrkit.config import load_config
    from lrkit.export.targets.target import Target
    from lrkit.resources import find_target

    if int4 and name is not None:
        raise UserError(f"--int4 is short for --target cpu-int4, but --target {name} was given too; give one of them")
    chosen = _default(int4, engine) if name is None else name
    path = find_target(chosen)
    target = load_config(Target, path, (["precision=int4"] if int4 else []) + overrides)
    values = target.model_dump(mode="json")
    if engine == OPENVINO:
        if arch is not None:
            raise UserError(f"--arch {arch} names GPUs for tensorrt-rtx, and the engine is openvino; leave it out")
        target = load_config(Target, {**values, "openvino": values["openvino"] or {}})
    elif engine is not None or arch is not None:
        target = load_config(Target, {**values, "engine": _engine_values(values["engine"], engine, arch)})
    return path.stem, target


def adapter_change(adapter: str | None, overrides: list[str]) -> list[str]:
    """Changes of the target with that of --adapter.

    Raises:
        UserError: there is no such choice.
    """
    if adapter is not None and adapter not in get_args(AdapterKind):
        raise UserError(f"--adapter is {adapter!r}; it must be one of {', '.join(get_args(AdapterKind))}")
    return [*overrides, *([] if adapter is None else [f"adapter={adapter}"])]


def open_adapters(given: list[str]) -> "dict[str, CheckpointSubject]":
    """The checkpoints of --with-adapter, by name.

    Raises:
        UserError: no NAME=CHECKPOINT, or a name that is given twice.
        CheckpointError, UnknownNameError: no such checkpoint.
    """
    from lrkit.export.subject import CheckpointSubject
    from lrkit.resources import resolve_checkpoint

    found: dict[str, CheckpointSubject] = {}
    for one in given:
        name, _, checkpoint = one.partition("=")
        if not name or not checkpoint or name in found:
            what = "names an adapter twice" if name in found else "is no NAME=CHECKPOINT"
            raise UserError(f"--with-adapter {one!r} {what}; give each a name of its own, as doors=runs/doors/last")
        found[name] = CheckpointSubject(resolve_checkpoint(checkpoint))
    return found


def engine_for_bundle(
    recorded: dict[str, Any], name: str | None, overrides: list[str], engine: str | None, arch: str | None
) -> "EngineTarget":
    """Engines to add to a bundle whose target was `recorded`, or by the engine section of the target `name`.

    Raises:
        UserError: nothing says which engine, or something else than engines would change.
        ConfigError, UnknownNameError: no such target, or a wrong value in it.
    """
    from lrkit.config import load_config
    from lrkit.export.targets.target import EngineTarget, Target
    from lrkit.resources import find_target

    if others := [text for text in overrides if not text.startswith("engine.")]:
        raise UserError(
            f"{others[0]} would change the bundle's programs, which stay as they are: only engine.KEY=VALUE can be "
            "given; export the checkpoint again for the rest"
        )
    if name is not None:
        target = load_config(Target, find_target(name))
        recorded = target.model_dump(mode="json")
    section = recorded.get("engine")  # of a bundle, so it may hold anything
    values = _engine_values(section if isinstance(section, dict) else None, engine, arch)
    return load_config(EngineTarget, values, [text.removeprefix("engine.") for text in overrides])


def _default(int4: bool, engine: str | None) -> str:
    if engine in ENGINE_TARGET:
        return ENGINE_TARGET[engine]
    if engine == "tensorrt":
        raise UserError(
            f"--engine tensorrt builds for one device; say which with --target: {', '.join(_built_on_device())}"
        )
    return "cpu-int4" if int4 else "cpu-fp32"


def _built_on_device() -> list[str]:
    from lrkit.config import load_yaml
    from lrkit.resources import list_resources

    kinds = {found.name: (load_yaml(found.path).get("engine") or {}).get("kind") for found in list_resources("target")}
    return [name for name, kind in kinds.items() if kind == "tensorrt"]


def _engine_values(base: dict[str, Any] | None, kind: str | None, arch: str | None) -> dict[str, Any]:
    """The section `engine`: that of the target, or a new one where another kind is asked for."""
    if kind is None and base is None:
        raise UserError("nothing says which engine to build; give --engine tensorrt-rtx or --engine tensorrt")
    if kind == OPENVINO:
        raise UserError(
            "OpenVINO builds no engines: it compiles a bundle's programs when they are loaded; give tensorrt-rtx or "
            "tensorrt, or run the bundle with --engine openvino"
        )
    values: dict[str, Any] = dict(base) if base is not None and kind in (None, base.get("kind")) else {"kind": kind}
    if arch is not None:
        values["archs"] = list(arch_names(arch))
    return values


def arch_names(arch: str | None) -> tuple[str, ...]:
    """The GPUs of --arch sm89,sm120; none where the option was not given.

    Raises:
        UserError: it was, and names none.
    """
    if arch is None:
        return ()
    names = tuple(name.strip().lower().replace("_", "") for name in arch.split(",") if name.strip())
    if not names:
        raise UserError(f"--arch {arch!r} names no GPU; give compute capabilities, as in --arch sm89,sm120")
    return names


def check_form(form: str) -> None:
    """Raises `UserError` for a form that there is not."""
    if form not in get_args(Form):
        raise UserError(f"--form is {form!r}; it must be one of {', '.join(get_args(Form))}")


def script_path(script: str | None) -> Path | None:
    """Where --script writes; a folder gets a file of the usual name.

    Raises:
        UserError: an empty name.
    """
    from lrkit.export.tensorrt.script import SCRIPT_FILE

    if script is None:
        return None
    if not script:
        raise UserError("--script was given an empty name; give the path of a file, as in --script build_engine.py")
    path = Path(script)
    return path / SCRIPT_FILE if path.is_dir() else path
