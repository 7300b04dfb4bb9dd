"""Layers that a program builds from a recipe are those of plain torch, in both dialects: a prompt at once, then a token
on its keys."""

import copy
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch.nn import functional

from lrkit.export.graph.layers import Decoder, Hidden, Seen, Segment
from lrkit.export.graph.nodes import Graph
from lrkit.export.targets.target import Int4, Target
from lrkit.export.weights.layer_recipe import Dimensions, LayerRecipe, Norm
from lrkit.export.weights.low_rank import nothing_added
from lrkit.export.weights.packing import packed
from lrkit.export.weights.quantizers.quantizer import quantized
from tests.programs import dialect_of

WIDTH, HEADS, KEY_HEADS, HEAD, INNER, LAYERS, TOKENS = 32, 4, 2, 16, 64, 2, 7
FREQUENCIES = (1.0, 0.5, 0.3, 0.2, 0.1, 0.05, 0.01, 0.0)
SAME = (0,) * len(FREQUENCIES)
"""Axes where a position is one number."""
RECIPES = {
    "as in Qwen2": (LayerRecipe(Norm("rms", 1e-6), frozenset({"qkv"})), (0, 1, 2, 0, 1, 2, 0, 1)),
    "as in Llama": (LayerRecipe(Norm("rms", 1e-5)), SAME),
    "all biases, plain, layer norms": (
        LayerRecipe(Norm("layer", 1e-3), frozenset({"qkv", "out", "mlp"}), gated=False, activation="gelu_tanh"),
        SAME,
    ),
    "gated with biases, norms on both sides, neighbours turn": (
        LayerRecipe(
            Norm("rms", 1e-6), frozenset({"mlp"}), frozenset({"before", "after"}), activation="gelu",
            rotary_pairs="neighbours",
        ),
        (1, 0, 1, 0, 0, 1, 1, 0),
    ),
    "norms behind, layer norms, neighbours turn": (
        LayerRecipe(
            Norm("layer", 1e-5), frozenset({"out"}), frozenset({"after"}), gated=False, activation="silu",
            rotary_pairs="neighbours",
        ),
        SAME,
    ),
    "as in Qwen3": (LayerRecipe(Norm("rms", 1e-6), head_norm=Norm("rms", 1e-6)), (0, 1, 2, 0, 1, 2, 2, 1)),
    "as in Chameleon": (LayerRecipe(Norm("rms", 1e-5), head_norm=Norm("layer", 1e-5)), SAME),
    "norms of heads over biases, neighbours turn": (
        LayerRecipe(
            Norm("layer", 1e-5), frozenset({"qkv"}), rotary_pairs="neighbours", head_norm=Norm("rms", 1e-2),
        ),
        (1, 0, 1, 0, 0, 1, 1, 0),
    ),
    "norms of heads with biases, norms behind, neighbours turn": (
        LayerRecipe(
            Norm("rms", 1e-5), norm_places=frozenset({"after"}), rotary_pairs="neighbours",
            head_norm=Norm("layer", 1e-2),
        ),
        SAME,
    ),
}  # fmt: skip


class Weights:
    """Random weights of any part, by the names of reader.py."""

    SHAPES = {
        "q": (HEADS * HEAD, WIDTH), "k": (KEY_HEADS * HEAD, WIDTH), "v": (KEY_HEADS * HEAD, WIDTH),
        "out": (WIDTH, HEADS * HEAD), "gate": (INNER, WIDTH), "up": (INNER, WIDTH), "down": (WIDTH, INNER),
    }  # fmt: skip

    def __init__(self, recipe: LayerRecipe) -> None:
        self.shapes = dict(self.SHAPES)
        if recipe.head_norm is not None and recipe.head_norm.kind == "layer":
            self.shapes |= {"q_norm": (HEADS, HEAD), "k_norm": (KEY_HEADS, HEAD)}
        elif recipe.head_norm is not None:
            self.shapes |= {"q_norm": (HEAD,), "k_norm": (HEAD,)}
        self.made: dict[str, np.ndarray] = {}
        self.random = np.random.default_rng(0)

    def part(self, layer: object, part: str, kind: str) -> np.ndarray:
        shape = self.shapes.get(part, (WIDTH,))
        size = shape if kind == "weight" or "norm" in part else shape[:1]
        name = f"{layer}.{part}.{kind}"
        if name not in self.made:
            self.made[name] = self.random.normal(size=size, scale=0.3).astype(np.float32)
        return self.made[name]

    def role(self, role: str, dimensions: Dimensions) -> np.ndarray:
        first, _, rest = role.partition(".")
        if first == "norm":
            return self.part("", "norm", rest or "weight")
        return packed(lambda part, kind: self.part(first, part, kind), rest, dimensions)


class Reference:
    """The same layers in torch, float64."""

    def __init__(self, weights: Weights, recipe: LayerRecipe, axes: tuple[int, ...]) -> None:
        self.weights, self.recipe, self.axes = weights, recipe, axes

    def tensor(self, *name: str) -> torch.Tensor:
        return torch.from_numpy(self.weights.part(*name)).double()

    def linear(self, x: torch.Tensor, layer: str, part: str, kind: str) -> torch.Tensor:
        bias = self.tensor(layer, part, "bias") if kind in self.recipe.biases else None
        return functional.linear(x, self.tensor(layer, part, "weight"), bias)

    def norm(self, x: torch.Tensor, layer: str, part: str) -> torch.Tensor:
        norm = self.recipe.head_norm if part in ("q_norm", "k_norm") else self.recipe.norm
        assert norm is not None
        weight = self.tensor(layer, part, "weight")
        if norm.kind == "layer":
            return functional.layer_norm(x, x.shape[-1:], eps=norm.epsilon) * weight + self.tensor(layer, part, "bias")
        return functional.rms_norm(x, x.shape[-1:], weight, norm.epsilon)

    def turn(self, x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
        """x (S, heads, W), angles (S, W / 2)."""
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        if self.recipe.rotary_pairs == "neighbours":
            a, b = x[..., 0::2], x[..., 1::2]
            return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)

    def run(self, x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        places, activations = self.recipe.norm_places, {"silu": functional.silu, "gelu": functional.gelu}
        activations["gelu_tanh"] = lambda given: functional.gelu(given, approximate="tanh")
        activate = activations[self.recipe.activation]
        angles = position.double()[list(self.axes)].T * torch.tensor(FREQUENCIES, dtype=torch.float64)
        for number in range(LAYERS):
            layer = str(number)
            read = self.norm(x, layer, "norm1") if "before" in places else x
            made = self.linear(self.attend(read, layer, angles), layer, "out", "out")
            x = x + (self.norm(made, layer, "after1") if "after" in places else made)
            read = self.norm(x, layer, "norm2") if "before" in places else x
            inner = self.linear(read, layer, "up", "mlp")
            inner = activate(self.linear(read, layer, "gate", "mlp")) * inner if self.recipe.gated else activate(inner)
            made = self.linear(inner, layer, "down", "mlp")
            x = x + (self.norm(made, layer, "after2") if "after" in places else made)
        return self.norm(x, "", "norm")

    def attend(self, read: torch.Tensor, layer: str, angles: torch.Tensor) -> torch.Tensor:
        query, key, value = (self.linear(read, layer, part, "qkv").unflatten(-1, (-1, HEAD)) for part in "qkv")
        if self.recipe.head_norm is not None:
            query, key = self.norm(query, layer, "q_norm"), self.norm(key, layer, "k_norm")
        query, key = self.turn(query, angles), self.turn(key, angles)
        key, value = (rows.repeat_interleave(HEADS // KEY_HEADS, dim=1) for rows in (key, value))
        by_head = (rows.transpose(0, 1) for rows in (query, key, value))
        return functional.scaled_dot_product_attention(*by_head, is_causal=True).transpose(0, 1).flatten(1)


def program(weights: Weights, recipe: LayerRecipe, axes: tuple[int, ...], target: Target) -> ir.Model:
    """(embeddings of a prompt, positions) -> states of all but the last token, and of the last one, read on its own."""
    dimensions = Dimensions(
        width=WIDTH, num_layers=LAYERS, num_heads=HEADS, num_key_heads=KEY_HEADS, head_width=HEAD, inner=INNER,
        vocabulary=1, inverse_frequencies=FREQUENCIES, rotary_axes=axes, recipe=recipe,
    )  # fmt: skip
    source = SimpleNamespace(
        weight=lambda role: weights.role(role, dimensions), dimensions=dimensions, low_rank=nothing_added
    )
    decoder = Decoder(dimensions, dialect_of(source, target))
    g, count = Graph(decoder.dialect.floats), TOKENS - 1
    given = g.input("embeds", ir.DataType.FLOAT, (TOKENS, WIDTH))
    embeds = g.to_floats(given)
    position = g.input("position", ir.DataType.INT64, (max(axes) + 1, TOKENS))
    mask = decoder.mask(g, g.value(np.tri(count, dtype=bool)))
    keys: list[tuple[ir.Value, ir.Value]] = []

    def first(key: ir.Value, value: ir.Value) -> Seen:
        keys.append((key, value))
        return Seen((Segment(key, value, mask),))

    rotation = decoder.prompt_rotation(g, g.op("Slice", position, [0], [count], [1]))
    hidden = Hidden(g.op("Slice", embeds, [0], [count], [0]))
    for number in range(LAYERS):
        hidden = decoder.layer(g, number, hidden, rotation, first)
    prompt = hidden.norm(g, decoder.dialect, "norm")

    def then(layer: int, key: ir.Value, value: ir.Value) -> Seen:
        behind = (g.op("Concat", before, new, axis=2) for before, new in zip(keys[layer], (key, value), strict=True))
        return Seen((Segment(*behind),))

    last = g.op("Slice", g.op("Slice", position, [0], [1], [0]), [count], [TOKENS], [1])
    rotation = decoder.head_rotation(g, g.op("Reshape", last, [1]))
    hidden = Hidden(g.op("Slice", embeds, [count], [TOKENS], [0]))
    for number in range(LAYERS):
        hidden = decoder.layer(g, number, hidden, rotation, lambda *new, at=number: then(at, *new), by_token=True)
    token = hidden.norm(g, decoder.dialect, "norm")
    outputs = [
        g.typed(g.to_float32(value), ir.DataType.FLOAT, (n, WIDTH)) for value, n in ((prompt, count), (token, 1))
    ]
    return g.model([given, position], outputs, "layers", {})


def compare(weights: Weights, name: str, target: Target, tolerance: float) -> None:
    """The program of a recipe against torch, both on the same tokens."""
    recipe, axes = RECIPES[name]
    random = np.random.default_rng(1)
    model = program(weights, recipe, axes, target)
    embeds = random.normal(size=(TOKENS, WIDTH)).astype(np.float32)
    position = np.sort(random.integers(0, 20, (max(axes) + 1, TOKENS)), axis=1)
    position[:, -1] = position[:, -1].max()  # spoken tokens count on along all axes at once
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    out = np.concatenate(session.run(None, {"embeds": embeds, "position": position}))
    reference = Reference(rounded(weights, target), recipe, axes)
    expected = reference.run(torch.from_numpy(embeds).double(), torch.from_numpy(position))
    np.testing.assert_allclose(out, expected.numpy(), atol=tolerance)


def rounded(weights: Weights, target: Target) -> Weights:
    """The same weights, as the integers of a target hold them."""
    made, scheme = copy.copy(weights), target.scheme_of("layers")
    made.made = dict(weights.made)
    for name, weight in weights.made.items():
        held = quantized(weight, scheme, target.int4.block, name) if scheme and weight.shape[1:] else None
        if held is not None and "norm" not in name:
            made.made[name] = held.dequantize()
    return made


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("dialect", ["ort", "standard"])
def test_layers_built_from_a_recipe_are_those_of_torch(name, dialect):
    compare(Weights(RECIPES[name][0]), name, Target(dialect=dialect), tolerance=2e-5)


@pytest.mark.parametrize("name", [name for name, (recipe, _) in RECIPES.items() if recipe.head_norm])
@pytest.mark.parametrize("dialect", ["ort", "standard"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 2e-2), ("int4", 2e-5)])
def test_heads_with_norms_in_every_number_type(name, dialect, precision, tolerance):
    """A norm hides what its matrix is multiplied with, but not how wide its numbers are."""
    target = Target(dialect=dialect, precision=precision, int4=Int4(block=32, accuracy_level=0))
    compare(Weights(RECIPES[name][0]), name, target, tolerance)
