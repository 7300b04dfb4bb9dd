"""Looks up a setting of the method in a table of what a program can be built for. A value that the table lacks is
refused, never taken for another.

Place in the pipeline: replay_nodes.py, routing_nodes.py, stack.py and latent_input.py own the tables; a test compares
their keys with the settings.
"""

from collections.abc import Mapping
from typing import TypeVar

from lrkit.errors import ExportError, did_you_mean

T = TypeVar("T")


def choice(table: Mapping[str, T], value: str, name: str) -> T:
    """The row of `value`, which the setting `name` has.

    Raises:
        ExportError: there is none.
    """
    if value not in table:
        raise ExportError(
            f"no program can be built with {name}={value!r}; a program knows {', '.join(table)}"
            f"{did_you_mean(str(value), table)}: train with one of these"
        )
    return table[value]
