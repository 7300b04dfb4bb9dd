"""Schemes, one row each: how a program holds its weights, and how near to torch it then has to be. Torch-free.

A target calls it `precision`, and bundle.json records its name for each program. Whoever needs to know more reads the
row: the writer of matrices (bits, encodings), the comparison with torch (tolerance), the runtime (encodings) and the
ceilings of a profile (bytes per weight).

A new scheme is a row here and, where its integers are made in a new way, a file in lrkit/export/weights/quantizers/.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from lrkit.errors import RowError, UnknownNameError, did_you_mean

FLOAT = "float"
"""What a target says of a part whose matrices stay in the number type that the program computes in."""
SAME = "same"
"""What a target says of a part that may have matrices of its own, where it has none."""
MANY = 5
"""Tokens of a chunk from which on arithmetic binds its products, not memory, so that it reads `chunks`."""
Floats = Literal["fp32", "fp16"]
Encoding = Literal["MatMulNBits", "MatMulIntegerToFloat", "DequantizeLinear"]
"""Operator that reads integers: one of ONNX Runtime's own, or the standard one."""
Method = Literal["rtn", "search", "gptq", "awq"]
"""How integers are chosen. rtn: each weight to the nearest; search: with the scales of the least error; gptq: each
takes over the error of those before it, by what the matrix is multiplied with; awq: columns with large inputs are made
larger first."""
CALIBRATED: tuple[Method, ...] = ("gptq", "awq")
"""Methods that need to know what a matrix is multiplied with."""
Bounds = Mapping[str, float]
"""numbers: largest relative error of logits and latent states; agreement: share of the samples without a difference;
accuracy_drop: right answers lost, as a share of all answers."""


@dataclass(frozen=True)
class Tolerance:
    """How far a program may be from torch."""

    bounds: Bounds
    """Always. Without `numbers`, rounding makes another model, whose right answers are counted."""
    reason: str
    """Where the bounds come from; kept in the bundle."""
    every_choice: bool = False
    """Whether `agreement` is about every choice, not of spoken tokens alone: a near tie may replay or route another
    token without changing an answer."""
    unanswered: Bounds = field(default_factory=dict[str, float])
    """Instead of right answers, where torch has next to none to lose."""
    held: Bounds = field(default_factory=dict[str, float])
    """Instead of right answers, where torch holds the values that the integers stand for."""
    held_reason: str = ""
    """Where those come from; kept in the bundle."""
    chosen_otherwise: float = 0.02
    """Of a tower that chooses visual tokens: those of a picture that may be chosen otherwise than by torch, as a share.
    One may always be."""
    chosen_reason: str = (
        "a choice between near equals falls by the order of float32 sums; torch answers from the program's choices"
    )
    """Where that comes from; kept in the bundle. Through random weights, an even picture of 1,024 tokens had 1%, and a
    tower in float16, which is wrong, 7%."""


@dataclass(frozen=True)
class Scheme:
    """One way of holding weights. Of integers, value = (integer - offset) * scale: zero stays zero."""

    name: str
    bits: int
    """Of a weight."""
    tolerance: Tolerance
    computes: Floats = "fp32"
    """What the program computes in, where the target does not say."""
    quantizer: str | None = None
    """What makes the integers, as "module:class" (lrkit/export/weights/quantizers/quantizer.py); None: floats."""
    blocks: tuple[int, ...] = ()
    """Weights per scale along the input that a target may ask for, the largest first, which is the default."""
    by_row: bool = False
    """One scale per row of a matrix (out, in), whatever `blocks` says of other parts. The operator rounds activations
    to 8 bits too, each token by its own largest, where the dialect has one for that."""
    offsets: bool = False
    """Whether each block has an integer of its own that stands for zero. TensorRT takes none but 0."""
    floats: bool = False
    """Whether its numbers are floats of so few bits, and no integers."""
    gpus: int = 0
    """Compute capability from which on GPUs multiply by them, as 89; TensorRT refuses older ones. 0: all."""
    on_cpu: bool = True
    """Whether some engine reads them on a CPU. Else no program can be compared with torch before it is on its GPU."""
    least: int = 1
    """A matrix with fewer rows or columns stays float: what is done around its product would cost more than is
    saved."""
    encodings: Mapping[str, Encoding] = field(default_factory=dict[str, Encoding])
    """Dialect -> the operator that reads the integers there; a dialect without one cannot hold them."""
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    """Part of the model -> schemes (or FLOAT) that a target may choose for its matrices, the default first. A part
    that is not named stays float, and so does the first matrix of the vision tower."""

    def __post_init__(self) -> None:
        """Raises `RowError` where a row of integers cannot be written."""
        if self.integers and (self.bits not in (4, 8) or not self.blocks):
            raise RowError(
                f"precision {self.name} has {self.bits} bits and blocks {self.blocks}; programs hold integers of 4 "
                "or 8 bits, with at least one number of weights per scale: correct the row"
            )

    @property
    def integers(self) -> bool:
        """Whether weights become integers."""
        return self.quantizer is not None

    def bytes_per_weight(self, block: int | None = None) -> float:
        """As stored, with a float32 scale, and an offset, for each `block` weights where they are integers."""
        if not self.integers or self.by_row:
            return self.bits / 8
        if self.floats:  # a scale has eight bits
            return self.bits / 8 + 1 / (block or self.blocks[0])
        return self.bits / 8 + (4 + self.offsets * self.bits / 8) / (block or self.blocks[0])

    def encoding(self, dialect: str) -> Encoding | None:
        """The operator that reads its integers in a dialect; None where there is none, or no integers."""
        return self.encodings.get(dialect)


_ROUNDED = "lrkit.export.weights.quantizers.rounded:Rounded"
_BOTH: Mapping[str, Encoding] = {"ort": "MatMulNBits", "standard": "DequantizeLinear"}
_UNANSWERED = {"numbers": 0.25, "agreement": 0.5}
"""The shipped model's logits are 0.12 off at most in int4; those of two models that have nothing in common are 1 off or
more."""
_HELD = {"numbers": 0.1}
"""Activations are rounded to int8, which flips near ties."""
_HELD_REASON = "torch held the values of the integers: numbers within a tenth of the largest"
_FOUR_BITS = Tolerance(
    {"accuracy_drop": 0.05},
    "4-bit weights are another model: numbers are reported, only the loss of right answers is bounded",
    unanswered=_UNANSWERED,
    held=_HELD,
    held_reason=_HELD_REASON,
)
_EIGHT_BITS = Tolerance(
    {"accuracy_drop": 0.02},
    "8-bit weights are another model: numbers are reported, only the loss of right answers is bounded",
    # The shipped model in int8, 200 pictures, activations rounded to int8: numbers 0.03 off at most, 99% of the answers
    # the same, none lost.
    unanswered={"numbers": 0.1, "agreement": 0.9},
    held=_HELD,
    held_reason=_HELD_REASON,
)

_ROWS = (
    Scheme(
        name="fp32",
        bits=32,
        tolerance=Tolerance(
            {"numbers": 1e-4, "agreement": 1.0, "accuracy_drop": 0.0},
            "same float32 operations in another order: numbers within 1e-4 of the largest, every choice the same",
            every_choice=True,
        ),
    ),
    Scheme(
        name="fp16",
        bits=16,
        computes="fp16",
        tolerance=Tolerance(
            {"numbers": 5e-2, "agreement": 0.9, "accuracy_drop": 0.02},
            "11 significant bits through every layer; a choice between near equals may fall the other way",
        ),
    ),
    Scheme(
        name="int4",
        bits=4,
        quantizer=_ROUNDED,
        blocks=(128, 64, 32),
        encodings=_BOTH,
        parts={
            "layers": ("int4",), "head": ("int4", "int8", FLOAT), "embedding": ("int8", "int4", FLOAT),
            "vision": (FLOAT, "int4", "w8a8"), "chunks": (SAME, "w8a8"),
        },
        tolerance=_FOUR_BITS,
    ),
    Scheme(
        name="int8",
        bits=8,
        quantizer=_ROUNDED,
        blocks=(128, 64, 32),
        encodings=_BOTH,
        parts={
            "layers": ("int8",), "head": ("int8", "int4", FLOAT), "embedding": ("int8", FLOAT),
            "vision": (FLOAT, "int8", "int4", "w8a8"), "chunks": (SAME, "w8a8"),
        },
        tolerance=_EIGHT_BITS,
    ),
    Scheme(
        name="w8a8",
        bits=8,
        quantizer="lrkit.export.weights.quantizers.rounded:RoundedRows",
        by_row=True,
        least=512,
        blocks=(128, 64, 32),
        encodings={"ort": "MatMulIntegerToFloat", "standard": "DequantizeLinear"},
        parts={
            "layers": ("w8a8",), "head": ("int8", "int4", FLOAT), "embedding": ("int8", FLOAT),
            "vision": ("w8a8", FLOAT), "chunks": (SAME,),
        },
        tolerance=_EIGHT_BITS,
    ),
    Scheme(
        name="int4-offsets",
        bits=4,
        quantizer="lrkit.export.weights.quantizers.rounded:RoundedOffsets",
        offsets=True,
        blocks=(128, 64, 32),
        encodings=_BOTH,
        parts={
            "layers": ("int4-offsets",), "head": ("int4-offsets", "int4", "int8", FLOAT),
            "embedding": ("int8", "int4", FLOAT),
            "vision": (FLOAT, "int4", "w8a8"), "chunks": (SAME, "w8a8"),
        },
        tolerance=_FOUR_BITS,
    ),
    Scheme(
        name="fp8",
        bits=8,
        quantizer="lrkit.export.weights.quantizers.small_floats:Float8Rows",
        floats=True,
        gpus=89,
        by_row=True,
        blocks=(128, 64, 32),
        encodings={"standard": "DequantizeLinear"},
        parts={
            "layers": ("fp8",), "head": ("fp8", "int8", FLOAT), "embedding": ("int8", FLOAT), "vision": (FLOAT, "fp8"),
            "chunks": (SAME,),
        },
        tolerance=replace(
            _EIGHT_BITS,
            reason="weights of 4 significant bits are another model: numbers are reported, only the loss of right "
            "answers is bounded",
            unanswered={"numbers": 0.15, "agreement": 0.9},
        ),
    ),
    Scheme(
        name="nvfp4",
        bits=4,
        quantizer="lrkit.export.weights.quantizers.small_floats:Float4Blocks",
        floats=True,
        gpus=100,
        on_cpu=False,
        blocks=(16,),
        encodings={"standard": "DequantizeLinear"},
        parts={
            "layers": ("nvfp4",), "head": ("fp8", "nvfp4", "int8", FLOAT), "embedding": ("int8", FLOAT),
            "vision": (FLOAT, "fp8"), "chunks": (SAME,),
        },
        tolerance=_FOUR_BITS,
    ),
)  # fmt: skip

_ROUNDED_PRODUCTS: Mapping[str, Bounds] = {
    "f16": {"numbers": 5e-2, "agreement": 0.9, "accuracy_drop": 0.02},
    "bf16": {"numbers": 0.2, "agreement": 0.9, "accuracy_drop": 0.02},
}
"""Number type of products, by OpenVINO's names -> bounds. The shipped model in bf16: numbers 0.01 off at most, all
answers the same."""

SCHEMES: Mapping[str, Scheme] = {scheme.name: scheme for scheme in _ROWS}
"""Name -> row."""


def scheme_named(name: str) -> Scheme:
    """The row of that name.

    Raises:
        UnknownNameError: there is none; the message lists the rows.
    """
    if name not in SCHEMES:
        raise UnknownNameError(
            f"unknown precision {name[:40]!r}; known: {', '.join(SCHEMES)}{did_you_mean(name[:40], SCHEMES)}"
        )
    return SCHEMES[name]


def chosen(target: Mapping[str, Any], scheme: Scheme, name: str) -> Any:
    """What the target in a bundle, which may hold anything, chose of a scheme of integers: `block`, or the scheme (or
    FLOAT) of a part. The default where it chose nothing, or nothing that there is."""
    allowed: tuple[Any, ...] = scheme.blocks if name == "block" else scheme.parts.get(name, (FLOAT,))
    section = target.get("int4")
    value = cast(dict[str, Any], section).get(name) if isinstance(section, dict) else None
    return value if value in allowed else allowed[0]


def computed_in(precision: object, activations: object = None) -> str:
    """The number type that a program computes in, by what its target says, which may hold anything in a bundle."""
    known = SCHEMES.get(precision) if isinstance(precision, str) else None
    return str(activations or (known.computes if known else "fp32"))


def tolerance_in(scheme: Scheme, products: str | None) -> Tolerance:
    """How far a program may be from torch where the engine that it is made for rounds products to the number type
    `products` (f16, bf16); the scheme's own bounds where it rounds nothing (f32, None)."""
    own = scheme.tolerance
    bounds = _ROUNDED_PRODUCTS.get(products or "")
    if bounds is None:
        return own
    reason = f"products are rounded to {products}, so a choice between near equals may fall the other way"
    if "numbers" in own.bounds:
        wider = {name: (max, min)[name == "agreement"](value, own.bounds[name]) for name, value in bounds.items()}
        return replace(own, bounds=wider, reason=reason, every_choice=False)
    held = {**own.held, "numbers": max(own.held.get("numbers", 0.0), bounds["numbers"])}
    return replace(own, held=held, held_reason=f"{own.held_reason}; {reason}")
