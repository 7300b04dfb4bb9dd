"""The plain language model as OpenVINO GenAI reads it: the peer of peer_genai.py.

The model is written as converters from transformers write it: rotations, norms and attention in the forms that OpenVINO
fuses, and the keys and values as a state that grows. NNCF rounds the matrices, and `LLMPipeline` generates.

Legend: B sentences, S tokens of a chunk, N keys, H query heads, G key heads, W head width, D width.
"""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lrkit.model.reasoner import LatentReasoner
from lrkit.runtime.encode.processor import EncodedPrompt

CLOSED = -1e30


class Words(nn.Module):
    """The language model of a reasoner alone, as a function of its past."""

    def __init__(self, reasoner: LatentReasoner, closed: tuple[int, ...]) -> None:
        """`closed`: tokens that are never said."""
        super().__init__()
        model: Any = reasoner.backbone.model
        self.text: Any = model.model.language_model
        self.config = self.text.config
        head = model.lm_head
        self.head = nn.Linear(head.in_features, head.out_features, bias=True)
        self.head.weight = head.weight
        bias_W = torch.zeros(head.out_features)
        bias_W[list(closed)] = CLOSED
        self.head.bias = nn.Parameter(bias_W, requires_grad=False)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, beam_idx: Tensor, past: list[Tensor]
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """(logits (B, S, vocabulary), then the keys and values (B, G, N, W) of every layer, the new ones behind)."""
        hidden_BSD = self.text.embed_tokens(input_ids)
        frequencies_W = self.text.rotary_emb.inv_freq.float()
        angles_BSW = (frequencies_W[None, :, None] @ position_ids[:, None, :].float()).transpose(1, 2)
        angles_BSW = torch.cat((angles_BSW, angles_BSW), dim=-1)
        rotary = angles_BSW.cos(), angles_BSW.sin()
        mask = _mask(attention_mask, input_ids.shape[1])
        made: list[Tensor] = []
        for number, layer in enumerate(self.text.layers):
            key, value = (kept.index_select(0, beam_idx) for kept in past[2 * number : 2 * number + 2])
            read = layer.input_layernorm(hidden_BSD)
            mixed, key, value = self._attend(layer.self_attn, read, rotary, mask, (key, value))
            made += [key, value]
            hidden_BSD = hidden_BSD + mixed
            hidden_BSD = hidden_BSD + layer.mlp(layer.post_attention_layernorm(hidden_BSD))
        return self.head(self.text.norm(hidden_BSD)), *made

    def _attend(
        self, attn: Any, read_BSD: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor, past: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        batch, length = read_BSD.shape[0], read_BSD.shape[1]
        heads, groups = self.config.num_attention_heads, self.config.num_key_value_heads
        width = self.config.hidden_size // heads
        query, key, value = (
            project(read_BSD).view(batch, length, count, width).transpose(1, 2)
            for project, count in ((attn.q_proj, heads), (attn.k_proj, groups), (attn.v_proj, groups))
        )
        query, key = _rotated(query, rotary), _rotated(key, rotary)
        key, value = torch.cat((past[0], key), dim=2), torch.cat((past[1], value), dim=2)
        shared = [
            kept[:, :, None]
            .expand(batch, groups, heads // groups, kept.shape[2], width)
            .reshape(batch, heads, kept.shape[2], width)
            for kept in (key, value)
        ]
        mixed = nn.functional.scaled_dot_product_attention(query, *shared, attn_mask=mask)
        return attn.o_proj(mixed.transpose(1, 2).reshape(batch, length, heads * width)), key, value


def _rotated(x_BHSW: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = (table[:, None] for table in rotary)
    first, second = x_BHSW[..., : x_BHSW.shape[-1] // 2], x_BHSW[..., x_BHSW.shape[-1] // 2 :]
    return x_BHSW * cos + torch.cat((-second, first), dim=-1) * sin


def _mask(attention_mask_BN: Tensor, length: int) -> Tensor:
    """Added to scores (B, 1, S, N): every token sees itself and what is before it."""
    count = attention_mask_BN.shape[1]
    columns = torch.arange(count)[None]
    rows = torch.arange(count)[:, None][count - length :]
    hidden = (columns > rows)[None, None] | (attention_mask_BN[:, None, None] == 0)
    return torch.zeros(1).masked_fill(hidden, float(np.finfo(np.float32).min))


def export_genai(reasoner: LatentReasoner, closed: tuple[int, ...], folder: Path) -> None:
    """Writes the float model with its state: openvino_model.xml and what `LLMPipeline` asks for beside it."""
    import openvino
    from openvino._offline_transformations import apply_make_stateful_transformation

    words = Words(reasoner, closed).eval()
    config = words.config
    groups, width = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    caches = 2 * config.num_hidden_layers
    example = {
        "input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 5, dtype=torch.long),
        "position_ids": torch.tensor([[2, 3, 4]]), "beam_idx": torch.zeros(1, dtype=torch.int32),
        "past": [torch.zeros(1, groups, 2, width) for _ in range(caches)],
    }  # fmt: skip
    with torch.no_grad():
        model = openvino.convert_model(words, example_input=example)
    names = ["input_ids", "attention_mask", "position_ids", "beam_idx"]
    kept = [f"past_key_values.{i // 2}.{('key', 'value')[i % 2]}" for i in range(caches)]
    for port, name in zip(model.inputs, names + kept, strict=True):
        port.get_tensor().set_names({name})
        free: list[int] = [-1, groups, -1, width] if name in kept else [-1] if name == "beam_idx" else [-1, -1]
        port.get_node().set_partial_shape(openvino.PartialShape(free))
    outputs = ["logits", *(name.replace("past_key_values", "present") for name in kept)]
    for port, name in zip(model.outputs, outputs, strict=True):
        port.get_tensor().set_names({name})
    model.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(model, dict(zip(kept, outputs[1:], strict=True)))
    _begin_empty(model, groups, width)
    folder.mkdir(parents=True)
    openvino.save_model(model, folder / "openvino_model.xml", compress_to_fp16=False)
    _beside(config, folder)


def _begin_empty(model: Any, groups: int, width: int) -> None:
    """The state of a sentence that begins: no keys, for as many sentences as are asked."""
    from openvino import opset13 as op

    batch = op.gather(op.shape_of(model.input("input_ids"), output_type="i64"), op.constant([0]), op.constant(0))
    shape = op.concat([batch, *(op.constant([size], dtype=np.int64) for size in (groups, 0, width))], axis=0)
    for node in model.get_ops():
        if node.get_type_name() == "ReadValue":
            node.set_arguments([op.broadcast(op.constant(0.0, dtype=np.float32), shape)])
    model.validate_nodes_and_infer_types()


def _beside(config: Any, folder: Path) -> None:
    about = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], **config.to_dict()}
    (folder / "config.json").write_text(json.dumps(about | {"model_type": "qwen2"}, default=str))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": config.vocab_size - 1}))


def rounded(folder: Path, into: Path, block: int) -> None:
    """The same with int4 matrices, symmetric, a scale for each `block` weights; embedding and head in int8, as NNCF
    has them."""
    import nncf
    import openvino

    model = openvino.Core().read_model(folder / "openvino_model.xml")
    model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT4_SYM, ratio=1.0, group_size=block)
    into.mkdir(parents=True)
    openvino.save_model(model, into / "openvino_model.xml", compress_to_fp16=False)
    for name in ("config.json", "generation_config.json"):
        (into / name).write_text((folder / name).read_text())


class Genai:
    """`LLMPipeline` on the CPU, as it comes."""

    def __init__(self, folder: Path, hint: str, threads: int) -> None:
        """`hint`: precision of products, by OpenVINO's names."""
        import openvino
        import openvino_genai

        self.bytes = sum(file.stat().st_size for file in folder.iterdir())
        self.library, self.tensor = openvino_genai, openvino.Tensor
        given = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads}
        self.pipeline = openvino_genai.LLMPipeline(folder, "CPU", **given)

    def answer(self, prompt: EncodedPrompt, tokens: int) -> tuple[float, float, list[int]]:
        """(seconds of the prompt and its token, seconds of each of `tokens` further ones, all tokens)."""
        first, _ = self._run(prompt, 1)
        both, said = self._run(prompt, tokens + 1)
        return first, (both - first) / max(tokens, 1), said

    def _run(self, prompt: EncodedPrompt, tokens: int) -> tuple[float, list[int]]:
        how = self.library.GenerationConfig(max_new_tokens=tokens, ignore_eos=True, do_sample=False)
        asked = self.tensor(np.array([prompt.ids], np.int64))
        started = time.perf_counter()
        made = self.pipeline.generate(asked, how)
        seconds = time.perf_counter() - started
        said = list(made.tokens[0])
        assert len(said) == tokens, "no token ends an answer"
        return seconds, said
