"""YAML and overrides from anybody: every oddity of the format is one sentence, and nothing is expanded before it is
weighed."""

import tracemalloc
from pathlib import Path

import pytest

from lrkit.config import load_config, load_yaml
from lrkit.errors import ConfigError
from lrkit.strict_yaml import MAX_BYTES, MAX_DEPTH, MAX_VALUES, parse_yaml
from lrkit.train.recipe import load_recipe
from tests.unit.test_config import Run

LAUGHS = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 8)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGED_LAUGHS = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 9)}]}}\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)

REFUSED = {
    "a tag that makes objects": ("a: !!python/object/apply:os.system [ls]", "has the tag"),
    "a tag of the user's own": ("a: !mine {b: 1}", "has the tag '!mine'"),
    "a tagged whole number": ("a: !!int x", "tags 'x' as int"),
    "a tagged boolean": ("a: !!bool 3", "tags '3' as bool"),
    "a tagged date": ("a: !!timestamp 2024-02-31", "has the tag"),
    "binary": ("a: !!binary aGVsbG8=", "has the tag"),
    "a set": ("a: !!set {b, c}", "has the tag"),
    "pairs in order": ("a: !!omap [b: 1]", "has the tag"),
    "a list as a key": ("? [a, b]\n: c", "as a key"),
    "a mapping as a key": ("? {a: b}\n: c", "as a key"),
    "a key of binary": ("? !!binary aGVsbG8=\n: c", "has the tag"),
    "5,000 digits": ("a: " + "9" * 5000, "64 bits"),
    "5,000 hexadecimal digits": ("a: 0x" + "f" * 5000, "64 bits"),
    "a number above a float": ("a: 1e999", "a float cannot"),
    "5,000 digits before the point": ("a: " + "9" * 5000 + ".5", "a float cannot"),
    "not a number": ("a: .nan", "no number"),
    "an anchor inside itself": ("a: &a [1, *a]", "contains itself"),
    "a mapping inside itself": ("a: &a {b: {c: *a}}", "contains itself"),
    "a merge of itself": ("a: &a {<<: *a}", "contains itself"),
    "lists that multiply": (LAUGHS, "more than"),
    "merges that multiply": (MERGED_LAUGHS, "more than"),
    "depth in the text": ("a: " + "[" * 60, "nested more than"),
    "depth in blocks": ("".join("  " * n + "a:\n" for n in range(60)), "nested more than"),
    "depth through anchors": (
        "a: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 60)), "nested more than"
    ),
    "a merge of a text": ("a: {<<: b}", "what is no mapping"),
    "an anchor that is nowhere": ("a: *b", "undefined alias"),
    "two documents": ("a: 1\n---\nb: 2", "not valid YAML"),
    "half of a surrogate pair": ('a: "\\ud83d"', "surrogate"),
    "a NUL": ('a: "x\\0y"', "NUL"),
    "a character above the last": ('a: "\\U7fffffff"', "not valid YAML"),
    "a control character": ("a: \x1b[31m", "not valid YAML"),
    "tabs for indentation": ("a:\n\tb: 1", "not valid YAML"),
    "a directive of many digits": ("%YAML " + "9" * 5000 + ".1\n---\na: 1", "not valid YAML"),
    "a key given twice": ("a: {b: 1, b: 2}", "given twice"),
    "a list at the top": ("- a", "must be a mapping"),
    "a text at the top": ("hello", "must be a mapping"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(REFUSED))
def test_every_oddity_of_yaml_is_one_sentence(name: str, tmp_path: Path) -> None:
    text, says = REFUSED[name]
    file = tmp_path / "odd.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigError) as caught:
        load_yaml(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ") and says in message and "; " in message
    assert len(message) < 500 + len(str(file)) and message.isprintable()


@pytest.mark.parametrize(
    "raw",
    [
        b"\xff\xfea\x00:\x00 \x001\x00", b"\xfe\xff\x00a", b"a: \xff\xfe\xfd", b"a: b\x00", b"\x00" * 100,
        b"# " + b"x" * (MAX_BYTES + 1), b"\x80\x04\x95", bytes(range(256)),
    ],
)  # fmt: skip
def test_bytes_that_are_no_yaml_are_one_sentence(raw: bytes, tmp_path: Path) -> None:
    file = tmp_path / "odd.yaml"
    file.write_bytes(raw)
    with pytest.raises(ConfigError) as caught:
        load_yaml(file)
    assert str(caught.value).startswith(f"{file}: ") and "\n" not in str(caught.value)


def test_a_bomb_is_weighed_and_not_built() -> None:
    """Eight anchors of eight make 16 million texts; to count them takes the memory of the file alone."""
    tracemalloc.start()
    with pytest.raises(ConfigError, match=f"{MAX_VALUES:,}"):
        parse_yaml(LAUGHS.replace("x", "x" * 100), "")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


def test_what_people_write_is_read(tmp_path: Path) -> None:
    file = tmp_path / "plain.yaml"
    file.write_text(
        "\ufeffdate: 2024-02-31\ntime: 12:30:00\non: off\n1: ~\nhex: 0x1F\nlr: 1e-4\nbig: 1_000\nhalf: -.5\n"
        "inf: -.inf\nlist: [yes, null, '1', \"a\\tb\"]\nbase: &b {x: 1, y: 2}\nown: {<<: *b, y: 3}\n"
        "=: '='\nzip: 0123\n",
        encoding="utf-8",
    )
    assert load_yaml(file) == {
        "date": "2024-02-31", "time": "12:30:00", "on": False, "1": None, "hex": 31, "lr": 1e-4, "big": 1000,
        "half": -0.5, "inf": float("-inf"), "list": [True, None, "1", "a\tb"], "base": {"x": 1, "y": 2},
        "own": {"x": 1, "y": 3}, "=": "=", "zip": "0123",
    }  # fmt: skip
    deepest = "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)
    assert parse_yaml(deepest, "") is not None


@pytest.mark.parametrize(
    "override",
    [
        "stages.\N{ARABIC-INDIC DIGIT ZERO}.steps=1", "stages.\N{SUPERSCRIPT TWO}=1", f"stages.{'9' * 5000}.steps=1",
        "stages.-1.steps=1", "stages.0.steps.x=1", "folder.a.b.c=1", "=1", ".=1", "a..b=1", "folder=!!python/name:os.x",
        "folder=&a [*a]", f"weights.x={'9' * 5000}", "weights={? [1]: 2}", "a\nb=1", "folder=\udcff", "\udcff=x",
        "weights.\x1b[31m=1", f"folder={'[' * 3000}", f"{'a.' * 3000}b=1", "stages.0=[", "weights.x=.nan",
    ],
)  # fmt: skip
def test_odd_overrides_are_one_printable_line_each(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(Run, {"stages": [{"steps": 3}], "folder": "out", "weights": {}}, [override])
    for line in str(caught.value).splitlines():
        assert line.isprintable() and len(line) < 400, line
        assert "; " in line, line


def test_an_override_of_an_empty_list_is_told_to_give_the_list() -> None:
    with pytest.raises(ConfigError, match=r"stages is a list of 0; give it whole, as stages=\[\.\.\.\]"):
        load_config(Run, {"stages": []}, ["stages.0.steps=1"])


def test_a_date_given_as_an_override_stays_the_text_it_is() -> None:
    assert load_config(Run, {}, ["init=2024-01-31"]).init == "2024-01-31"


@pytest.mark.parametrize(
    "values",
    [
        {"a.b": 1, "weights": {"x.y": "no number"}}, {"folder": b"out"}, {"folder": {1, 2}}, {("a", "b"): 1},
        {"weights": {"x": object()}}, {"init": 10**400}, {"weights": {str(n): "x" for n in range(3000)}},
        {f"unknown-{n}": n for n in range(3000)}, {"folder": "\ud800"}, {"init": "x" * 100_000, "foldr": 1},
        {"layers": ["x"] * 3000}, {"stages": [{"steps": 2**70}]}, {"weights": {"x": float("nan")}}, {"\x1b[31m": 1},
        {"a\nb": 1},
    ],
)  # fmt: skip
def test_odd_values_are_few_and_printable_lines(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(Run, values)
    lines = str(caught.value).splitlines()
    assert len(lines) <= 51 and all(line.isprintable() and len(line) < 500 for line in lines)
    assert not any("Traceback" in line for line in lines)


def test_the_kind_of_a_part_is_corrected_and_never_printed_whole() -> None:
    for kind, says in (("jsonI", "did you mean 'jsonl'?"), ("x" * 20_000, "kind must be one of trail, jsonl")):
        with pytest.raises(ConfigError) as caught:
            load_recipe(
                {"name": "r", "init": "tiny/base", "stages": [{"name": "s", "updates": 1}], "data": {"kind": kind}}
            )
        (line,) = str(caught.value).splitlines()
        assert line.startswith("Recipe: data: got ") and says in line and len(line) < 300


def test_a_mapping_that_contains_itself_is_refused() -> None:
    values: dict[str, object] = {}
    values["weights"] = values
    with pytest.raises(ConfigError, match="could not"):
        load_config(Run, values)
