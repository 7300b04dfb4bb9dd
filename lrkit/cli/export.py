"""`lrkit export CHECKPOINT`: the whole reasoner as one program, checked against torch, in a bundle."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from lrkit.cli.preflight import Asked
from lrkit.cli.preflight import check as check_thing
from lrkit.cli.shared.console import out
from lrkit.cli.shared.download import Download
from lrkit.cli.shared.export_engines import engines_into_bundle, print_engines
from lrkit.cli.shared.export_shape import (
    Data,
    NumSamples,
    RandomWeights,
    ShapeName,
    check_samples,
    name_and_changes,
    open_subject,
)
from lrkit.cli.shared.export_tables import proofs, sizes
from lrkit.cli.shared.export_target import arch_names, load_target, script_path
from lrkit.cli.shared.progress import ExportProgress
from lrkit.cli.shared.tables import json_option, write_json
from lrkit.contract.bundle.folder import is_bundle
from lrkit.contract.bundle.io_spec import Form
from lrkit.errors import UserError, require
from lrkit.resources import find_checkpoint

if TYPE_CHECKING:
    from lrkit.export.targets.target import Target

EXAMPLES = """
Examples:

    lrkit export tiny --int4 -o tiny-int4

    lrkit export runs/my-run/last --target cpu-fp32 -o my-bundle

    lrkit export tiny --target cuda-fp16 limits.max_new_tokens=64 -o half

    lrkit export my-checkpoint --int4 --data held-out.jsonl -o mine

    lrkit export my-checkpoint --int4 --samples 5 --allow-unproven -o draft
    lrkit export --shape qwen2-vl-2b --random-weights --int4 --samples 0 --allow-unproven -o shape

    lrkit export --shape qwen2-vl-2b --random-weights --int4 int4.vision=int4 -o two-billion

    lrkit export tiny --engine tensorrt-rtx --arch sm89,sm120 -o pc

    lrkit export tiny --target jetson-thor -o thor

    lrkit export pc --engine tensorrt --script build_engine.py

    lrkit export tiny --check --target tensorrt-rtx --arch sm89

    lrkit export my-bundle --check --target jetson-thor

    lrkit export model.onnx --check --target tensorrt-10 --json findings.json
"""

Check = Annotated[
    bool, typer.Option("--check", help="Only list what --target (also tensorrt-10, tensorrt-11, ort) would reject.")
]
Thing = Annotated[str | None, typer.Argument(help="A checkpoint, a name (tiny), or a bundle; to check: also .onnx.")]
Changes = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes of the target, by dotted path.")
]
FormName = Annotated[
    str, typer.Option(help="program: one graph with its loops inside; step: graphs that the host drives.")
]
JsonFile = Annotated[Path | None, json_option("Write sizes, errors and times to this file.")]

FORMS = get_args(Form)
PACKAGES = ("torch", "transformers", "peft", "onnx", "onnx_ir", "onnxscript")


def export(
    checkpoint: Thing = None,
    overrides: Changes = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The bundle. [default: NAME-TARGET]")] = None,
    target: Annotated[str | None, typer.Option(help="A shipped target (see `lrkit ls`) or a YAML file.")] = None,
    int4: Annotated[bool, typer.Option("--int4", help="Short for --target cpu-int4.")] = False,
    form: FormName = "program",
    dialect: Annotated[str | None, typer.Option(help="ort or tensorrt, instead of the target's.")] = None,
    engine: Annotated[str | None, typer.Option(help="Also build tensorrt-rtx or tensorrt engines.")] = None,
    arch: Annotated[str | None, typer.Option(help="GPUs for tensorrt-rtx: sm89,sm120. [default: all it knows]")] = None,
    script: Annotated[str | None, typer.Option(help="Write a script that builds them on a device instead.")] = None,
    engine_file: Annotated[Path | None, typer.Option(help="Take the engines.json of that script into BUNDLE.")] = None,
    check: Check = False,
    shape: ShapeName = None,
    random_weights: RandomWeights = False,
    data: Data = None,
    samples: NumSamples = None,
    baselines: Annotated[bool, typer.Option(help="Also the checkpoint's cot and direct baselines.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle of that name.")] = False,
    allow_unproven: Annotated[
        bool, typer.Option("--allow-unproven", help="Write a bundle that the samples cannot prove equal to torch.")
    ] = False,
    download: Download = False,
    json_file: JsonFile = None,
) -> None:
    """Write one program that holds the whole reasoner, prove it equal to torch, and pack it into a bundle.

    Given a bundle, adds TensorRT engines to it. With --check nothing is written, and THING may be an .onnx file too.
    """
    if form not in FORMS:
        raise UserError(f"--form is {form!r}; it must be one of {', '.join(FORMS)}")
    check_samples(samples, allow_unproven)
    changes = ([f"dialect={dialect}"] if dialect else []) + (overrides or [])
    refused = {"--check": check, "--engine-file": engine_file, "--data": data}
    given, changes = name_and_changes(checkpoint, changes, shape, random_weights, refused)
    if check:
        pointless = {"--output": output, "--engine": engine, "--script": script, "--engine-file": engine_file}
        asked = Asked(given, target, changes, int4, cast(Form, form), arch_names(arch), pointless)
        return check_thing(asked, json_file)
    if engine_file is not None or (shape is None and find_checkpoint(given) is None and is_bundle(given)):
        wanted = (target, overrides or [], engine, arch)
        return engines_into_bundle(Path(given), wanted, script_path(script), engine_file, json_file)
    name, asked = load_target(target, int4, changes, engine, arch)
    if engine is not None and script is None and asked.engine is not None:
        from lrkit.export.tensorrt.jobs import plan_engines

        plan_engines(asked.engine)  # asked for by name: a package that is missing is no reason to write a script
    options: dict[str, Any] = {"form": form, "baselines": baselines, "force": force, "script": script_path(script)}
    options["allow_unproven"] = allow_unproven
    _export((given, shape is not None, data, samples), output, name, asked, options, json_file)


def _export(
    what: tuple[str, bool, str | None, int | None],
    output: Path | None,
    name: str,
    target: "Target",
    options: dict[str, Any],
    json_file: Path | None,
) -> None:
    for package in PACKAGES:
        require(package, "export")
    from lrkit.export.bundle import EnginesRefused, export_bundle, refuse_taken

    if output is not None:
        refuse_taken(output, options["force"])  # before a shape or many samples are read
    subject, samples, called = open_subject(*what, target)
    place = output or Path(f"{called}-{name}")
    refused: EnginesRefused | None = None
    try:
        with ExportProgress() as progress:
            report = export_bundle(subject, place, target, samples, progress=progress, say=progress.note, **options)
    except EnginesRefused as error:  # the bundle is there all the same
        refused, report = error, error.report
    console = out()
    console.print(sizes(report))
    console.print(proofs(report))
    print_engines(console, place, report.manifest, report.script)
    console.print(f"bundle: {place}")
    write_json(json_file, {
        "schema": 1, "kind": "export", "bundle": str(place), "seconds": report.seconds,
        "quantization_errors": report.quantization_errors, "manifest": report.manifest.model_dump(mode="json"),
    })  # fmt: skip
    if refused is not None:
        raise refused
