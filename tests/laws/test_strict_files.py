"""Strict JSON and YAML read what the usual readers read, to equal values, and refuse what those pass over."""

import json
import math
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lrkit.errors import ConfigError, UserError
from lrkit.files import MAX_JSON_DEPTH, load_strict, parse_json
from lrkit.strict_yaml import MAX_DEPTH, Dumper, parse_yaml

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
awkward = st.sampled_from(
    ["yes", "no", "on", "~", "null", "1e5", "1:30", "0o17", "0x1f", "1_000", "-", "? a", "- b", "a: b", "<<", "=",
     "2026-01-31", ".inf", ".nan", "NaN", "#", "&a", "*a", "!x", "|", ">", "%", "@", "`", "'", '"', " a ", "\t", "é\n"]
)  # fmt: skip
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, -0.0, 1e-7, 1e16, 1e22, 5e-300]), texts, awkward,
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts | awkward, inner, max_size=4),
    max_leaves=15,
)
mappings = st.dictionaries(texts | awkward, values, max_size=5)


def same(a: Any, b: Any) -> bool:
    """Equal in kind too: 1 is not True, 1.0 is not 1, 0.0 is not -0.0."""
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    sign = isinstance(a, float) and isinstance(b, float) and math.copysign(1, a) != math.copysign(1, b)
    return type(a) is type(b) and a == b and not sign


@given(values, st.sampled_from([None, 0, 2]), st.booleans())
def test_json_reads_as_the_standard_reader_does(value: Any, indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    assert same(load_strict(text), json.loads(text))


@given(mappings)
def test_json_of_a_mapping_is_taken_and_every_other_is_refused(value: dict[str, Any]) -> None:
    assert same(parse_json(json.dumps(value), "it"), value)
    with pytest.raises(UserError, match=r"it: holds a \w+ where a mapping belongs"):
        parse_json(json.dumps([value]), "it")


@given(mappings.filter(bool), st.data())
def test_json_refuses_a_key_given_twice_at_any_depth(value: dict[str, Any], data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(value)))
    doubled = json.dumps(value)[:-1] + ", " + json.dumps({key: None})[1:]
    for text in (doubled, f'{{"a": [{doubled}]}}'):
        assert json.loads(text)
        with pytest.raises(UserError, match="is given twice; keep one of them"):
            parse_json(text, "it")


@given(mappings, st.sampled_from(["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 41, '"\\ud800"']))
def test_json_refuses_numbers_and_texts_that_are_none(value: dict[str, Any], odd: str) -> None:
    text = f'{{"inner": {json.dumps(value)}, "odd": [{odd}]}}'
    with pytest.raises(UserError) as caught:
        parse_json(text, "it")
    assert str(caught.value).startswith("it: ") and "\n" not in str(caught.value)


@given(st.integers(1, 400))
def test_json_is_read_to_its_depth_and_no_deeper(depth: int) -> None:
    text = '{"a": ' * (depth - 1) + "{}" + "}" * (depth - 1)
    if depth <= MAX_JSON_DEPTH:
        assert parse_json(text, "it") == json.loads(text)
    else:
        with pytest.raises(UserError, match="nested more than"):
            parse_json(text, "it")


@given(values, st.sampled_from([None, True, False]))
def test_yaml_that_is_written_reads_back_equal(value: Any, style: bool | None) -> None:
    text = yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=False, default_flow_style=style)
    assert same(parse_yaml(text, "it"), value)


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text("abc xyz", max_size=6)
    | st.floats(-1e6, 1e6).map(lambda number: round(number, 3)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abcxyz", min_size=1, max_size=4), inner),
    max_leaves=12,
)  # fmt: skip


@given(plain)
def test_plain_yaml_reads_as_the_usual_reader_does(value: Any) -> None:
    text = yaml.safe_dump(value, sort_keys=False)
    if isinstance(value, dict) and any(key in {"y", "n"} for key in value):
        return  # texts here; booleans to some readers
    assert same(parse_yaml(text, "it"), yaml.safe_load(text))


@given(mappings.filter(bool), st.data())
def test_yaml_refuses_a_key_given_twice(value: dict[str, Any], data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(value)))
    one, two = (yaml.dump(part, Dumper=Dumper, default_flow_style=False) for part in (value, {key: 1}))
    with pytest.raises(ConfigError, match="is given twice"):
        parse_yaml(one + two, "it")


@given(st.integers(1, 120))
def test_yaml_is_read_to_its_depth_and_no_deeper(depth: int) -> None:
    text = "[" * depth + "]" * depth
    if depth <= MAX_DEPTH:
        assert parse_yaml(text, "it") == yaml.safe_load(text)
    else:
        with pytest.raises(ConfigError, match="deep"):
            parse_yaml(text, "it")


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), st.booleans())
def test_any_text_is_values_or_one_sentence(text: str, as_json: bool) -> None:
    try:
        if as_json:
            assert parse_json(text, "it") == json.loads(text)
        else:
            parse_yaml(text, "it: ")
    except UserError as error:
        assert str(error).startswith("it: ") and len(str(error)) < 600
