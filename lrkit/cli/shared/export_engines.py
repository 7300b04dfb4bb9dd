"""TensorRT engines of a bundle: adding them, and what `lrkit export` and `lrkit engines` say of them."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from lrkit.cli.shared.console import out
from lrkit.cli.shared.export_target import engine_for_bundle
from lrkit.cli.shared.progress import ExportProgress
from lrkit.cli.shared.tables import write_json
from lrkit.contract.bundle.manifest import Manifest
from lrkit.errors import UserError

Wanted = tuple[str | None, list[str], str | None, str | None]
"""Target, overrides, kind of engine, compute capabilities: as given on the command line."""


def engines_into_bundle(
    bundle: Path, wanted: Wanted, script: Path | None, engines_file: Path | None, json_file: Path | None
) -> None:
    """Builds engines from a bundle's programs into it, takes those of a device, or writes the script for a device.

    Raises:
        UserError: contradicting options.
    """
    from lrkit.contract.bundle.bundle_folder import open_bundle
    from lrkit.export.tensorrt.into_bundle import add_engines, take_engines
    from lrkit.export.tensorrt.script import write_script

    console = out()
    if engines_file is not None:
        if any(wanted) or script is not None:
            raise UserError("--take takes engines that were built already; give it with the bundle alone")
        manifest = take_engines(bundle, engines_file)
    else:
        opened = open_bundle(bundle, verify=False)
        engine = engine_for_bundle(opened.manifest.target, *wanted)
        if script is not None:
            write_script(script, bundle, opened.manifest, engine)
            return print_engines(console, bundle, None, script)
        with ExportProgress() as progress:
            manifest = add_engines(bundle, engine, progress)
    print_engines(console, bundle, manifest, None)
    console.print(f"bundle: {bundle}", soft_wrap=True)
    write_json(json_file, {
        "schema": 1, "kind": "export", "bundle": str(bundle), "manifest": manifest.model_dump(mode="json"),
    })  # fmt: skip


def print_engines(console: Console, bundle: Path, manifest: Manifest | None, script: Path | None) -> None:
    """The engines of a bundle, and how to build those that are not."""
    if manifest is not None and any(entry.engines for entry in manifest.programs.values()):
        console.print(engines_table(manifest))
    if script is not None:
        where = "" if script.parent.resolve() == bundle.resolve() else f" and {script}"
        console.print(
            f"the engines are built on the device: copy {bundle}{where} there and, with TensorRT installed, run\n"
            f"    python {script.name} BUNDLE\n"
            "then take them into the bundle, here or there:\n"
            "    lrkit engines BUNDLE --take BUNDLE/engines/engines.json", soft_wrap=True,
        )  # fmt: skip


def engines_table(manifest: Manifest) -> Table:
    """One row per engine."""
    table = Table(title="TensorRT engines", title_justify="left")
    for column in ("program", "built by", "for", "MB", "seconds", "peak MB", "layers"):
        table.add_column(column, justify="left" if column in ("program", "built by", "for") else "right")
    for role, program in manifest.programs.items():
        for entry in program.engines:
            graph = "" if entry.graph == "program" else f" {entry.graph}"
            peak = "unknown" if entry.build_peak_bytes is None else f"{entry.build_peak_bytes / 1e6:.0f}"
            table.add_row(
                f"{role}{graph}", f"{entry.kind} {entry.version}", " ".join(entry.archs) or "the GPU it was built on",
                f"{manifest.files[entry.file].bytes / 1e6:.1f}", f"{entry.build_seconds:.1f}", peak,
                "unknown" if entry.num_layers is None else str(entry.num_layers),
            )  # fmt: skip
    return table
