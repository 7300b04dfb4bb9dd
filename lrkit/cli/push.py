"""`lrkit push MODEL OWNER/NAME`: a checkpoint or a bundle on the Hugging Face hub."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lrkit.cli.shared.console import beside_json, err
from lrkit.cli.shared.options import Download, dry_run_option
from lrkit.cli.shared.tables import json_option, write_json

EXAMPLES = """
Examples:

    lrkit push runs/mine me/rooms --dry-run

    lrkit push runs/mine me/rooms --merge --private --report eval.json

    lrkit push my-bundle me/rooms-int4 --report profiles/rooms/report.json --license apache-2.0

    lrkit push runs/mine me/rooms --revision second-try --message "more updates"
"""


def push(
    model: Annotated[str, typer.Argument(help="A checkpoint, a run, a bundle or a shipped name.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Made where there is none.")],
    merge: Annotated[
        bool, typer.Option("--merge", help="Add LoRA into the weights: one model, which plain transformers loads.")
    ] = False,
    private: Annotated[bool, typer.Option("--private", help="A new repository that others do not see.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch; made where there is none. [default: main]")] = None,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
    report: Annotated[
        list[Path] | None, typer.Option(help="For the card: of `lrkit eval --json` or `lrkit profile`; repeat.")
    ] = None,
    license: Annotated[str | None, typer.Option(help="For the card, as the hub names it: apache-2.0.")] = None,
    dry_run: Annotated[bool, dry_run_option("Send nothing; list files, bytes, and what stays behind.")] = False,
    download: Download = False,
    json_file: Annotated[Path | None, json_option("Write what was sent to this file.")] = None,
) -> None:
    """Publish a checkpoint or a bundle on the Hugging Face hub, with a model card.

    Safetensors and what a bundle lists are sent, in one commit; no pickle, and nothing of the training run. A README.md
    that a hand has written is kept. `Reasoner.from_pretrained("OWNER/NAME")` loads it again.
    """
    from lrkit.publish.push import push_to_hub

    done = push_to_hub(
        model, repository, merge=merge, private=private or None, revision=revision, commit_message=message,
        reports=report or [], license=license, dry_run=dry_run,
    )  # fmt: skip
    console = beside_json(json_file)
    for name, size in done.sent:
        console.print(f"{size:>14,}  {name}")
    console.print(f"{done.num_bytes:>14,}  bytes in {len(done.sent)} files{', not sent' if dry_run else ''}")
    for left in done.left:
        err().print(f"stays: {left.name} ({left.why})")
    for name in done.removed:
        err().print(f"removed: {name}, of an earlier push")
    if done.url is not None:
        console.print(done.url)
    report_: dict[str, Any] = {
        "schema": 1, "kind": "push", "repository": done.repo_id, "url": done.url, "dry_run": dry_run,
        "sent": dict(done.sent), "removed": list(done.removed), "left": {left.name: left.why for left in done.left},
    }  # fmt: skip
    write_json(json_file, report_)
