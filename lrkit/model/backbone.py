"""What a vision-language model must offer to become a reasoner. One class per family implements it.

Nothing outside a family's folder asks which family it is talking to.

Legend: B batch, P prompt tokens, S tokens of a chunk, D hidden width, V visual tokens, N patches, C values of a patch.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from lrkit.model.keys import LayerCache
from lrkit.model.routing import Rotary
from lrkit.model.saliency import SaliencyRow


class Backbone(Protocol):
    """A pretrained VLM, opened up at the places where latent reasoning enters."""

    model: nn.Module
    """The transformers model; LoRA is injected into it in place."""
    hidden_size: int
    num_layers: int
    image_token_id: int
    merge_size: int
    """Side, in patches, of the square that becomes one visual token."""
    tied_embeddings: bool
    """True when the language head is the embedding matrix."""
    lora_targets: str
    """Regular expression over module names: q, k, v, o, gate, up and down of the language model only."""

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """(B, S) int64 -> (B, S, D)."""
        ...

    def embedding_rows(self) -> Tensor:
        """The token embedding matrix (vocabulary, D)."""
        ...

    def head_rows(self) -> Tensor:
        """The language head's matrix (vocabulary, D); the embedding matrix where they are tied."""
        ...

    def encode_images(self, pixel_values: Tensor, grid_thw: Tensor) -> Tensor:
        """Patches (N, C) of all images, with their grids (images, 3) -> visual tokens (V, D), image after image."""
        ...

    def prompt_positions(self, ids: Sequence[int], grids: Sequence[tuple[int, int, int]]) -> Tensor:
        """(3, P) int64 rotary positions of one prompt without padding, on the CPU."""
        ...

    def rotary(self, positions_3BS: Tensor, like: Tensor) -> Rotary:
        """cos and sin of positions (3, B, S), in the type and on the device of `like`."""
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
        """Logits over the backbone's vocabulary, (..., D) -> (..., vocabulary)."""
        ...

    def unpatch(self, patches: Tensor, grid_thw: tuple[int, int, int]) -> Tensor:
        """Patches (N, C) of one image -> the processed image (channels, height, width)."""
        ...

    def patch(self, image: Tensor) -> Tensor:
        """The inverse of `unpatch`: (channels, height, width) -> patches (N, C)."""
        ...
