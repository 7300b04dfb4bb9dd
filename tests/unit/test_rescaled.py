"""Columns made larger before rounding (AWQ): the model computes what it did, and columns with large inputs err less."""

import numpy as np
import pytest

from lrkit.contract.schemes import SCHEMES
from lrkit.export.calibration.made import Rounding, round_matrices, store, stored
from lrkit.export.calibration.matrices import Matrix
from lrkit.export.calibration.scaling import column_factors
from lrkit.export.weights.layer_recipe import LayerRecipe, Norm
from lrkit.export.weights.low_rank import LowRank
from lrkit.export.weights.quantizers.quantizer import Calibration, quantized
from lrkit.export.weights.rescaled import can_rescale, inverse, rescaled, rescaled_branch

RECIPE = LayerRecipe(Norm("rms", 1e-6), biases=frozenset({"qkv"}))
DRAWN = np.random.default_rng(0)
WIDTH, INNER = 64, 96


def drawn(*shape: int) -> np.ndarray:
    return DRAWN.standard_normal(shape).astype(np.float32)


WEIGHTS = {
    "0.norm1": drawn(WIDTH), "0.qkv": drawn(128, WIDTH), "0.qkv.bias": drawn(128), "0.out": drawn(WIDTH, WIDTH),
    "0.norm2": drawn(WIDTH), "0.gate_up": drawn(2 * INNER, WIDTH), "0.down": drawn(WIDTH, INNER), "norm": drawn(WIDTH),
}  # fmt: skip


def layer(weights: dict[str, np.ndarray], x: np.ndarray) -> list[np.ndarray]:
    """What a layer's matrices give of normed states (N, WIDTH)."""
    gate, up = np.split((x * weights["0.norm2"]) @ weights["0.gate_up"].T, 2, axis=1)
    qkv = (x * weights["0.norm1"]) @ weights["0.qkv"].T + weights["0.qkv.bias"]
    return [qkv, (gate / (1 + np.exp(-gate)) * up) @ weights["0.down"].T]


def test_a_rescaled_layer_computes_what_it_did() -> None:
    factors = {"0.qkv": np.exp(drawn(WIDTH)), "0.gate_up": np.exp(drawn(WIDTH)), "0.down": np.exp(drawn(INNER))}
    other = {role: rescaled(role, value, factors) for role, value in WEIGHTS.items()}
    x = drawn(5, WIDTH)
    for before, after in zip(layer(WEIGHTS, x), layer(other, x), strict=True):
        np.testing.assert_allclose(after, before, rtol=2e-4, atol=2e-4)
    assert not np.allclose(other["0.down"], WEIGHTS["0.down"])
    for role in ("0.out", "norm"):
        np.testing.assert_array_equal(other[role], WEIGHTS[role])
    for role, value in other.items():
        np.testing.assert_allclose(rescaled(role, value, inverse(factors)), WEIGHTS[role], rtol=1e-5)


def test_gate_and_up_apart_are_the_rows_of_both() -> None:
    factors = {"0.gate_up": np.exp(drawn(WIDTH)), "0.down": np.exp(drawn(INNER))}
    both = rescaled("0.gate_up", WEIGHTS["0.gate_up"], factors)
    for name, rows in (("gate", slice(INNER)), ("up", slice(INNER, None))):
        np.testing.assert_array_equal(rescaled(f"0.{name}", WEIGHTS["0.gate_up"][rows], factors), both[rows])


def test_what_an_adapter_adds_goes_along_with_its_matrix() -> None:
    """A branch that is kept apart reads what the matrix reads: it would be off by the same factors otherwise."""
    factors = {"0.gate_up": np.exp(drawn(WIDTH)), "0.down": np.exp(drawn(INNER))}
    for role in ("0.gate_up", "0.down", "0.up", "0.out"):
        rows, width = WEIGHTS["0.gate_up"][INNER:].shape if role == "0.up" else WEIGHTS[role].shape
        branch = LowRank(drawn(4, width), drawn(rows, 4))
        other = rescaled_branch(role, branch, factors)
        assert other is not None
        whole = rescaled(role, branch.up @ branch.down, factors)
        np.testing.assert_allclose(other.up @ other.down, whole, rtol=1e-4, atol=1e-5)
    assert rescaled_branch("0.down", None, factors) is None


@pytest.mark.parametrize(
    ("role", "recipe", "can"),
    [
        ("0.qkv", RECIPE, True), ("0.out", RECIPE, False), ("3.down", RECIPE, True), ("head", RECIPE, False),
        ("0.down", LayerRecipe(Norm("layer", 1e-5), gated=False), False),
        ("0.up", LayerRecipe(Norm("layer", 1e-5), gated=False), True),
        ("0.qkv", LayerRecipe(Norm("rms", 1e-5), norm_places=frozenset({"after"})), False),
    ],
)  # fmt: skip
def test_only_what_something_in_front_can_take_over_is_rescaled(role: str, recipe: LayerRecipe, can: bool) -> None:
    assert can_rescale(role, recipe) is can


def inputs(width: int, tokens: int = 256) -> np.ndarray:
    """Of which some columns are thirty times the others, as in published models."""
    size = np.where(np.arange(width) % 16 == 3, 30.0, 1.0)
    return (drawn(tokens, width) * size).astype(np.float32)


def test_products_err_less_with_the_factors_that_are_found() -> None:
    x, weight, scheme = inputs(WIDTH), WEIGHTS["0.qkv"], SCHEMES["int4"]
    factors = column_factors(weight, Calibration.of(x), scheme, 32)
    plain, scaled = (
        quantized(weight * one, scheme, 32, "0.qkv").dequantize() / one for one in (np.ones(WIDTH, np.float32), factors)
    )
    lost = [float(((x @ (held - weight).T) ** 2).sum()) for held in (plain, scaled)]
    assert lost[1] < 0.5 * lost[0]
    assert (factors > 0).all() and factors[3] > 2 * factors[4]


def test_inputs_that_are_all_nothing_leave_columns_as_they_are() -> None:
    nothing = Calibration.of(np.zeros((8, WIDTH), np.float32))
    np.testing.assert_array_equal(column_factors(WEIGHTS["0.qkv"], nothing, SCHEMES["int4"], 32), np.ones(WIDTH))


def test_what_a_layer_becomes_is_kept_and_found_again(tmp_path) -> None:
    seen = {role: Calibration.of(inputs(WEIGHTS[role].shape[1])) for role in ("0.qkv", "0.out", "0.gate_up", "0.down")}
    matrices = [Matrix(role, "layers", None, WEIGHTS[role].shape[1]) for role in seen]  # pyright: ignore[reportArgumentType]
    how = Rounding(lambda role, part: SCHEMES["int4-offsets"], 32, "awq", RECIPE)
    made = round_matrices(how, matrices, WEIGHTS.__getitem__, seen.__getitem__)
    assert set(made.factors) == {"0.qkv", "0.gate_up", "0.down"} and set(made.integers) == set(seen)
    store(tmp_path / "0.safetensors", made)
    again = stored(tmp_path / "0.safetensors")
    assert again is not None and stored(tmp_path / "1.safetensors") is None
    for role, one in made.integers.items():
        np.testing.assert_array_equal(one.dequantize(), again.integers[role].dequantize())
    np.testing.assert_array_equal(made.factors["0.down"], again.factors["0.down"])
    x = inputs(WIDTH)
    whole = x @ WEIGHTS["0.out"].T
    held = x @ rescaled("0.out", made.integers["0.out"].dequantize(), inverse(made.factors)).T
    assert np.linalg.norm(held - whole) < 0.1 * np.linalg.norm(whole)
