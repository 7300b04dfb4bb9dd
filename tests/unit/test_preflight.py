"""`lrkit preflight`: each rule finds the graph that breaks it, by name, and leaves its twin alone."""

import pytest

from lrkit.errors import ConfigError, UnknownNameError, UserError, did_you_mean
from lrkit.export.preflight.findings import MATCHERS, bound, check_graph, load_graph
from lrkit.export.preflight.opening import CheckedGraph
from lrkit.export.preflight.rules import TARGETS, Rule, RuleFile, load_operators, load_rules, rule_files
from lrkit.export.preflight.view import View
from tests.preflight import openvino, operators, quantized, structure
from tests.preflight.make import Case, checked, checked_twin, save

CASES: dict[str, Case] = operators.CASES | structure.CASES | quantized.CASES | openvino.CASES
RULES = {rule.id: rule for file in rule_files().values() for rule in file.rules}


def test_every_rule_has_a_case_and_every_case_a_rule():
    """A rule without a graph that breaks it would be a claim that nobody ever tried."""
    assert len(RULES) > 60
    assert set(CASES) == set(RULES)


def test_every_target_has_rules_and_every_matcher_a_use():
    for target in TARGETS:
        assert len(load_rules(target).rules) >= 10
    assert {rule.match for rule in RULES.values()} == set(MATCHERS)
    for rule in RULES.values():
        bound(rule)


@pytest.mark.parametrize("name", CASES)
def test_the_rule_finds_its_graph_and_leaves_the_twin(name, tmp_path):
    case, rule = CASES[name], RULES[name]
    for target in rule.targets:
        rules = load_rules(target)
        bad = check_graph(checked(case, tmp_path / "bad.onnx"), rules, case.archs, really=False)
        found = [finding for finding in bad.findings if finding.rule == name]
        assert case.at in [finding.name for finding in found], bad.findings
        assert {finding.verdict for finding in found} == {rule.verdict}
        good = check_graph(checked_twin(case, tmp_path / "good.onnx"), rules, case.archs, really=False)
        assert name not in [finding.rule for finding in good.findings]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.good_archs])
def test_a_rule_of_some_gpus_is_a_note_until_one_is_named(name, tmp_path):
    case = CASES[name]
    rules, graph = load_rules("tensorrt-11"), checked(case, tmp_path / "bad.onnx")
    unnamed = [f for f in check_graph(graph, rules, really=False).findings if f.rule == name]
    assert {(f.verdict, f.stage) for f in unnamed} == {("note", None)}
    assert all(arch in unnamed[0].reason for arch in RULES[name].archs)
    other = check_graph(graph, rules, case.good_archs, really=False)
    assert name not in [f.rule for f in other.findings]


def test_one_broken_rule_is_the_only_thing_said(tmp_path):
    """Of what would be rejected or ignored: a graph that breaks one rule must not set off another, unless declared."""
    for name, case in CASES.items():
        for target in RULES[name].targets:
            report = check_graph(
                checked(case, tmp_path / "bad.onnx"),
                load_rules(target),
                case.good_archs[:1] or case.archs,
                really=False,
            )
            said = {f.rule for f in report.findings if f.verdict in ("rejected", "ignored")}
            assert said <= {name, *case.others}, (name, target, said)


def test_a_finding_names_the_loops_and_branches_around_it(tmp_path):
    text = (
        "(float[4] x, int64 n, bool c) => (float[4] y) { [outer] y = Loop(n, c, x) "
        "<body = b (int64 i, bool on, float[4] h) => (bool go, float[4] new_h) { [go] go = Identity(on) "
        "[choose] new_h = If(on) <then_branch = t () => (float[4] a) { a = Unique(h) }, "
        "else_branch = e () => (float[4] b) { [same] b = Identity(h) }> }> }"
    )
    graph = CheckedGraph("nested", save(text, 21, tmp_path / "nested.onnx"))
    report = check_graph(graph, load_rules("tensorrt-11"), really=False)
    assert [f.name for f in report.rejected] == ["outer > choose.then > Unique -> a"]
    assert report.rejected[0].operator == "Unique"


def test_constants_larger_than_a_weight_are_never_opened(tmp_path, monkeypatch):
    """Rules read axes and counts, not weights: a model of many gigabytes must not be pulled through memory."""
    monkeypatch.setattr("lrkit.export.preflight.view.MAX_READ_BYTES", 4)
    case = CASES["topk-limit"]
    report = check_graph(checked(case, tmp_path / "bad.onnx"), load_rules("tensorrt-11"), really=False)
    assert "topk-limit" not in [f.rule for f in report.findings]


def test_functions_of_the_model_are_read_too(tmp_path):
    import onnx

    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21, "own" : 1]> g (float[4] x) => (float[M] y) { [call] y = own.f(x) } '
        '<domain: "own", opset_import: ["" : 21]> f (a) => (b) { [inside] b = Unique(a) }'
    )
    file = tmp_path / "function.onnx"
    file.write_bytes(model.SerializeToString())
    report = check_graph(CheckedGraph("function", file), load_rules("tensorrt-rtx"), really=False)
    assert [f.name for f in report.rejected] == ["inside"]


def rule(**changes) -> Rule:
    values = {
        "id": "x", "targets": {"ort": "measured"}, "verdict": "note", "match": "operator",
        "given": {"operators": ["Abs"]}, "reason": "r", "instead": "i", "source": "s",
    }  # fmt: skip
    return Rule.model_validate(values | changes)


def test_a_wrong_rule_is_explained():
    with pytest.raises(ConfigError, match=r"no matcher; did you mean 'operator'"):
        bound(rule(match="operater"))
    with pytest.raises(ConfigError, match=r"rule x: operator: missing .*'operators'; correct `given`"):
        bound(rule(given={"operator_names": ["Abs"]}))
    with pytest.raises(ValueError, match="stage if its verdict is rejected"):
        rule(verdict="rejected")
    with pytest.raises(UnknownNameError, match="did you mean 'tensorrt-rtx'"):
        load_rules("tensorrt-rtz")
    with pytest.raises(ValueError, match="extra"):
        RuleFile.model_validate({"description": "", "targets": {}, "rules": [], "more": 1})


def test_the_table_of_operators_is_whole():
    table = load_operators("tensorrt-operators")
    supported = [name for names in table.operators.values() for name in names]
    assert len(supported) == len(set(supported)) == 159
    assert len(table.unsupported) == 42
    assert not set(supported) & set(table.unsupported)
    assert set(table.operators) == set(table.types)
    assert {*table.also, *table.refused, *table.since} <= set(supported)


def test_a_gpu_that_is_not_known_is_answered_with_the_nearest(tmp_path):
    """The known names were handed on as one joined text, to which nothing is near."""
    graph = CheckedGraph("x", save(operators.ABS, 21, tmp_path / "abs.onnx"))
    for asked, near in (("sm-89", "sm89"), ("m86", "sm86"), ("m120", "sm120")):
        with pytest.raises(UserError, match=f"cannot build for {asked}; it knows .*; did you mean '{near}'"):
            check_graph(graph, load_rules("tensorrt-rtx"), (asked,))
    with pytest.raises(AssertionError, match="joined text"):
        did_you_mean("sm8", "sm80, sm86")


def test_bad_input_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.onnx: there is no such file"):
        load_graph(tmp_path / "nothing.onnx")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no protobuf")
    with pytest.raises(UserError, match=r"broken\.onnx: cannot be read as an ONNX program"):
        check_graph(load_graph(broken), load_rules("ort"))
    graph = CheckedGraph("x", save(operators.ABS, 21, tmp_path / "abs.onnx"))
    with pytest.raises(UserError, match=r"tensorrt-rtx cannot build for sm87; it knows sm75, sm80"):
        check_graph(graph, load_rules("tensorrt-rtx"), ("sm87",))
    with pytest.raises(UserError, match="sm89 are GPUs, and the rules of ort are a CPU's"):
        check_graph(graph, load_rules("ort"), ("sm89",))
    assert isinstance(graph.view(), View)
