"""Numbers of a program that its work can be counted from: widths, heads, weights of the vision tower.

Place in the pipeline: bundle.py writes them into bundle.json; lrkit/profile/ceilings/roofline.py counts ceilings from
them.
"""

from lrkit.contract.bundle.manifest import ProgramSizes
from lrkit.export.graph.stack import Stack
from lrkit.export.graph.tower_writer import writer_of


def program_sizes(stack: Stack) -> ProgramSizes:
    """Of the reasoner behind one program. Embeddings, norms and biases are no products and are left out."""
    dims, source = stack.dims, stack.source
    tower = writer_of(source.family).sizes(source.tower)
    return ProgramSizes(
        width=dims.width, num_heads=dims.num_heads, num_key_heads=dims.num_key_heads, head_width=dims.head_width,
        inner=dims.inner, inner_matrices=3 if dims.recipe.gated else 2, vocabulary=dims.vocabulary,
        cache_bytes=stack.dialect.floats.itemsize,
        vision_width=tower.width, vision_depth=tower.depth, vision_windows=tower.windows,
        vision_weights=tower.weights, merger_weights=tower.merger_weights,
    )  # fmt: skip
