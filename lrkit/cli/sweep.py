"""`lrkit sweep MODEL SETTING=V1,V2`: which settings of the latent mode to use on this device."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrkit.cli.shared.console import beside_json
from lrkit.cli.shared.options import (
    AttentionOption,
    CudaGraphs,
    Device,
    Download,
    Engine,
    EngineOption,
    FastDtype,
    Provider,
    Threads,
)
from lrkit.cli.shared.profile_shown import save_and_show
from lrkit.cli.shared.profiling import (
    FOLDER,
    MODELS,
    Data,
    FailIf,
    Output,
    Plan,
    Runs,
    SuiteName,
    choose_models,
    choose_suite,
    measure,
    models_and_values,
    refuse_held,
    usual_suite,
    where_to_run,
)
from lrkit.cli.shared.tables import json_option
from lrkit.errors import UserError
from lrkit.files import check_writable

if TYPE_CHECKING:
    from lrkit.profile.report import Report

EXAMPLES = """
Examples:

    lrkit sweep tiny replay_tokens=0,4,16 threads=1,2

    lrkit sweep my-bundle max_latent_steps=2,4,8 threads=1,2 --write-choice

    lrkit sweep my-bundle halting=adaptive,fixed repeats=3 --runs latent,cot

    lrkit sweep random:qwen2-vl-2b replay_tokens=0,1,4,8,16,32 budget_sec=300
"""


def sweep(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL... SETTING=V1,V2",
            help=f"{MODELS} Settings: replay_tokens, max_latent_steps, halting, routing_depth, prune_after, "
            "prune_keep, threads. Any other KEY=VALUE changes the suite.",
        ),
    ],
    suite: SuiteName = None,
    runs: Runs = "",
    data: Data = None,
    write_choice: Annotated[
        bool, typer.Option("--write-choice", help="Write the setting to use into the bundle, for all who ask it.")
    ] = False,
    plan: Plan = None,
    fail_if: FailIf = None,
    output: Output = FOLDER,
    device: Device = None,
    dtype: FastDtype = None,
    attention: AttentionOption = None,
    engine: Engine = None,
    engine_option: EngineOption = None,
    provider: Provider = None,
    threads: Threads = None,
    cuda_graphs: CudaGraphs = False,
    download: Download = False,
    json_file: Annotated[Path | None, json_option("Write the report here too.")] = None,
) -> None:
    """Try settings of the latent mode against each other and name the fastest that answers as well as the best."""
    from lrkit.profile.judge.sweep import parse_axes
    from lrkit.profile.measure.choice import check_choice
    from lrkit.profile.measure.conditions import parse_condition

    conditions = [parse_condition(text) for text in fail_if or []]
    check_writable(output, folder=True)
    models, values = models_and_values(words)
    changes = [value for value in values if _is_of_suite(value)]
    axes = parse_axes([value for value in values if value not in changes])
    if not axes:
        raise UserError("no setting to try was named; give one with its values, as in threads=1,2")
    if write_choice:
        check_choice(models, axes)
    asked = choose_suite(suite or usual_suite(models, "sweep"), changes, runs, data, models)
    place = where_to_run(device, dtype, engine, engine_option, provider, threads, cuda_graphs, attention)
    found = measure(choose_models(models, place), asked, plan or [], axes)
    save_and_show(found, output, json_file)
    if write_choice:
        _write(models[0], found, json_file)
    refuse_held(conditions, found)


def _write(bundle: str, found: "Report", json_file: Path | None) -> None:
    """The setting to use into the bundle, and a sentence that says so."""
    from lrkit.profile.measure.choice import write_choice

    kept = write_choice(bundle, found).model_dump(exclude={"chosen"}, exclude_none=True)
    said = f"{bundle}: asked from now on with {', '.join(f'{key} {value}' for key, value in kept.items())}"
    beside_json(json_file, soft_wrap=True).print(said)


def _is_of_suite(value: str) -> bool:
    """Is it a value of the suite, such as repeats=3 or samples.0.count=50, and no setting to try?"""
    from lrkit.profile.measure.suite import Suite

    key = value.partition("=")[0]
    return "." in key or key in Suite.model_fields
