"""Options that several verbs have: where a model runs, and what is read and written beside the work itself.

The help shows them behind a verb's own, under the name of their group.
"""

from typing import Annotated, Any

import typer

WHERE = "Where it runs"
COMMON = "Common to many verbs"


def where(help: str, **limits: Any) -> Any:
    """An option of the group that says where a model runs."""
    return typer.Option(help=help, rich_help_panel=WHERE, **limits)


Device = Annotated[str | None, where("Checkpoints: cpu, cuda or cuda:0.")]
Dtype = Annotated[str, where("Checkpoints: float32, bfloat16, float16, or auto: as trained.")]
FastDtype = Annotated[str | None, where("Checkpoints: float32, bfloat16 or float16.")]
AttentionOption = Annotated[
    str | None,
    typer.Option(
        "--attention",
        help="Checkpoints: sdpa, or flash_attention_2, _3 or _4; or vision=NAME,text=NAME.",
        rich_help_panel=WHERE,
    ),
]
Engine = Annotated[
    str | None,
    where(
        "Bundles: onnxruntime, openvino, tensorrt-rtx, tensorrt; profiles: several, with commas; lines: ray, ray:NAME."
    ),
]
EngineOption = Annotated[list[str] | None, where("Of the engine: KEY=VALUE, as device=GPU; repeat.")]
Provider = Annotated[str | None, where("ONNX Runtime: cpu, cuda, tensorrt, ...")]
Threads = Annotated[int | None, where("CPU threads of one operator.", min=1)]
CudaGraphs = Annotated[
    bool,
    typer.Option(
        "--cuda-graphs", help="Checkpoints on a GPU: record steps and launch each as one.", rich_help_panel=WHERE
    ),
]


def _allow(wanted: bool) -> bool:
    from lrkit.checkpoints.hub import allow_downloads

    allow_downloads(wanted)
    return wanted


Download = Annotated[
    bool,
    typer.Option(
        "--download", help="Fetch a backbone that is named by a hub id; once.", callback=_allow, rich_help_panel=COMMON
    ),
]


def dry_run_option(help: str) -> Any:
    """The option `--dry-run`, of verbs that take long."""
    return typer.Option("--dry-run", help=help, rich_help_panel=COMMON)
