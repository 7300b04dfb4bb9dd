"""Cases of the rules on quantized weights and on the GPUs that have their types."""

from tests.preflight.make import Case
from tests.preflight.structure import GO, loop

BLOCKS = "[dq] d = DequantizeLinear<axis=0, block_size=32>(w, s)"


def product(constants: str, dequantize: str = BLOCKS, x: str = "float", width: int = 64) -> str:
    """x times a dequantized weight of 8 columns."""
    return f"({x}[2,{width}] x) => ({x}[2,8] y) <{constants}> {{ {dequantize} [product] y = MatMul(x, d) }}"


def branches(then: str, other: str, constants: str, outer: str = "") -> str:
    """An If, `choose`, of two branches that give a and b."""
    return (
        f"(float[2,64] x, bool c) => (float[2,8] y) <{constants}> {{ {outer} [choose] y = If(c) <"
        f"then_branch = t () => (float[2,8] a) {{ {then} }}, else_branch = e () => (float[2,8] b) {{ {other} }}> }}"
    )


W4 = "int4[64,8] w, float[2,8] s"
ROWS = "(float16[16,64] x, float16[1,64] first, int64 n, bool c) => (float16[16,64] z, float16[1,64] y)"
SHARED = (
    ROWS + " <int4[64,64] w, float16[2,64] s{more}> {{ {read} [prompt] z = MatMul(x, d) "
    "[step] y = Loop(n, c, first) <body = b (int64 i, bool on, float16[1,64] h) => (bool go, float16[1,64] new_h) "
    "{{ [go] go = Identity(on) [dq2] d2 = DequantizeLinear<axis=0, block_size=32>({w}, {s}) "
    "[product] new_h = MatMul(h, d2) }}> }}"
)
FP4 = (
    "(float16[2,64] x) => (float16[2,8] y) <float4e2m1[64,8] w, float8e4m3fn[4,8] s, float16 g> "
    "{ [scale] t = DequantizeLinear(s, g) [dq] d = DequantizeLinear<axis=0, block_size=16>(w, t) "
    "[product] y = MatMul(x, d) }"
)

CASES = {
    "quantized-zero-point": Case(
        bad=product("int8[64,8] w, float[8] s, int8[8] point", "[dq] d = DequantizeLinear<axis=1>(w, s, point)"),
        good=product("int8[64,8] w, float[8] s, int8[8] zero", "[dq] d = DequantizeLinear<axis=1>(w, s, zero)"),
        at="dq",
    ),
    "quantized-uneven-blocks": Case(
        bad=product("int4[256,8] w, float[3,8] s", BLOCKS.replace("32", "96"), width=256),
        good=product("int4[256,8] w, float[8,8] s", width=256),
        at="dq",
        others=("quantized-block-size",),
    ),
    "quantized-block-axis": Case(
        bad="(float[2,4,64] x) => (float[2,4,8] y) <int4[2,64,8] w, float[1,64,8] s> "
        "{ [dq] d = DequantizeLinear<axis=0, block_size=2>(w, s) [product] y = MatMul(x, d) }",
        good="(float[2,4,64] x) => (float[2,4,8] y) <int4[2,64,8] w, float[2,2,8] s> "
        "{ [dq] d = DequantizeLinear<axis=1, block_size=32>(w, s) [product] y = MatMul(x, d) }",
        at="dq",
    ),
    "quantized-block-size": Case(
        bad=product("int4[64,8] w, float[8,8] s", BLOCKS.replace("32", "8")),
        good=product(W4),
        at="dq",
    ),
    "quantized-scale-type": Case(
        bad=product("int4[64,8] w, float16[2,8] s"),
        good=product("int4[64,8] w, float16[2,8] s", x="float16"),
        at="product",
    ),
    "quantized-odd-volume": Case(
        bad="(float[2,9] x) => (float[2,7] y) <int4[9,7] w, float s> "
        "{ [dq] d = DequantizeLinear(w, s) [product] y = MatMul(x, d) }",
        good="(float[2,9] x) => (float[2,8] y) <int4[9,8] w, float s> "
        "{ [dq] d = DequantizeLinear(w, s) [product] y = MatMul(x, d) }",
        at="w",
    ),
    "quantized-elsewhere": Case(
        bad="(int64[3] i) => (float[3,4] y) <int8[9,4] w> { [rows] r = Gather(w, i) [cast] y = Cast<to=1>(r) }",
        good="(int64[3] i) => (float[3,4] y) <int8[9,4] w, float[9] s> "
        "{ [dq] d = DequantizeLinear<axis=0>(w, s) [rows] y = Gather(d, i) }",
        at="rows",
    ),
    "quantized-uint8": Case(
        bad=product("uint8[64,8] w, float[8] s", "[dq] d = DequantizeLinear<axis=1>(w, s)"),
        good=product("int8[64,8] w, float[8] s", "[dq] d = DequantizeLinear<axis=1>(w, s)"),
        at="dq",
    ),
    "if-quantized-shared": Case(
        bad=branches(
            f"{BLOCKS} [one] a = MatMul(x, d)",
            "[dq2] e = DequantizeLinear<axis=0, block_size=32>(w, s) [two] f = MatMul(x, e) [minus] b = Neg(f)",
            W4,
        ),
        good=branches("[one] a = MatMul(x, d)", "[two] f = MatMul(x, d) [minus] b = Neg(f)", W4, outer=BLOCKS),
        at="choose.then > dq",
    ),
    "int4-shared-by-loop": Case(
        bad=SHARED.format(more="", read=BLOCKS, w="w", s="s"),
        good=SHARED.format(more=", int4[64,64] twin, float16[2,64] twin_s", read=BLOCKS, w="twin", s="twin_s"),
        at="prompt",
        warns="",
    ),
    "int4-shared-side-by-side": Case(
        bad="(float16[2,64] x, float16[1,64] v) => (float16[2,8] y, float16[1,8] z) <int4[64,8] w, float16[2,8] s> "
        f"{{ {BLOCKS} [rows] y = MatMul(x, d) [row] z = MatMul(v, d) }}",
        good="(float16[2,64] x) => (float16[2,64] y) <int4[64,64] w, float16[2,64] s> "
        f"{{ {BLOCKS} [rows] r = MatMul(x, d) [next] y = MatMul(r, d) }}",
        at="rows",
        crashes=True,
    ),
    "arch-int4": Case(
        bad=product("int4[64,8] w, float16[2,8] s", x="float16"),
        good=product("int8[64,8] w, float16[8] s", "[dq] d = DequantizeLinear<axis=1>(w, s)", x="float16"),
        at="w",
        archs=("sm75", "sm89"),
        good_archs=("sm80", "sm86", "sm89", "sm120"),
    ),
    "arch-fp8": Case(
        bad=product("float8e4m3fn[64,8] w, float16 s", "[dq] d = DequantizeLinear(w, s)", x="float16"),
        good=product("int8[64,8] w, float16[8] s", "[dq] d = DequantizeLinear<axis=1>(w, s)", x="float16"),
        at="w",
        archs=("sm86",),
        good_archs=("sm89", "sm120"),
    ),
    "arch-fp4": Case(
        bad=FP4,
        good=product("int4[64,8] w, float16[2,8] s", x="float16"),
        at="w",
        opset=23,
        archs=("sm89",),
        good_archs=("sm120",),
    ),
}

LOOP4 = "int4[64,64] w, float[2,64] s"
NBITS = f"{GO} [product] new_h = com.microsoft.MatMulNBits<K=64, N=64, bits=4, block_size=32, accuracy_level={{level}}>"
NBITS += "(h, w, s)"
INSIDE = f"{GO} {BLOCKS} [product] new_h = MatMul(h, d)"
ORT = {
    "ort-domain": Case(
        bad="(float[4] x) => (float[4] y) { [plugin] y = trt.TRT_Swish(x) }",
        good="(float[4] x) => (float[4] y) { [quick] y = com.microsoft.QuickGelu(x) }",
        at="plugin",
    ),
    "ort-floor": Case(
        bad="(float[1,2,4,64] q) => (float[1,2,4,64] y) { [attend] y = Attention(q, q, q) }",
        good="(float[1,2,4,64] q) => (float[1,2,4,64] y) { [soft] y = Softmax(q) }",
        at="attend",
        opset=24,
    ),
    "ort-bf16": Case(
        bad="(bfloat16[2,8] x, bfloat16[8,4] w) => (bfloat16[2,4] y) { [product] y = MatMul(x, w) }",
        good="(bfloat16[2,8] x) => (float[2,8] y) { [wide] y = Cast<to=1>(x) }",
        at="product",
    ),
    "ort-where-bool": Case(
        bad="(bool[4] c, bool[4] x) => (bool[4] y) { [choose] y = Where(c, x, c) }",
        good="(bool[4] c, float[4] x) => (float[4] y) { [choose] y = Where(c, x, x) }",
        at="choose",
    ),
    "ort-fp4": Case(bad=FP4, good=product("int4[64,8] w, float16[2,8] s", x="float16"), at="dq", opset=23),
    "ort-scale-type": Case(
        bad=product("int4[64,8] w, float16[2,8] s"),
        good=product("int4[64,8] w, float16[2,8] s", x="float16"),
        at="product",
        others=("ort-int4-rounds-activations",),
    ),
    "ort-int4-outside-body": Case(
        bad=loop("float[2,64]", INSIDE, constants=LOOP4),
        good=loop("float[2,64]", f"{GO} [product] new_h = MatMul(h, d)", constants=LOOP4, outer=BLOCKS),
        at="step > dq",
    ),
    "ort-int4-rounds-activations": Case(
        bad=product(W4),
        good="(float[2,64] x) => (float[2,8] y) <uint8[8,2,16] w, float[16] s> "
        "{ [product] y = com.microsoft.MatMulNBits<K=64, N=8, bits=4, block_size=32, accuracy_level=1>(x, w, s) }",
        at="dq",
    ),
    "ort-int4-not-fused": Case(
        bad="(float[2,64] x) => (float[2,8] y) <int4[8,64] w, float[8,2] s> "
        "{ [dq] d = DequantizeLinear<axis=1, block_size=32>(w, s) [product] y = Gemm<transB=1>(x, d) }",
        good=product(W4),
        at="dq",
    ),
    "ort-int4-float-copy": Case(
        bad=loop("float[2,64]", f"{GO} [product] new_h = MatMul(h, d)", constants=LOOP4, outer=BLOCKS),
        good=loop("float[2,64]", f"{GO} [product] new_h = MatMul(h, w)", constants="float[64,64] w"),
        at="dq",
    ),
    "ort-int4-on-arm": Case(
        bad=loop("float[2,64]", NBITS.format(level=4), constants="uint8[64,2,16] w, float[128] s"),
        good=loop("float[2,64]", NBITS.format(level=1), constants="uint8[64,2,16] w, float[128] s"),
        at="step > product",
    ),
    "ort-opset": Case(
        bad="(float[4] x) => (float[4] y) { [abs] y = Abs(x) }",
        good="(float[4] x) => (float[4] y) { [abs] y = Abs(x) }",
        at="opset 25",
        opset=25,
        good_opset=24,
    ),
}

CASES |= ORT
