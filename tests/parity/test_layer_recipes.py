"""Layers that a program builds from a recipe are those of plain torch, in both dialects: a prompt at once, then a token
on its keys."""

from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch.nn import functional

from lrkit.export.graph.layers import Decoder, Hidden, Seen, Segment
from lrkit.export.graph.nodes import Graph
from lrkit.export.targets.target import Target
from lrkit.export.weights.layer_recipe import Dimensions, LayerRecipe, Norm
from lrkit.export.weights.packing import packed
from tests.programs import dialect_of

WIDTH, HEADS, KEY_HEADS, HEAD, INNER, LAYERS, TOKENS = 24, 4, 2, 8, 40, 2, 7
FREQUENCIES = (1.0, 0.5, 0.1, 0.0)
RECIPES = {
    "as in Qwen2": (LayerRecipe(Norm("rms", 1e-6), frozenset({"qkv"})), (0, 1, 2, 0)),
    "as in Llama": (LayerRecipe(Norm("rms", 1e-5)), (0, 0, 0, 0)),
    "all biases, plain, layer norms": (
        LayerRecipe(Norm("layer", 1e-3), frozenset({"qkv", "out", "mlp"}), gated=False, activation="gelu_tanh"),
        (0, 0, 0, 0),
    ),
    "gated with biases, norms on both sides, neighbours turn": (
        LayerRecipe(
            Norm("rms", 1e-6), frozenset({"mlp"}), frozenset({"before", "after"}), activation="gelu",
            rotary_pairs="neighbours",
        ),
        (1, 0, 1, 0),
    ),
    "norms behind, layer norms, neighbours turn": (
        LayerRecipe(
            Norm("layer", 1e-5), frozenset({"out"}), frozenset({"after"}), gated=False, activation="silu",
            rotary_pairs="neighbours",
        ),
        (0, 0, 0, 0),
    ),
}  # fmt: skip


class Weights:
    """Random weights of any part, by the names of reader.py."""

    SHAPES = {
        "q": (HEADS * HEAD, WIDTH), "k": (KEY_HEADS * HEAD, WIDTH), "v": (KEY_HEADS * HEAD, WIDTH),
        "out": (WIDTH, HEADS * HEAD), "gate": (INNER, WIDTH), "up": (INNER, WIDTH), "down": (WIDTH, INNER),
    }  # fmt: skip

    def __init__(self) -> None:
        self.made: dict[str, np.ndarray] = {}
        self.random = np.random.default_rng(0)

    def part(self, layer: object, part: str, kind: str) -> np.ndarray:
        shape = self.SHAPES.get(part, (WIDTH,))
        size = shape if kind == "weight" else shape[:1]
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
        weight, epsilon = self.tensor(layer, part, "weight"), self.recipe.norm.epsilon
        if self.recipe.norm.kind == "layer":
            return functional.layer_norm(x, x.shape[-1:], weight, self.tensor(layer, part, "bias"), epsilon)
        return functional.rms_norm(x, x.shape[-1:], weight, epsilon)

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
    source = SimpleNamespace(weight=lambda role: weights.role(role, dimensions), dimensions=dimensions)
    decoder = Decoder(dimensions, dialect_of(source, target))
    g, count = Graph(), TOKENS - 1
    embeds = g.input("embeds", ir.DataType.FLOAT, (TOKENS, WIDTH))
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
    outputs = [g.typed(value, ir.DataType.FLOAT, (n, WIDTH)) for value, n in ((prompt, count), (token, 1))]
    return g.model([embeds, position], outputs, "layers", {})


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("dialect", ["ort", "tensorrt"])
def test_layers_built_from_a_recipe_are_those_of_torch(name, dialect):
    recipe, axes = RECIPES[name]
    weights, random = Weights(), np.random.default_rng(1)
    model = program(weights, recipe, axes, Target(dialect=dialect))
    embeds = random.normal(size=(TOKENS, WIDTH)).astype(np.float32)
    position = np.sort(random.integers(0, 20, (max(axes) + 1, TOKENS)), axis=1)
    position[:, -1] = position[:, -1].max()  # spoken tokens count on along all axes at once
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    out = np.concatenate(session.run(None, {"embeds": embeds, "position": position}))
    expected = Reference(weights, recipe, axes).run(torch.from_numpy(embeds).double(), torch.from_numpy(position))
    np.testing.assert_allclose(out, expected.numpy(), atol=2e-5)
