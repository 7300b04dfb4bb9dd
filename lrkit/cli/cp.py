"""`lrkit cp NAME [DEST]`: a copy of a shipped recipe, target or suite, to change and use by its path."""

from pathlib import Path
from typing import Annotated

import typer

from lrkit.resources import copy_resource

EXAMPLES = """
Examples:
  lrkit cp NAME
  lrkit cp NAME mine.yaml
  lrkit cp recipe/NAME experiments/ --force
"""


def cp(
    name: Annotated[str, typer.Argument(help="A name that `lrkit ls` shows, or kind/name.")],
    destination: Annotated[Path | None, typer.Argument(metavar="DEST", help="File or folder; default: here.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Copy a shipped recipe, target, suite, device sheet or shape."""
    typer.echo(str(copy_resource(name, destination, force)))
