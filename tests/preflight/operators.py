"""Cases of the rules on operators, attributes, inputs and types."""

from tests.preflight.make import Case

ABS = "(float[2,4] x) => (float[2,4] y) { [abs] y = Abs(x) }"

CASES = {
    "operator-unsupported": Case(
        bad="(float[64] x) => (float[M] y) { [unique] y = Unique(x) }",
        good="(float[64] x) => (float[64] y) { [abs] y = Abs(x) }",
        at="unique",
    ),
    "operator-without-plugin": Case(
        bad="(float16[2,64] x) => (float16[2,8] y) <uint8[8,2,16] w, float16[16] s> "
        "{ [product] y = com.microsoft.MatMulNBits<K=64, N=8, bits=4, block_size=32>(x, w, s) }",
        good="(float16[2,64] x) => (float16[2,8] y) <float16[64,8] w> { [product] y = MatMul(x, w) }",
        at="product",
    ),
    "operator-nonzero": Case(
        bad="(float[2,64] x) => (int64[2,N] y) { [where] y = NonZero(x) }",
        good="(float[2,64] x) => (bool[2,64] y) <float zero> { [where] y = Greater(x, zero) }",
        at="where",
    ),
    "operator-since-11": Case(
        bad="(float[2,4] x) => (float[2,4] y) { [swish] y = Swish(x) }",
        good="(float[2,4] x) => (float[2,4] y) { [s] g = Sigmoid(x) [m] y = Mul(x, g) }",
        at="swish",
        opset=24,
    ),
    "operator-since-10": Case(
        bad="(float[2,4] x) => (float[2,4] y) <float[4] w> { [norm] y = RMSNormalization(x, w) }",
        good="(float[2,4] x) => (float[2,4] y) <float[4] w, float[4] b> { [norm] y = LayerNormalization(x, w, b) }",
        at="norm",
        opset=23,
    ),
    "operator-type": Case(
        bad="(int32[4,4] x) => (int32[4,4] y) { [product] y = MatMul(x, x) }",
        good="(float[4,4] x) => (float[4,4] y) { [product] y = MatMul(x, x) }",
        at="product",
    ),
    "opset-range": Case(bad=ABS, good=ABS, at="opset 25", opset=25, good_opset=24),
    "trailing-empty-input": Case(
        bad='(float[3,3] x) => (float[3,3] y) { [product] y = Gemm(x, x, "") }',
        good="(float[3,3] x) => (float[3,3] y) { [product] y = Gemm(x, x) }",
        at="product",
    ),
    "reduce-axes": Case(
        bad="(float[2,5] x, int64[1] axes) => (float[A,B] y) { [sum] y = ReduceSum(x, axes) }",
        good="(float[2,5] x) => (float[A,B] y) <int64[1] axes> { [copy] a = Identity(axes) [sum] y = ReduceSum(x, a) }",
        at="sum",
    ),
    "softmax-one-axis": Case(
        bad="(float[9] x) => (float[9] y) { [share] y = Softmax<axis=-1>(x) }",
        good="(float[9] x) => (float[9] y) <int64[1] zero> "
        "{ [wide] w = Unsqueeze(x, zero) [share] s = Softmax<axis=-1>(w) [flat] y = Squeeze(s, zero) }",
        at="share",
    ),
    "arg-one-axis": Case(
        bad="(float[9] x) => (int64[1] y) { [best] y = ArgMax(x) }",
        good="(float[9] x) => (float[1] v, int64[1] y) <int64[1] k> { [best] v, y = TopK(x, k) }",
        at="best",
    ),
    "scalar-input": Case(
        bad="(float x) => (float y) { [most] y = ReduceMax(x) }",
        good="(float[1] x) => (float[1] y) { [most] y = ReduceMax(x) }",
        at="most",
    ),
    "squeeze-axes": Case(
        bad="(float[3,1] x, int64[1] axes) => (float[N] y) { [squeeze] y = Squeeze(x, axes) }",
        good="(float[3,1] x) => (float[3] y) <int64[1] a> { [minus] axes = Neg(a) [squeeze] y = Squeeze(x, axes) }",
        at="squeeze",
    ),
    "onehot-depth": Case(
        bad="(int64[3] x, int64 depth) => (float[3,D] y) <float[2] v = {0, 1}> { [hot] y = OneHot(x, depth, v) }",
        good="(int64[3] x) => (float[3,D] y) <float[2] v = {0, 1}, int64 depth = {5}> "
        "{ [hot] y = OneHot(x, depth, v) }",
        at="hot",
    ),
    "cumsum-axis": Case(
        bad="(float[3] x, int64 axis) => (float[3] y) { [sum] y = CumSum(x, axis) }",
        good="(float[3] x) => (float[3] y) <int64 zero> { [sum] y = CumSum(x, zero) }",
        at="sum",
    ),
    "dropout-training": Case(
        bad="(float[3,3] x, bool training) => (float[3,3] y) <float ratio> { [drop] y = Dropout(x, ratio, training) }",
        good="(float[3,3] x) => (float[3,3] y) <float ratio, bool zero> { [drop] y = Dropout(x, ratio, zero) }",
        at="drop",
    ),
    "eyelike-dynamic": Case(
        bad="(float[N,M] x) => (float[N,M] y) { [eye] y = EyeLike(x) }",
        good="(float[3,4] x) => (float[3,4] y) { [eye] y = EyeLike(x) }",
        at="eye",
    ),
    "topk-limit": Case(
        bad="(float[2,5000] x) => (float[2,K] y, int64[2,K] i) <int64[1] k = {4000}> { [top] y, i = TopK(x, k) }",
        good="(float[2,5000] x) => (float[2,K] y, int64[2,K] i) <int64[1] k = {3840}> { [top] y, i = TopK(x, k) }",
        at="top",
    ),
    "topk-unsorted": Case(
        bad="(float[2,50] x) => (float[2,K] y, int64[2,K] i) <int64[1] k> { [top] y, i = TopK<sorted=0>(x, k) }",
        good="(float[2,50] x) => (float[2,K] y, int64[2,K] i) <int64[1] k> { [top] y, i = TopK<sorted=1>(x, k) }",
        at="top",
    ),
    "scatternd-reduction": Case(
        bad='(float[4] x, float[1] u) => (float[4] y) <int64[1,1] i> { [put] y = ScatterND<reduction="add">(x, i, u) }',
        good="(float[4] x, float[1] u) => (float[4] y) <int64[1,1] i> "
        '{ [put] y = ScatterND<reduction="none">(x, i, u) }',
        at="put",
    ),
    "scatterelements-reduction": Case(
        bad="(float[4] x, float[1] u) => (float[4] y) <int64[1] i> "
        '{ [put] y = ScatterElements<reduction="add">(x, i, u) }',
        good="(float[4] x, float[1] u) => (float[4] y) <int64[1] i> { [put] y = ScatterElements(x, i, u) }",
        at="put",
    ),
    "second-output": Case(
        bad="(float[2,4] x) => (float[2,4] y, float[2,1] m) <float[4] w> { [norm] y, m = LayerNormalization(x, w) }",
        good="(float[2,4] x) => (float[2,4] y) <float[4] w> { [norm] y = LayerNormalization(x, w) }",
        at="norm",
    ),
    "pool-dilations": Case(
        bad="(float[1,1,8,8] x) => (float[1,1,6,6] y) "
        "{ [pool] y = AveragePool<kernel_shape=[2,2], dilations=[2,2]>(x) }",
        good="(float[1,1,8,8] x) => (float[1,1,7,7] y) "
        "{ [pool] y = AveragePool<kernel_shape=[2,2], dilations=[1,1]>(x) }",
        at="pool",
    ),
    "resize-antialias": Case(
        bad="(float[1,1,3,3] x) => (float[1,1,6,6] y) <float[4] s = {1, 1, 2, 2}> "
        '{ [size] y = Resize<mode="linear", antialias=1>(x, "", s) }',
        good="(float[1,1,3,3] x) => (float[1,1,6,6] y) <float[4] s = {1, 1, 2, 2}> "
        '{ [size] y = Resize<mode="linear">(x, "", s) }',
        at="size",
    ),
    "resize-aspect": Case(
        bad="(float[1,1,3,3] x) => (float[1,1,H,W] y) <int64[4] s = {1, 1, 6, 6}> "
        '{ [size] y = Resize<mode="linear", keep_aspect_ratio_policy="not_larger">(x, "", "", s) }',
        good="(float[1,1,3,3] x) => (float[1,1,H,W] y) <int64[4] s = {1, 1, 6, 6}> "
        '{ [size] y = Resize<mode="linear", keep_aspect_ratio_policy="stretch">(x, "", "", s) }',
        at="size",
    ),
    "constant-kind": Case(
        bad='(float[4] x) => (float[4] y) { [text] t = Constant<value_string="a">() [abs] y = Abs(x) }',
        good="(float[4] x) => (float[4] y) { [number] t = Constant<value_float=1.0>() [add] y = Add(x, t) }",
        at="text",
        others=("type-unsupported",),
    ),
    "random-seed": Case(
        bad="(float[2,4] x) => (float[2,4] y) { [draw] y = RandomUniformLike<seed=1.0>(x) }",
        good="(float[2,4] x) => (float[2,4] y) { [draw] y = RandomUniformLike(x) }",
        at="draw",
        warns='ignores the "seed" field',
    ),
    "rotary-positions": Case(
        bad="(float[1,2,3,8] x, int32[1,3] p) => (float[1,2,3,8] y) <float[9,4] c, float[9,4] s> "
        "{ [turn] y = RotaryEmbedding(x, c, s, p) }",
        good="(float[1,2,3,8] x, int64[1,3] p) => (float[1,2,3,8] y) <float[9,4] c, float[9,4] s> "
        "{ [turn] y = RotaryEmbedding(x, c, s, p) }",
        at="turn",
        opset=23,
        others=("operator-since-10",),
    ),
    "rotary-contrib-positions": Case(
        bad="(float[1,2,3,8] x) => (float[1,2,3,8] y) <float[3,4] c, float[3,4] s, int64[1] zero> "
        "{ [turn] y = com.microsoft.RotaryEmbedding(x, zero, c, s) }",
        good="(float[1,2,3,8] x) => (float[1,2,3,8] y) <float[3,4] c, float[3,4] s, int64[1,3] p = {0, 1, 2}> "
        "{ [turn] y = com.microsoft.RotaryEmbedding(x, p, c, s) }",
        at="turn",
    ),
    "type-unsupported": Case(
        bad="(int16[2,4] x) => (float[2,4] y) { [cast] y = Cast<to=1>(x) }",
        good="(int32[2,4] x) => (float[2,4] y) { [cast] y = Cast<to=1>(x) }",
        at="x",
    ),
    "type-uint4": Case(
        bad="(float[2,64] x) => (float[2,8] y) <uint4[64,8] w, float[2,8] s> "
        "{ [dq] d = DequantizeLinear<axis=0, block_size=32>(w, s) [product] y = MatMul(x, d) }",
        good="(float[2,64] x) => (float[2,8] y) <int4[64,8] w, float[2,8] s> "
        "{ [dq] d = DequantizeLinear<axis=0, block_size=32>(w, s) [product] y = MatMul(x, d) }",
        at="w",
    ),
    "type-uint8-inside": Case(
        bad="(float[2,4] x) => (float[2,4] y) { [narrow] n = Cast<to=2>(x) [wide] y = Cast<to=1>(n) }",
        good="(float[2,4] x) => (float[2,4] y) { [narrow] n = Cast<to=6>(x) [wide] y = Cast<to=1>(n) }",
        at="narrow",
    ),
    "type-double": Case(
        bad="(double[2,4] x) => (double[2,4] y) { [abs] y = Abs(x) }",
        good="(float[2,4] x) => (float[2,4] y) { [abs] y = Abs(x) }",
        at="x",
    ),
    "arch-bf16": Case(
        bad="(bfloat16[2,8] x) => (bfloat16[2,8] y) { [abs] y = Abs(x) }",
        good="(float16[2,8] x) => (float16[2,8] y) { [abs] y = Abs(x) }",
        at="x",
        archs=("sm75",),
        good_archs=("sm80", "sm89"),
    ),
    "precision-flag": Case(
        bad=ABS,
        good=ABS,
        at="provider_options.trt_fp16_enable",
        options={"provider_options": {"trt_fp16_enable": True, "trt_bf16_enable": False}},
    ),
    "dynamic-input": Case(
        bad="(float[N,4] x) => (float[N,4] y) { [abs] y = Abs(x) }",
        good=ABS,
        at="x",
    ),
}
