"""What a vision-language model must offer to become a reasoner. One class per family implements it.

Nothing outside a family's folder asks which family it is talking to. A *grid* is the cut of one picture, in the
family's own numbers (lrkit/families/protocols.py). A batch carries them as an integer tensor, one row per picture.

Legend: A axes of positions, B batch, P prompt tokens, S tokens of a chunk, D hidden width, V visual tokens, N patches,
C values of a patch, E width of a visual token's row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor, nn

from lrkit.contract.attention import Attention
from lrkit.families.protocols import Grid
from lrkit.model.keys import LayerCache
from lrkit.model.routing import Rotary
from lrkit.model.saliency import SaliencyRow

WeightPart = Literal["vision", "merger", "embedding", "head", "layers"]
"""Where a weight belongs: each of the tower's is used once per patch, of its merger's once per visual token."""


@dataclass(frozen=True)
class AttentionSizes:
    """What attention costs."""

    query_width: int
    """All query heads together."""
    key_width: int
    """All key heads together."""
    vision_width: int
    """Of the tower."""
    vision_depth: int
    """Its layers in which a patch sees the whole picture."""
    vision_windows: tuple[tuple[int, int], ...] = ()
    """Its other layers: how many, and how many patches one sees in them at most: those of its window, or of its view
    where a picture is cut into several."""
    vision_products: int | None = None
    """Multiplications that each patch takes in the tower outside attention; None: one for each number in a matrix,
    tables aside. Convolutions over more than a patch take more."""


def part_by_piece(name: str, pieces: Mapping[str, WeightPart]) -> WeightPart:
    """For `Backbone.part_of`: the part of the first piece that a weight's name holds; the layers without one."""
    for piece, part in pieces.items():
        if piece in name:
            return part
    return "layers"


class Backbone(Protocol):
    """A pretrained VLM, opened up at the places where latent reasoning enters."""

    @property
    def model(self) -> nn.Module:
        """The transformers model; LoRA is injected into it in place."""
        ...

    hidden_size: int
    num_layers: int
    image_token_id: int
    axes: int
    """A, how many positions a token has: 1, or 3 for M-RoPE."""
    attention: AttentionSizes
    patches_per_token: int
    """Patches that one visual token is made of."""
    tied_embeddings: bool
    """True when the language head is the embedding matrix."""
    deep_layers: tuple[int, ...]
    """Layers behind which visual tokens add features of their own, ascending; in most families none. Replayed tokens
    bring theirs along. Text, latents and spoken tokens add nothing."""
    lora_targets: str
    """Regular expression over module names: q, k, v, o, gate, up and down of the language model only."""

    def use_attention(self, attention: Attention) -> None:
        """Computes attention by these kernels from now on; new ones have sdpa. Raises what transformers raises."""
        ...

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """(B, S) int64 -> (B, S, D)."""
        ...

    def embedding_rows(self) -> Tensor:
        """The token embedding matrix (vocabulary, D)."""
        ...

    def head_rows(self) -> Tensor:
        """The language head's matrix (vocabulary, D); the embedding matrix where they are tied."""
        ...

    def encode_images(self, pixel_values: Tensor, grids: Tensor) -> Tensor:
        """Patches (N, C) of all images, with their grids, int64, a row each -> rows of visual tokens (V, E), image
        after image. A row is the token's input embedding (D), then what it adds behind each of `deep_layers` (D)."""
        ...

    def prompt_positions(self, ids: Sequence[int], grids: Sequence[Grid]) -> Tensor:
        """(A, P) int64 rotary positions of one prompt without padding, on the CPU."""
        ...

    def rotary(self, positions_ABS: Tensor, like: Tensor) -> Rotary:
        """cos and sin of positions (A, B, S), in the type and on the device of `like`."""
        ...

    def run_layer(
        self,
        layer: int,
        hidden_BSD: Tensor,
        mask_B1SN: Tensor | None,
        rotary: Rotary,
        cache: LayerCache,
        saliency: SaliencyRow | None = None,
    ) -> Tensor:
        """One transformer layer over new tokens, appending their keys to `cache`; None is the plain causal mask."""
        ...

    def final_norm(self, hidden_BSD: Tensor) -> Tensor:
        """The norm after the last layer."""
        ...

    def head(self, hidden: Tensor) -> Tensor:
        """Logits over the backbone's vocabulary, (..., D) -> (..., vocabulary). Tokens that the model never says, such
        as the codes of pictures, have the smallest number of the type; an export has them as
        `Dimensions.never_spoken`."""
        ...

    def picture_sizes(self, grid: Grid) -> tuple[int, int]:
        """(patches, visual tokens) of one image."""
        ...

    def token_raster(self, values_V: Tensor, grid: Grid) -> Tensor:
        """One bool per visual token of an image -> (rows, columns) as they lie over the image; each covers an equal
        part of it. Where a family shows an image in parts and once more as a whole, the raster is that of the parts.
        A token of the whole counts where none of a part does; it then marks all that it lies over."""
        ...

    def unpatch(self, patches: Tensor, grid: Grid) -> Tensor:
        """Patches (N, C) of one image -> the processed image (channels, height, width), as `token_raster` lies over
        it."""
        ...

    def patch(self, image: Tensor) -> Tensor:
        """The inverse of `unpatch`: (channels, height, width) -> patches (N, C). Where the family shows the image once
        more as a whole, that view is computed from it."""
        ...

    def part_of(self, name: str) -> WeightPart:
        """Where the weight of that name in `model` belongs."""
        ...


class ChoosingBackbone(Protocol):
    """What a backbone offers besides, where its tower chooses words: visual tokens are then rows of the token
    embedding, and where two are as near, rounding decides."""

    given_tokens: Tensor | None
    """Ids (V,) that `encode_images` takes the rows of; None: those of `choose_tokens`."""

    def choose_tokens(self, pixel_values: Tensor, grids: Tensor) -> Tensor:
        """Patches (N, C) of all images, with their grids, as in `encode_images` -> ids (V,) int64."""
        ...
