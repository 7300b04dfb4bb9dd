"""`lrkit engines BUNDLE`: TensorRT engines into a bundle, built here or on a device, or the script for the device."""

from pathlib import Path
from typing import Annotated

import typer

from lrkit.cli.shared.export_engines import engines_into_bundle
from lrkit.cli.shared.export_target import Arch, script_path
from lrkit.cli.shared.tables import json_option

EXAMPLES = """
Examples:

    lrkit engines my-bundle --engine tensorrt-rtx --arch sm89,sm120

    lrkit engines my-bundle --target l4 engine.options.workspace_mb=2048

    lrkit engines my-bundle --engine tensorrt --script build_engine.py

    lrkit engines my-bundle --take device/engines/engines.json
"""


def engines(
    bundle: Annotated[Path, typer.Argument(help="A bundle whose programs are in the dialect standard.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes of the engines: engine.KEY=VALUE.")
    ] = None,
    engine: Annotated[str | None, typer.Option(help="tensorrt-rtx or tensorrt. [default: the bundle's]")] = None,
    target: Annotated[str | None, typer.Option(help="A target (see `lrkit ls`) whose engines to build.")] = None,
    arch: Arch = None,
    script: Annotated[str | None, typer.Option(help="Build nothing; write a script that does, on a device.")] = None,
    take: Annotated[
        Path | None, typer.Option(help="Build nothing; take the engines.json that the script wrote.")
    ] = None,
    json_file: Annotated[Path | None, json_option("Write the bundle's manifest to this file.")] = None,
) -> None:
    """Add TensorRT engines to a bundle, whose programs stay as they are; needs neither torch nor a checkpoint."""
    engines_into_bundle(bundle, (target, overrides or [], engine, arch), script_path(script), take, json_file)
