"""`lrkit profile MODEL...`: what latent reasoning buys on this device, as report.json, report.md and report.html."""

from pathlib import Path
from typing import Annotated

import typer

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
from lrkit.files import check_writable

EXAMPLES = """
Examples:

    lrkit profile tiny

    lrkit profile tiny my-bundle --suite latency --threads 2 -o runs/profile

    lrkit profile my-bundle repeats=5 samples.0.count=50

    lrkit profile my-bundle --runs latent,cot --fail-if "latent.p95_ms > 500"

    lrkit profile my-bundle --engine onnxruntime,openvino

    lrkit profile tiny --plan jetson-orin-nx-16gb --plan h100-sxm

    lrkit profile random:smolvlm-256m --dtype bfloat16

    lrkit profile two-billion samples.0.picture=[896,448] --runs latent,cot

    lrkit profile random:qwen2-vl-2b --suite gpu-shape --device cuda --cuda-graphs
"""


def profile(
    words: Annotated[
        list[str], typer.Argument(metavar="MODEL... [KEY=VALUE]", help=f"{MODELS} KEY=VALUE changes the suite.")
    ],
    suite: SuiteName = None,
    runs: Runs = "",
    data: Data = None,
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
    """Measure accuracy, steps, latency by phase, memory and ceilings of all modes on the same questions.

    `lrkit sweep` finds the setting to use, `lrkit compare` holds two reports against each other, and `lrkit report`
    shows one again.
    """
    from lrkit.profile.measure.conditions import parse_condition

    conditions = [parse_condition(text) for text in fail_if or []]
    check_writable(output, folder=True)
    models, changes = models_and_values(words)
    asked = choose_suite(suite or usual_suite(models, "smoke"), changes, runs, data, models)
    place = where_to_run(device, dtype, engine, engine_option, provider, threads, cuda_graphs, attention)
    found = measure(choose_models(models, place), asked, plan or [])
    save_and_show(found, output, json_file)
    refuse_held(conditions, found)
