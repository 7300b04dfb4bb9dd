"""`lrkit export MODEL`: the whole reasoner as one program, checked against torch, in a bundle."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lrkit.cli.shared.console import beside_json, err, out
from lrkit.cli.shared.export_calibration import (
    KeepAs,
    KeepCount,
    MaxLoss,
    MethodName,
    Mix,
    SetName,
    SetSize,
    kept,
    method_change,
    open_calibrator,
)
from lrkit.cli.shared.export_engines import engines_into_bundle, print_engines
from lrkit.cli.shared.export_subject import check_samples, open_subject, part_changes
from lrkit.cli.shared.export_tables import by_phase, proofs, sizes
from lrkit.cli.shared.export_target import (
    AdapterName,
    Arch,
    Changes,
    FormName,
    Int4,
    WithAdapter,
    adapter_change,
    check_form,
    load_target,
    open_adapters,
    script_path,
)
from lrkit.cli.shared.options import Download, dry_run_option
from lrkit.cli.shared.progress import ExportProgress
from lrkit.cli.shared.tables import json_option, write_json
from lrkit.contract.bundle.bundle_folder import is_bundle
from lrkit.errors import UserError, require
from lrkit.resources import find_checkpoint, random_shape

if TYPE_CHECKING:
    from lrkit.export.targets.target import Target

EXAMPLES = """
Examples:

    lrkit export tiny --int4 -o tiny-int4

    lrkit export runs/my-run/last --target cpu-fp32 -o my-bundle

    lrkit export tiny --target cuda-fp16 limits.max_new_tokens=64 -o half

    lrkit export my-checkpoint --int4 --data held-out.jsonl -o mine

    lrkit export my-checkpoint --int4 --int4-method gptq --calibration seen.jsonl -o calibrated

    lrkit export tiny --int4 front=true -o other-languages

    lrkit export my-checkpoint --int4 --adapter keep -o beside

    lrkit export my-checkpoint --int4 --data held-out.jsonl --max-loss 0.5 -o mine

    lrkit export my-checkpoint --int4 --with-adapter doors=runs/doors/last -o switched

    lrkit export my-checkpoint --int4 --samples 5 --allow-unproven -o draft

    lrkit export random:qwen2-vl-2b --int4 int4.vision=int4 -o two-billion

    lrkit export random:qwen2-vl-2b --int4 model.replay.num_tokens=8 -o fewer-replayed

    lrkit export tiny --engine tensorrt-rtx --arch sm89,sm120 -o pc

    lrkit export tiny --target jetson-thor -o thor

    lrkit export tiny --engine openvino --int4 -o intel

    lrkit export my-checkpoint --int4 --data held-out.jsonl --dry-run
"""

PACKAGES = ("torch", "transformers", "peft", "onnx", "onnx_ir", "onnxscript")
MODEL = "A checkpoint, a shipped name (tiny), or random:SHAPE: a shape of `lrkit ls shape` with random weights."

Engine = Annotated[
    str | None, typer.Option(help="openvino: a bundle for it; tensorrt-rtx, tensorrt: also build engines.")
]
Data = Annotated[
    str | None, typer.Option(help="Samples to check on: trail:main, ..., or a .jsonl file. [default: trail:main]")
]
Count = Annotated[
    int | None, typer.Option(help="How many of them. [default: 500, or what --max-loss needs; of random:SHAPE: 1]")
]
Unproven = Annotated[
    bool, typer.Option("--allow-unproven", help="Write a bundle that the samples cannot prove equal to torch.")
]
DryRun = Annotated[bool, dry_run_option("Read all that an export reads, say what would stop it, and write nothing.")]


def export(
    model: Annotated[str, typer.Argument(help=MODEL)],
    overrides: Changes = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The bundle. [default: NAME-TARGET]")] = None,
    target: Annotated[str | None, typer.Option(help="A shipped target (see `lrkit ls`) or a YAML file.")] = None,
    int4: Int4 = False,
    form: FormName = "program",
    engine: Engine = None,
    arch: Arch = None,
    script: Annotated[str | None, typer.Option(help="Write a script that builds them on a device instead.")] = None,
    data: Data = None,
    samples: Count = None,
    baselines: Annotated[bool, typer.Option(help="Also the checkpoint's cot and direct baselines.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle of that name.")] = False,
    allow_unproven: Unproven = False,
    adapter: AdapterName = None,
    with_adapter: WithAdapter = None,
    max_loss: MaxLoss = None,
    int4_method: MethodName = None,
    calibration: SetName = None,
    calibration_samples: SetSize = None,
    calibration_mix: Mix = None,
    keep_sensitive: KeepCount = 0,
    keep_as: KeepAs = "int8",
    dry_run: DryRun = False,
    download: Download = False,
    json_file: Annotated[Path | None, json_option("Write sizes, errors and times to this file.")] = None,
) -> None:
    """Write one program that holds the whole reasoner, prove it equal to torch, and pack it into a bundle.

    `lrkit preflight` says before what a target would reject, and `lrkit engines` adds TensorRT engines to a bundle.
    """
    check_form(form)
    samples = check_samples(model, samples, allow_unproven, max_loss)
    if is_bundle(model) and find_checkpoint(model) is None:  # an earlier spelling of `lrkit engines`
        pointless = {"--output": output, "--int4": int4, "--data": data, "--samples": samples, "--force": force}
        return _engines(model, pointless, (target, overrides or [], engine, arch), script, json_file)
    if random_shape(model) is not None and data is not None:
        raise UserError(f"{model} is checked on a picture of its own; leave --data out")
    changes, settings = part_changes(model, overrides or [])
    name, asked = load_target(target, int4, adapter_change(adapter, method_change(int4_method, changes)), engine, arch)
    _check_packages(asked if engine is not None and script is None else None)
    options: dict[str, Any] = {"form": form, "baselines": baselines, "force": force, "script": script_path(script)}
    options |= {"allow_unproven": allow_unproven, "max_loss": max_loss, "keep": kept(model, keep_sensitive, keep_as)}
    options["with_adapters"] = open_adapters(with_adapter or [])
    do, calibrated = _dry_run if dry_run else _export, (calibration, calibration_samples, calibration_mix)
    do((model, data, samples), settings, output, name, asked, options, calibrated, json_file)


def _check_packages(named: "Target | None") -> None:
    """Raises `MissingExtraError` where what an export needs is not installed, or what builds the engines that `named`
    asks for by name: that is no reason to write a script."""
    if named is not None and named.engine is not None:
        from lrkit.export.tensorrt.jobs import plan_engines

        plan_engines(named.engine)
    for package in PACKAGES:
        require(package, "export")


def _engines(
    bundle: str, pointless: dict[str, Any], wanted: tuple[str | None, list[str], str | None, str | None],
    script: str | None, json_file: Path | None,
) -> None:  # fmt: skip
    """Adds engines to a bundle; `pointless` are options that mean nothing then."""
    if given := [name for name, value in pointless.items() if value]:
        raise UserError(f"{bundle} is a bundle already, and `lrkit engines` adds engines to it; leave {given[0]} out")
    engines_into_bundle(Path(bundle), wanted, script_path(script), None, json_file)


def _dry_run(
    what: tuple[str, str | None, int | None],
    settings: list[str],
    output: Path | None,
    name: str,
    target: "Target",
    options: dict[str, Any],
    calibrated: tuple[str | None, int | None, str | None],
    json_file: Path | None,
) -> None:
    """Says what would be written, or what would stop it."""
    from lrkit.export.dry_run import plan_export
    from lrkit.export.swapped import Swaps

    subject, samples, called = open_subject(*what, target, settings)
    place = output or Path(f"{called}-{name}")
    open_calibrator(subject, target, place, *calibrated)
    given = {key: options[key] for key in ("baselines", "force", "allow_unproven", "max_loss", "keep")}
    Swaps(options["with_adapters"]).check(subject, target, options["form"])
    plan = plan_export(subject, place, target, samples, **given, say=err(soft_wrap=True).print)
    console, limits = beside_json(json_file, soft_wrap=True), plan.limits.model_dump()
    programs = ", ".join(f"{role} ({layers} layers, {target.precision})" for role, layers in plan.programs.items())
    console.print(f"programs: {programs}")
    console.print(f"limits: {', '.join(f'{key} {value}' for key, value in limits.items())}")
    console.print(f"not checked: that {plan.samples} samples are answered as by torch")
    console.print(f"nothing wrong was found; the bundle would be written to {place}")
    write_json(json_file, {
        "schema": 1, "kind": "export plan", "bundle": str(place), "programs": plan.programs, "limits": limits,
        "samples": plan.samples,
    })  # fmt: skip


def _export(
    what: tuple[str, str | None, int | None],
    settings: list[str],
    output: Path | None,
    name: str,
    target: "Target",
    options: dict[str, Any],
    calibrated: tuple[str | None, int | None, str | None],
    json_file: Path | None,
) -> None:
    from lrkit.export.before import refuse_taken
    from lrkit.export.bundle import EnginesRefused, export_bundle

    if output is not None:
        refuse_taken(output, options["force"])  # before a shape or many samples are read
    subject, samples, called = open_subject(*what, target, settings)
    place = output or Path(f"{called}-{name}")
    options["calibrator"] = open_calibrator(subject, target, place, *calibrated)
    refused: EnginesRefused | None = None
    try:
        with ExportProgress() as progress:
            report = export_bundle(subject, place, target, samples, progress=progress, say=progress.note, **options)
    except EnginesRefused as error:  # the bundle is there all the same
        refused, report = error, error.report
    console = out()
    console.print(sizes(report))
    console.print(proofs(report))
    console.print(by_phase(report))
    print_engines(console, place, report.manifest, report.script)
    console.print(f"bundle: {place}")
    write_json(json_file, {
        "schema": 1, "kind": "export", "bundle": str(place), "seconds": report.seconds,
        "quantization_errors": report.quantization_errors, "manifest": report.manifest.model_dump(mode="json"),
    })  # fmt: skip
    if refused is not None:
        raise refused
