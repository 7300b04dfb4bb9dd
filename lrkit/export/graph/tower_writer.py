"""What an export asks of a family to write its vision tower: a module `tower` in the family's folder.

Place in the pipeline: `write_tower` -> a `Tower`, which program.py and step_graphs.py call with the graph and its
inputs. Most families let tracing.py do the work.

Legend: V visual tokens, E width of their rows (`Dimensions.row_width`), K windows of M patches and F visual tokens, C
    bytes of a patch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from lrkit.errors import ExportError
from lrkit.export.graph.nodes import Carried, Graph, Value
from lrkit.export.graph.writer import Writer
from lrkit.export.weights.reader import export_part
from lrkit.export.weights.source import Source

Tower = Callable[[Graph, Carried], Value]
"""(graph, inputs of the program by name) -> rows of visual tokens (V, E), as `Backbone.encode_images` gives them."""

WindowTower = Callable[[Graph, Value], Value]
"""(graph, windows (K, M, C) from `Writer.pixels`) -> their rows (K F, E), window by window: the tower over pictures of
one cut, with weights that are those of `Tower`."""

CHOSEN = "chosen_tokens"
"""Name of the value that `chosen` marks."""


@dataclass(frozen=True)
class TowerSizes:
    """What the work of a tower can be counted from. Biases and norms are no products and are left out."""

    width: int
    depth: int
    """Layers in which a patch sees the whole picture."""
    weights: int
    """In the matrices that every patch goes through once. Of convolutions over more than a patch: how many
    multiplications each patch takes."""
    merger_weights: int
    """In those that every visual token goes through once."""
    windows: tuple[tuple[int, int], ...] = ()
    """The other layers: how many, and how many patches one sees in them at most (see `AttentionSizes`)."""


class TowerWriter(Protocol):
    """Writes the tower of one family.

    A tower whose visual tokens are words, chosen by nearness, says so with `chooses = True` and passes their ids
    through `chosen`; its family's backbone is a `ChoosingBackbone`.

    Where `Geometry.with_zoom` gives windows, it also has `write_windows(tower, geometry, dialect) -> WindowTower`, for
    windows of that geometry (tower_windows.py)."""

    def write(self, tower: nn.Module, geometry: Any, dialect: Writer) -> Tower:
        """`tower` is what `WeightReader.new_tower` made, with its weights; it stays as it is. `geometry` is the
        family's, whose `program_inputs` the result reads; pictures come as bytes (`Writer.pixels`).

        Raises:
            ExportError: no program can be built for this tower.
        """
        ...

    def sizes(self, tower: nn.Module) -> TowerSizes:
        """Its numbers."""
        ...


def writer_of(family: str) -> TowerWriter:
    """The writer of a family. Raises as `export_part`."""
    return export_part(family, "tower", TowerWriter)


def chooses(family: str) -> bool:
    """Whether the family's tower chooses words. Raises as `export_part`."""
    return bool(getattr(writer_of(family), "chooses", False))


def chosen(ids: Value) -> Value:
    """The same ids (V,), under the name by which the comparison with torch finds them."""
    ids.name = CHOSEN
    return ids


def write_window_tower(source: Source, geometry: Any, dialect: Writer) -> WindowTower:
    """The source's tower, for the windows of `geometry`.

    Raises:
        ExportError: no program can be built for it.
    """
    write = getattr(writer_of(source.family), "write_windows", None)
    if write is None:
        raise ExportError(
            f"replay.source is fine, and no program of {source.family} can read windows of a picture; set "
            "replay.source: prompt"
        )
    return write(source.tower, geometry, dialect)


def write_tower(source: Source, geometry: Any, dialect: Writer) -> Tower:
    """The source's tower, for pictures that `geometry` describes. Raises as `TowerWriter.write`."""
    return writer_of(source.family).write(source.tower, geometry, dialect)
