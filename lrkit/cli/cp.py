"""`lrkit cp NAME [DEST]`: a copy of a shipped recipe, target or suite to change and use by its path, or of a
checkpoint."""

import os
from pathlib import Path
from typing import Annotated

import typer

from lrkit.cli.shared.console import out
from lrkit.errors import UserError, require
from lrkit.resources import copy_resource, find_checkpoint

EXAMPLES = """
Examples:
  lrkit cp NAME
  lrkit cp NAME mine.yaml
  lrkit cp recipe/NAME experiments/ --force
  lrkit cp runs/trail-latent shared/trail-latent
"""


def cp(
    name: Annotated[str, typer.Argument(help="A name that `lrkit ls` shows, or kind/name.")],
    destination: Annotated[Path | None, typer.Argument(metavar="DEST", help="File or folder; default: here.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Copy a shipped recipe, target, suite, device sheet or shape; or a checkpoint, which keeps finding its base."""
    checkpoint = find_checkpoint(name)
    if checkpoint is None:
        out(soft_wrap=True).print(str(copy_resource(name, destination, force)))
        return
    target = destination or Path(checkpoint.name)
    if target.exists() and not force:
        raise UserError(f"{target} is there already; add --force to replace it, or give another DEST")
    _refuse_other_folders(target)
    require("torch", "train")
    from lrkit.model.checkpoint import copy_checkpoint

    copy_checkpoint(checkpoint, target)
    out(soft_wrap=True).print(str(target))


def _refuse_other_folders(target: Path) -> None:
    """--force replaces a checkpoint; a folder of other things, such as the working folder, it would empty."""
    inside = Path(os.path.realpath(target)) in (Path.cwd(), *Path.cwd().parents)
    other = os.path.isdir(target) and any(target.iterdir()) and find_checkpoint(str(target)) is None
    if inside or other:
        what = "holds the working folder" if inside else "holds other things than a checkpoint"
        raise UserError(f"{target} {what}, which --force does not replace; give the name of a new folder as DEST")
