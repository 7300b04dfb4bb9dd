"""Finds what ships with lrkit by name: recipes, targets and their rules, suites, device sheets, shapes, the default
checkpoint.

In a checkout they are read from `train/`, `export/` and `profiles/` at the top; a wheel carries the same folders
under `lrkit/_shipped`. So `lrkit train trail-latent` and `lrkit train train/recipes/trail-latent.yaml` are one.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from lrkit.config import load_yaml
from lrkit.errors import CheckpointError, ConfigError, UnknownNameError, UserError, clean, did_you_mean
from lrkit.files import read_json, write_bytes
from lrkit.pretrained import HUB_PREFIX, hub_id_in, place_by_hand

Kind = Literal["recipe", "sweep", "target", "rules", "suite", "device", "shape"]

FOLDERS: dict[Kind, tuple[str, str]] = {
    "recipe": ("train/recipes", ".yaml"),
    "sweep": ("train/sweeps", ".yaml"),
    "target": ("export/targets", ".yaml"),
    "rules": ("export/rules", ".yaml"),
    "suite": ("profiles/suites", ".yaml"),
    "device": ("profiles/devices", ".yaml"),
    "shape": ("profiles/shapes", ".json"),
}
"""Folder and file ending of each kind, below the folder that `shipped_root` finds."""

CONFIG_FILE = "config.json"
"""The file that makes a folder without `REASONER_FILE` a plain Hugging Face model."""

REASONER_FILE = "reasoner.json"
"""The file that makes a folder a checkpoint."""

RUN_FILE = "run.json"
"""The file of a training run's folder that says which checkpoint is the run's last."""

STATE_FILE = "state.pt"
"""The file of a training run's folder that the run goes on from."""

RANDOM = "random:"
"""Before the name of a shape: a model of its sizes with random weights."""

_PACKAGE = Path(__file__).resolve().parent
_TINY = _PACKAGE / "assets" / "tiny"
_MOST_NAMED = 8
"""Checkpoints that a hint names."""


@dataclass(frozen=True)
class Resource:
    """Something that ships with lrkit or lies in the working folder, with the name it is found by."""

    kind: Kind | Literal["checkpoint"]
    """What it is."""
    name: str
    """What to type."""
    path: Path
    """File or folder."""
    description: str = ""
    """One sentence from the file itself; may be empty."""


def shipped_root() -> Path:
    """The folder that holds `train/recipes`, `export/targets` and `profiles`."""
    packed = _PACKAGE / "_shipped"
    return packed if packed.is_dir() else _PACKAGE.parent


def list_resources(kind: Kind) -> list[Resource]:
    """All shipped resources of a kind, by name."""
    folder, ending = FOLDERS[kind]
    files = sorted((shipped_root() / folder).glob(f"*{ending}"))
    return [Resource(kind, file.stem, file, _description(file)) for file in files]


def find_resource(kind: Kind, name_or_path: str | Path) -> Path:
    """The file of a shipped name, or of a path (anything with a separator or a file ending).

    Raises:
        UnknownNameError: no such name; the message lists the known ones.
        ConfigError: no such file.
    """
    text = str(name_or_path)
    given = Path(name_or_path)
    folder, ending = FOLDERS[kind]
    # os.path, for names that cannot be paths (too long, a NUL) are no files either.
    if given.suffix in {".yaml", ".yml", ".json"} or given.name != text:
        if os.path.isfile(given):
            return given
        kind_of_it = "no ordinary file" if os.path.exists(given) else "no such file"
        raise ConfigError(
            f"{clean(text[:300])}: {kind_of_it}; give the path of a {kind} file or a name that `lrkit ls` shows"
        )
    file = shipped_root() / folder / f"{text}{ending}"
    if os.path.isfile(file):
        return file
    raise UnknownNameError(_unknown(kind, text, (resource.name for resource in list_resources(kind))))


def find_recipe(name_or_path: str | Path) -> Path:
    """The YAML file of a training recipe. Raises as `find_resource`."""
    return find_resource("recipe", name_or_path)


def find_sweep(name_or_path: str | Path) -> Path:
    """The YAML file of an ablation. Raises as `find_resource`."""
    return find_resource("sweep", name_or_path)


def find_target(name_or_path: str | Path) -> Path:
    """The YAML file of an export target. Raises as `find_resource`."""
    return find_resource("target", name_or_path)


def find_rules(name_or_path: str | Path) -> Path:
    """The YAML file of what a target rejects. Raises as `find_resource`."""
    return find_resource("rules", name_or_path)


def find_suite(name_or_path: str | Path) -> Path:
    """The YAML file of a profiling suite. Raises as `find_resource`."""
    return find_resource("suite", name_or_path)


def random_shape(model: str) -> str | None:
    """The shape of random:SHAPE; None for other models."""
    return model.removeprefix(RANDOM) if model.startswith(RANDOM) else None


def find_any(name: str) -> Resource:
    """The shipped resource of that name, of whatever kind; `kind/name` settles a name that two kinds share.

    Raises:
        UnknownNameError: no resource or more than one has the name.
    """
    everything = [resource for kind in FOLDERS for resource in list_resources(kind)]
    found = [resource for resource in everything if name in (resource.name, f"{resource.kind}/{resource.name}")]
    if len(found) == 1:
        return found[0]
    if found:
        choices = ", ".join(f"{resource.kind}/{resource.name}" for resource in found)
        raise UnknownNameError(f"{name!r} is the name of several; say which: {choices}")
    raise UnknownNameError(_unknown("resource", name, (resource.name for resource in everything)))


def copy_resource(name: str, destination: Path | None = None, overwrite: bool = False) -> Path:
    """Copy the shipped resource `name` to `destination` (a file or a folder; default: the working folder).

    Returns:
        The path of the copy.

    Raises:
        UnknownNameError: as `find_any`.
        UserError: there is such a file already and `overwrite` is not set.
        FileError: the copy cannot be written.
    """
    source = find_any(name).path
    copy = destination or Path()
    if os.path.isdir(copy) or (not copy.suffix and not os.path.exists(copy)):
        copy = copy / source.name
    if os.path.isfile(copy) and not overwrite:
        raise UserError(f"{clean(str(copy))} is there already; give another destination, or --force to replace it")
    write_bytes(copy, source.read_bytes())
    return copy


def list_everything(runs: Path | None = None) -> list[Resource]:
    """All that `list_resources` and `list_checkpoints` find."""
    return [resource for kind in FOLDERS for resource in list_resources(kind)] + list_checkpoints(runs)


def list_checkpoints(runs: Path | None = None) -> list[Resource]:
    """The shipped checkpoints and, where `runs` is given, those of the run folders in it."""
    shipped = [_checkpoint(name, folder) for name, folder in _shipped_checkpoints().items()]
    found = sorted(runs.glob(f"*/**/{REASONER_FILE}")) if runs is not None and os.path.isdir(runs) else []
    # A folder that begins with a dot is being written, or was when its process was killed.
    files = [file for file in found if not any(part.startswith(".") for part in file.relative_to(runs or "").parts)]
    return shipped + [_checkpoint(str(file.parent), file.parent) for file in files]


def resolve_checkpoint(name_or_path: str | Path) -> Path:
    """The folder of a checkpoint: `tiny`, `tiny/cot`, ..., the path of a folder with a reasoner.json, that of a run, or
    that of a plain Hugging Face model.

    The folder of a run stands for its last whole checkpoint, also where the run was killed before run.json named it.

    Raises:
        CheckpointError: no such name or folder, or a folder that is no checkpoint.
    """
    text = str(name_or_path)
    if not text:
        raise CheckpointError("the model's path is empty; give a folder or a name")
    shipped = _shipped_checkpoints()
    if text in shipped and (shipped[text] / REASONER_FILE).is_file():
        return shipped[text]
    folder = Path(name_or_path)
    if (folder / REASONER_FILE).is_file():
        return folder
    if (last := _last_of_run(folder)) is not None:
        return last
    if (folder / CONFIG_FILE).is_file():
        return folder
    known = ", ".join(shipped) or "none is shipped"
    if not folder.exists():
        raise CheckpointError(f"{clean(text)}: no such checkpoint{_how_to_give_one(text, known)}")
    inside = _checkpoints_below(folder)
    hint = (
        f"it holds {', '.join(inside)}; give one of them"
        if inside
        else (f"give a folder that `lrkit train` wrote, or for a model of the hub {place_by_hand(folder)}")
    )
    if (folder / STATE_FILE).is_file():
        hint = "it is a run that has not finished its first stage; go on with `lrkit train ... --resume`"
    raise CheckpointError(f"{clean(text)} is no checkpoint: it has neither {REASONER_FILE} nor {CONFIG_FILE}; {hint}")


def _how_to_give_one(text: str, known: str) -> str:
    """What to do where a model's name leads nowhere; `known` are the shipped names."""
    if text.startswith(HUB_PREFIX):
        folder = Path(text.removeprefix(HUB_PREFIX)).absolute()
        return (
            f", as only the init of a recipe may be written so; give {clean(str(folder))}, and {place_by_hand(folder)}"
        )
    give = f"give a folder that `lrkit train` wrote, or a shipped name ({known})"
    if hub_id_in(text) is None:
        return f"; {give}{did_you_mean(text, known.split(', '))}"
    # A mistyped folder has the same form: the sentence fits both.
    folder = Path(text).absolute()
    return f", as there is no folder {clean(str(folder))}; {give}, or for a model of the hub {place_by_hand(folder)}"


def _checkpoints_below(folder: Path) -> list[str]:
    """For a hint: some checkpoints at most three folders down, as in a folder of runs; a whole disk is not searched."""
    if not folder.is_dir():
        return []
    found = (file for depth in range(1, 4) for file in folder.glob("*/" * depth + REASONER_FILE))
    first = list(islice(found, _MOST_NAMED + 1))
    names = sorted(clean(str(file.parent)) for file in first[:_MOST_NAMED])
    return [*names, "more"] if len(first) > _MOST_NAMED else names


def find_checkpoint(name_or_path: str | Path) -> Path | None:
    """As `resolve_checkpoint`, but None where there is no such checkpoint."""
    try:
        return resolve_checkpoint(name_or_path)
    except CheckpointError:
        return None


def _last_of_run(run: Path) -> Path | None:
    """The last checkpoint of a run's folder; None where it is no run's, or has none yet.

    run.json is written after the checkpoint that it names: where the run was killed in between, the disk knows better.

    Raises:
        CheckpointError: run.json cannot be read, or names a folder that is not there.
    """
    stages = sorted((file.parent for file in run.glob(f"stages/[0-9]*/{REASONER_FILE}")), key=_stage_number)
    last = stages[-1] if stages else None
    if not (run / RUN_FILE).is_file():
        return last if (run / STATE_FILE).is_file() else None
    named = read_json(run / RUN_FILE, CheckpointError).get("checkpoint")
    if not isinstance(named, str) or Path(named).is_absolute() or ".." in Path(named).parts:
        raise CheckpointError(f"{run / RUN_FILE} names no checkpoint of the run; give the folder of a checkpoint")
    if not (run / named / REASONER_FILE).is_file():
        raise CheckpointError(f"{run / RUN_FILE} names {named}, which is not there; copy it back, or give another one")
    return last if last is not None and _stage_number(last) > _stage_number(run / named) else run / named


def _stage_number(folder: Path) -> int:
    """The number that begins the name of a stage's checkpoint."""
    number = folder.name.partition("-")[0]
    return int(number) if number.isdecimal() else -1


def _shipped_checkpoints() -> dict[str, Path]:
    """Name -> folder; the bare name `tiny` is the latent reasoner."""
    stages = sorted(file.parent for file in _TINY.glob(f"*/{REASONER_FILE}"))
    named = {f"tiny/{folder.name}": folder for folder in stages}
    latent = named.get("tiny/latent")
    return {"tiny": latent, **named} if latent else named


def _checkpoint(name: str, folder: Path) -> Resource:
    try:
        stage = read_json(folder / REASONER_FILE).get("stage")
    except UserError:
        return Resource("checkpoint", name, folder, "(its reasoner.json cannot be read)")
    name_of_stage = stage.get("name") if isinstance(stage, dict) else stage
    return Resource("checkpoint", name, folder, f"stage {str(name_of_stage)[:80]}" if name_of_stage else "")


def _description(file: Path) -> str:
    values = load_yaml(file) if file.suffix == ".yaml" else read_json(file)
    return str(values.get("description") or "")


def _unknown(kind: str, name: str, known: Iterable[str]) -> str:
    names = sorted(set(known))
    given = repr(name) if len(name) <= 100 else f"{name[:100]!r}..."
    return f"unknown {kind} {given}; known: {', '.join(names) or 'none'}{did_you_mean(name, names)}"
