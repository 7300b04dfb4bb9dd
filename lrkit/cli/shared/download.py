"""The option `--download`: the one way in which a verb other than train fetches a backbone from the hub."""

from typing import Annotated

import typer


def _allow(wanted: bool) -> bool:
    from lrkit.checkpoints.hub import allow_downloads

    allow_downloads(wanted)
    return wanted


Download = Annotated[
    bool, typer.Option("--download", help="Fetch a backbone that is named by a hub id; once.", callback=_allow)
]
