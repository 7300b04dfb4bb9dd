"""Cases of the rules on OpenVINO."""

from dataclasses import replace

from tests.preflight import operators, quantized, structure
from tests.preflight.make import Case

TURN = (
    "(float[1,2,3,8] x) => (float[1,2,3,8] y) <float[9,4] c, float[9,4] s, int64[{shape}] p = {{{positions}}}> "
    "{{ [turn] y = com.microsoft.RotaryEmbedding{attributes}(x, p, c, s) }}"
)
EACH = {"shape": "1,3", "positions": "0, 1, 2"}
TURNED = TURN.format(**EACH, attributes="<interleaved=0>")

CASES = {
    "openvino-operator": Case(
        bad="(float[1,2,8,4] c, float[1,2,1,4] u, int64[1] i) => (float[1,2,8,4] y) "
        "{ [put] y = TensorScatter<axis=-2>(c, u, i) }",
        good="(float[8,4] c, float[1,4] u, int64[1,1] i) => (float[8,4] y) { [put] y = ScatterND(c, i, u) }",
        at="put",
        opset=24,
    ),
    "openvino-domain": quantized.CASES["ort-domain"],
    "openvino-rotary-attribute": Case(bad=TURN.format(**EACH, attributes=""), good=TURNED, at="turn"),
    "openvino-rotary-offset": Case(
        bad=TURN.format(shape="1", positions="0", attributes="<interleaved=0>"), good=TURNED, at="turn"
    ),
    "openvino-empty-last-input": operators.CASES["trailing-empty-input"],
    "openvino-dropout": operators.CASES["dropout-training"],
    "openvino-if-rank": structure.CASES["if-rank"],
    "openvino-uneven-blocks": replace(quantized.CASES["quantized-uneven-blocks"], others=()),
    "openvino-scale-type": replace(quantized.CASES["quantized-scale-type"], others=()),
    "openvino-where-bool": quantized.CASES["ort-where-bool"],
    "openvino-int4-rounds-activations": Case(
        bad=quantized.product("int4[64,8] w, float[2,8] s"),
        good=quantized.product("int8[64,8] w, float[8] s", "[dq] d = DequantizeLinear<axis=1>(w, s)"),
        at="dq",
    ),
}
