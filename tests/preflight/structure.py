"""Cases of the rules on attention, caches, loops and branches."""

from tests.preflight.make import Case

QKV = "(float16[1,2,4,64] q, float16[1,2,4,64] k{more}) => (float16[1,2,4,64] y)"


def loop(state: str, nodes: str, trip: str = "n", condition: str = "c", outer: str = "", **more: str) -> str:
    """A graph with one Loop, `step`, over one state h -> new_h of type `state`; `nodes` also make `go`."""
    scan, scan_type = more.get("scan", ""), more.get("scan_type", "")
    outputs = f"{more.get('last', state)} y" + (f", {scan_type} scanned" if scan else "")
    made = "y, scanned" if scan else "y"
    returns = f"bool go, {more.get('new', state)} new_h" + (f", {more['row']} {scan}" if scan else "")
    constants = f"<{more['constants']}>" if "constants" in more else ""
    return (
        f"({state} first, int64 n, bool c{more.get('inputs', '')}) => ({outputs}) {constants} {{ {outer} "
        f"[step] {made} = Loop({trip}, {condition}, first) "
        f"<body = b (int64 i, bool on, {more.get('held', state)} h) => ({returns}) {{ {nodes} }}> }}"
    )


GO = "[go] go = Identity(on)"
HALT = "[max] m = ReduceMax<keepdims=0>(h) [go] go = Less(m, most)"
ONE = "float most"

ATTENTION = {
    "attention-in-body": Case(
        bad=loop("float16[1,2,4,64]", f"{GO} [attend] new_h = Attention(h, k, k)", inputs=", float16[1,2,4,64] k"),
        good=QKV.format(more="") + " { [attend] y = Attention(q, k, k) }",
        at="step > attend",
        opset=23,
    ),
    "attention-past": Case(
        bad=QKV.format(more="") + ' { [attend] y = Attention(q, k, k, "", k, k) }',
        good=QKV.format(more=", bool[1,1,4,4] m") + " { [attend] y = Attention(q, k, k, m) }",
        at="attend",
        opset=23,
    ),
    "attention-present": Case(
        bad="(float16[1,2,4,64] q, float16[1,2,4,64] k) => "
        "(float16[1,2,4,64] y, float16[1,2,4,64] keys, float16[1,2,4,64] values) "
        "{ [attend] y, keys, values = Attention(q, k, k) }",
        good=QKV.format(more="") + " { [attend] y = Attention(q, k, k) }",
        at="attend",
        opset=23,
    ),
    "attention-softcap": Case(
        bad=QKV.format(more="") + " { [attend] y = Attention<softcap=5.0>(q, k, k) }",
        good=QKV.format(more="") + " { [attend] y = Attention<softcap=0.0>(q, k, k) }",
        at="attend",
        opset=23,
    ),
    "attention-lengths": Case(
        bad=QKV.format(more=", int64[1] n") + ' { [attend] y = Attention(q, k, k, "", "", "", n) }',
        good=QKV.format(more=", bool[1,1,4,4] m") + " { [attend] y = Attention(q, k, k, m) }",
        at="attend",
        opset=24,
        warns="Unused Input: n",
    ),
    "attention-float32": Case(
        bad="(float[1,2,4,64] q, float[1,2,4,64] k) => (float[1,2,4,64] y) { [attend] y = Attention(q, k, k) }",
        good="(bfloat16[1,2,4,64] q, bfloat16[1,2,4,64] k) => (bfloat16[1,2,4,64] y) "
        "{ [attend] y = Attention(q, k, k) }",
        at="attend",
        opset=23,
    ),
    "attention-itself": Case(
        bad="(float16[1,2,4,64] q) => (float16[1,2,4,64] y) { [attend] y = Attention(q, q, q) }",
        good="(float16[1,2,4,64] q) => (float16[1,2,4,64] y) { [copy] k = Abs(q) [attend] y = Attention(q, k, k) }",
        at="attend",
        opset=23,
        crashes=True,
    ),
    "attention-one-query": Case(
        bad="(float16[1,2,1,64] q, float16[1,2,8,64] k) => (float16[1,2,1,64] y) { [attend] y = Attention(q, k, k) }",
        good="(float16[1,2,4,64] q, float16[1,2,8,64] k) => (float16[1,2,4,64] y) { [attend] y = Attention(q, k, k) }",
        at="attend",
        opset=23,
    ),
    "cache-in-loop": Case(
        bad=loop(
            "float[1,2,16,8]", f"{GO} [write] new_h = TensorScatter<axis=-2>(h, u, p)",
            inputs=", float[1,2,1,8] u, int64[1] p",
        ),
        good=loop(
            "float[16,8]", f"{GO} [at] p = Reshape(i, shape) [write] new_h = ScatterND(h, p, u)",
            inputs=", float[1,8] u", constants="int64[2] shape",
        ),
        at="step > write",
        opset=24,
    ),
    "cache-not-input": Case(
        bad="(float[1,2,16,8] k, float[1,2,1,8] u, int64[1] p) => (float[1,2,16,8] y) "
        "{ [abs] a = Abs(k) [write] y = TensorScatter<axis=-2>(a, u, p) }",
        good="(float[1,2,16,8] k, float[1,2,1,8] u, int64[1] p) => (float[1,2,16,8] y) "
        "{ [write] y = TensorScatter<axis=-2>(k, u, p) }",
        at="write",
        opset=24,
    ),
    "cache-circular": Case(
        bad="(float[1,2,16,8] k, float[1,2,1,8] u, int64[1] p) => (float[1,2,16,8] y) "
        '{ [write] y = TensorScatter<axis=-2, mode="circular">(k, u, p) }',
        good="(float[1,2,16,8] k, float[1,2,1,8] u, int64[1] p) => (float[1,2,16,8] y) "
        '{ [write] y = TensorScatter<axis=-2, mode="linear">(k, u, p) }',
        at="write",
        opset=24,
    ),
    "cache-axis": Case(
        bad="(float[1,2,16,8] k, float[1,1,16,8] u, int64[1] p) => (float[1,2,16,8] y) "
        "{ [write] y = TensorScatter<axis=1>(k, u, p) }",
        good="(float[1,2,16,8] k, float[1,2,1,8] u, int64[1] p) => (float[1,2,16,8] y) "
        "{ [write] y = TensorScatter<axis=2>(k, u, p) }",
        at="write",
        opset=24,
    ),
}  # fmt: skip

LOOPS = {
    "loop-growing-state": Case(
        bad=loop(
            "float[1,8,64]", f"{GO} [join] new_h = Concat<axis=1>(h, row)",
            held="float[1,S,64]", new="float[1,T,64]", last="float[1,Z,64]", constants="float[1,1,64] row",
        ),
        good=loop(
            "float[8,64]", f"{GO} [at] p = Reshape(i, shape) [write] new_h = ScatterND(h, p, row)",
            constants="float[1,64] row, int64[2] shape",
        ),
        at="step",
    ),
    "loop-scan-without-trip": Case(
        bad=loop("float[4]", f"{HALT} [add] new_h = Add(h, h) [copy] s = Identity(new_h)", trip='""', scan="s",
                 scan_type="float[N,4]", row="float[4]", constants=ONE),
        good=loop("float[4]", f"{GO} [add] new_h = Add(h, h) [copy] s = Identity(new_h)", trip="three", scan="s",
                  scan_type="float[3,4]", row="float[4]", constants="int64 three = {3}"),
        at="step",
    ),
    "loop-scan-tail": Case(
        bad=loop("float[4]", f"{HALT} [add] new_h = Add(h, h) [copy] s = Identity(new_h)", trip="three", scan="s",
                 scan_type="float[3,4]", row="float[4]", constants=f"{ONE}, int64 three = {{3}}"),
        good=loop("float[4]", f"{GO} [add] new_h = Add(h, h) [copy] s = Identity(new_h)", trip="three", scan="s",
                  scan_type="float[3,4]", row="float[4]", constants="int64 three = {3}"),
        at="step",
        warns="scan output s may have the wrong shape",
    ),
    "loop-scan-profile": Case(
        bad=loop("float[4]", f"{GO} [add] new_h = Add(h, h) [copy] s = Identity(new_h)", scan="s",
                 scan_type="float[N,4]", row="float[4]"),
        good=loop("float[4]", f"{GO} [add] new_h = Add(h, h) [copy] s = Identity(new_h)", trip="three", scan="s",
                  scan_type="float[3,4]", row="float[4]", constants="int64 three = {3}"),
        at="step",
    ),
    "loop-iteration-without-trip": Case(
        bad=loop("float[4]", f"{HALT} [number] f = Cast<to=1>(i) [add] new_h = Add(h, f)", trip="huge",
                 constants=f"{ONE}, int64 huge = {{9223372036854775807}}"),
        good=loop("float[4]", f"{HALT} [number] f = Cast<to=1>(i) [add] new_h = Add(h, f)", trip="many",
                  constants=f"{ONE}, int64 many = {{2147483646}}"),
        at="step",
    ),
    "loop-condition-without-initial": Case(
        bad=loop("float[4]", f"{GO} [abs] new_h = Abs(h)", condition='""'),
        good=loop("float[4]", "[go] go = Identity(yes) [abs] new_h = Abs(h)", condition='""', constants="bool yes"),
        at="step",
    ),
    "loop-condition-read": Case(
        bad=loop("float[4]", f"{HALT} [read] f = Cast<to=1>(on) [add] new_h = Add(h, f)", constants=ONE),
        good=loop("float[4]", f"{GO} [add] new_h = Add(h, h)"),
        at="step",
    ),
    "loop-without-trip": Case(
        bad=loop("float[4]", f"{HALT} [add] new_h = Add(h, h)", trip='""', constants=ONE),
        good=loop("float[4]", f"{HALT} [add] new_h = Add(h, h)", constants=ONE),
        at="step",
    ),
    "if-rank": Case(
        bad="(float[2,8] x, bool c) => (float[A,B] y) { [choose] y = If(c) <"
        "then_branch = t () => (float[2,8] a) { [minus] a = Neg(x) }, "
        "else_branch = e () => (float[16] b) { [flat] f = Flatten<axis=0>(x) [line] b = Squeeze(f) }> }",
        good="(float[2,8] x, bool c) => (float[A,B] y) { [choose] y = If(c) <"
        "then_branch = t () => (float[2,8] a) { [minus] a = Neg(x) }, "
        "else_branch = e () => (float[1,16] b) { [flat] b = Flatten<axis=0>(x) }> }",
        at="choose",
    ),
}  # fmt: skip

CASES = ATTENTION | LOOPS
