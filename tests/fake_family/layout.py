"""The fake family's config.json, and the weights that follow from it."""

from collections.abc import Iterator, Mapping
from typing import Any

from lrkit.errors import CheckpointError
from lrkit.families.layout import Layout, Shape


def read_rowwise(values: Mapping[str, Any], label: str) -> Layout:
    """The layout that config.json's `values` describe.

    Raises:
        CheckpointError: a number is missing.
    """
    try:
        text, eye = values["text"], values["eye"]
        tensors = dict(_tensors(text, eye))
        return Layout(
            family="rowwise", width=text["hidden_size"], num_layers=text["num_hidden_layers"],
            vocabulary=text["vocab_size"], max_positions=text["max_position_embeddings"],
            image_id=values["image_token_id"], cut={"patch_size": eye["patch_size"]}, tied=False, tensors=tensors,
            copies={}, adapted=dict(_adapted(text)),
            config={key: values[key] for key in ("text", "eye", "image_token_id")}, canonical=lambda name: name,
        )  # fmt: skip
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{label}: {error} is missing; copy the file again") from error


def _head(text: Mapping[str, Any]) -> int:
    return text.get("head_dim", text["hidden_size"] // text["num_attention_heads"])


def _adapted(text: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, int]]]:
    width, inner, head = text["hidden_size"], text["intermediate_size"], _head(text)
    queries, keys = head * text["num_attention_heads"], head * text["num_key_value_heads"]
    sizes = {"q": (width, queries), "k": (width, keys), "v": (width, keys), "o": (queries, width)}
    for layer in range(text["num_hidden_layers"]):
        for name, size in sizes.items():
            yield f"words.layers.{layer}.self_attn.{name}_proj", size
        for name, size in {"gate": (width, inner), "up": (width, inner), "down": (inner, width)}.items():
            yield f"words.layers.{layer}.mlp.{name}_proj", size


def _tensors(text: Mapping[str, Any], eye: Mapping[str, Any]) -> Iterator[tuple[str, Shape]]:
    width, rows, own = text["hidden_size"], text["vocab_size"], eye["width"]
    yield "words.embed_tokens.weight", (rows, width)
    yield "words.norm.weight", (width,)
    yield "lm_head.weight", (rows, width)
    for module, (inputs, outputs) in _adapted(text):
        yield f"{module}.weight", (outputs, inputs)
    for layer in range(text["num_hidden_layers"]):
        yield f"words.layers.{layer}.input_layernorm.weight", (width,)
        yield f"words.layers.{layer}.post_attention_layernorm.weight", (width,)
        if "head_dim" in text:
            yield f"words.layers.{layer}.self_attn.q_norm.weight", (_head(text),)
            yield f"words.layers.{layer}.self_attn.k_norm.weight", (_head(text),)
    matrices = {"patch": (own, 3 * eye["patch_size"] ** 2), "out": (width, own)}
    matrices |= {f"deep.{number}": (width, own) for number in range(len(eye.get("deep", ())))}
    for block in range(eye["depth"]):
        matrices |= {f"blocks.{block}.around": (own, own), f"blocks.{block}.inner": (2 * own, own)}
        matrices |= {f"blocks.{block}.outer": (own, 2 * own)}
    for name, shape in matrices.items():
        yield f"eye.{name}.weight", shape
        yield f"eye.{name}.bias", shape[:1]
    for name in ("row", "column"):
        yield f"eye.{name}.weight", (eye["most"], own)


PART = read_rowwise
