"""Names and shapes of the weights of a Llama-like decoder, for the part `layout` of a family. Torch-free.

Legend of shapes: D width, W head width.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from lrkit.families.common.config_values import Decoder
from lrkit.families.layout import Shape


@dataclass(frozen=True)
class DecoderTensors:
    """A decoder of transformers whose modules are named as Llama's."""

    prefix: str
    """What stands before the names, as "model.language_model"."""
    sizes: Decoder
    head_width: int
    """W; often hidden_size / num_attention_heads."""
    qkv_bias: bool = False
    """Whether queries, keys and values have biases."""
    head_norms: bool = False
    """Whether queries and keys have a norm over the width of a head, one for all heads."""

    def all(self) -> Iterator[tuple[str, Shape]]:
        """Every weight but the language head."""
        sizes, width = self.sizes, self.sizes.hidden_size
        yield f"{self.prefix}.embed_tokens.weight", (sizes.vocab_size, width)
        yield f"{self.prefix}.norm.weight", (width,)
        for module, (inputs, outputs) in self.adapted():
            yield f"{module}.weight", (outputs, inputs)
            if self.qkv_bias and module.endswith(("q_proj", "k_proj", "v_proj")):
                yield f"{module}.bias", (outputs,)
        for layer in range(sizes.num_hidden_layers):
            yield f"{self.prefix}.layers.{layer}.input_layernorm.weight", (width,)
            yield f"{self.prefix}.layers.{layer}.post_attention_layernorm.weight", (width,)
            for name in ("q_norm", "k_norm") if self.head_norms else ():
                yield f"{self.prefix}.layers.{layer}.self_attn.{name}.weight", (self.head_width,)

    def adapted(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Modules that LoRA is put on: name, (inputs, outputs)."""
        sizes, width, inner = self.sizes, self.sizes.hidden_size, self.sizes.intermediate_size
        queries, keys = sizes.num_attention_heads * self.head_width, sizes.num_key_value_heads * self.head_width
        modules = {
            "self_attn.q_proj": (width, queries), "self_attn.k_proj": (width, keys), "self_attn.v_proj": (width, keys),
            "self_attn.o_proj": (queries, width), "mlp.gate_proj": (width, inner), "mlp.up_proj": (width, inner),
            "mlp.down_proj": (inner, width),
        }  # fmt: skip
        for layer in range(sizes.num_hidden_layers):
            for name, size in modules.items():
                yield f"{self.prefix}.layers.{layer}.{name}", size
