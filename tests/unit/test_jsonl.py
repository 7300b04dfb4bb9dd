"""JSONL data of the user's own, `lrkit validate`, and the files of a checkpoint folder."""

import json
import shutil
from pathlib import Path

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from lrkit.cli.validate import kind_of, validate
from lrkit.contract.prompt import PromptFormat
from lrkit.data.jsonl import MAX_PROBLEMS, check_jsonl, read_jsonl
from lrkit.data.tokenizer import build_word_tokenizer
from lrkit.errors import CheckpointError, ConfigError, DataError, UserError
from lrkit.families.qwen2_vl.geometry import ImageGeometry
from lrkit.resources import find_any, resolve_checkpoint
from lrkit.runtime.checks.checkpoint_files import check_checkpoint
from lrkit.runtime.encode.processor import Processor

GOOD = {"image": "a.png", "question": "Where now ?", "steps": ["go to 1 .", "go to 2 ."], "answer": "2"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (80, 32)).save(tmp_path / "a.png")
    Image.new("RGB", (24, 16)).save(tmp_path / "b.png")
    return tmp_path


def write(folder: Path, *lines: object) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def make_processor() -> Processor:
    geometry = ImageGeometry(patch_size=4, min_pixels=64, max_pixels=80 * 32)
    words = ["go", "to", ".", "Where", "now", "?", *(str(number) for number in range(10))]
    return Processor(build_word_tokenizer(words), geometry, PromptFormat())


def test_samples_are_read_with_paths_relative_to_the_file(folder: Path) -> None:
    several = {**GOOD, "image": ["a.png", "b.png"], "id": "pair"}
    text = {"question": "Why?", "steps": [], "answer": "so"}
    samples = read_jsonl(write(folder, GOOD, "", several, text))
    assert [sample.images for sample in samples] == [(folder / "a.png",), (folder / "a.png", folder / "b.png"), ()]
    assert samples[0].steps == ("go to 1 .", "go to 2 .")
    assert [sample.id for sample in samples] == ["line 1", "pair", "line 4"]
    assert samples[2].info == {"line": 4}


BAD = [
    ("{", "is not valid JSON"),
    ("7", "holds a number; write an object"),
    ('["a"]', "holds a list; write an object"),
    (
        {**GOOD, "imagee": "a.png"},
        "unknown key 'imagee'; allowed: image, question, steps, answer, id; did you mean 'image'?",
    ),
    ({**GOOD, "image": "missing.png"}, "image 'missing.png' is not there"),
    ({**GOOD, "image": 3}, "image is a number; give a path"),
    ({**GOOD, "image": ["a.png", None]}, "image is a list; give a path"),
    ({**GOOD, "image": "https://example.org/a.png"}, "is no path; save the picture"),
    ({**GOOD, "steps": "go"}, "steps is a text; give a list"),
    ({**GOOD, "steps": ["go", 2]}, "steps[1] is a number"),
    ({**GOOD, "steps": ["go", " "]}, "steps[1] is empty"),
    ({**GOOD, "answer": 2}, "answer is a number; give a text in quotes"),
    ({**GOOD, "answer": None}, "answer is null"),
    ({**GOOD, "question": ""}, "question is empty"),
    ({"image": "a.png"}, "question is missing; give a text; answer is missing; give a text; steps is missing"),
    ({**GOOD, "id": 3}, "id is a number"),
    ('{"answer": "1", "answer": "2"}', "the key 'answer' is given twice"),
    ("[" * 100_000, "is nested more than 64 deep"),
]


@pytest.mark.parametrize(("line", "reason"), BAD, ids=[reason[:24] for _, reason in BAD])
def test_a_bad_line_is_named_by_file_line_and_reason(folder: Path, line: object, reason: str) -> None:
    path = write(folder, GOOD, line)
    with pytest.raises(DataError) as error:
        read_jsonl(path)
    assert str(error.value).startswith(f"{path}:2: ")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_all_bad_lines_are_collected_up_to_a_limit(folder: Path) -> None:
    path = write(folder, *[{"question": "x"}] * (MAX_PROBLEMS + 7))
    with pytest.raises(DataError) as error:
        read_jsonl(path)
    lines = str(error.value).splitlines()
    assert len(lines) == MAX_PROBLEMS + 1
    assert lines[-1] == f"{path}: and 7 more bad lines"


def test_an_id_given_twice_is_named_with_its_first_line(folder: Path) -> None:
    path = write(folder, {**GOOD, "id": "a"}, GOOD, {**GOOD, "id": "a"})
    with pytest.raises(DataError, match=r":3: id 'a' was used in line 1"):
        read_jsonl(path)


def test_files_that_are_no_data_are_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="holds no sample"):
        read_jsonl(write(folder, "", ""))
    with pytest.raises(DataError, match="no such file or folder"):
        read_jsonl(folder / "missing.jsonl")
    latin = folder / "latin.jsonl"
    latin.write_bytes(json.dumps(GOOD).encode() + b'\n{"answer": "caf\xe9"}\n')
    with pytest.raises(DataError, match=r"latin\.jsonl:2: is not UTF-8 \(byte 15\)"):
        read_jsonl(latin)


def test_a_byte_order_mark_is_no_problem(folder: Path) -> None:
    path = folder / "data.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())
    assert len(read_jsonl(path)) == 1


def test_checking_opens_pictures_and_encodes_texts(folder: Path) -> None:
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:50])
    path = write(folder, GOOD, {**GOOD, "image": "cut.png"}, {**GOOD, "answer": "zebra"}, {**GOOD, "image": []})
    plain = check_jsonl(path)
    assert [len(plain.samples), plain.num_bad_lines] == [3, 1]
    assert plain.lengths["spoken words"].max == 9
    read: list[int] = []
    scan = check_jsonl(path, make_processor(), read.append)
    assert sum(read) == path.stat().st_size
    assert len(scan.samples) == 2
    assert [problem.split(": ")[0] for problem in scan.problems] == [f"{path}:2", f"{path}:3"]
    assert "vocabulary lacks (zebra)" in scan.problems[1]
    assert scan.lengths["visual tokens"].max == 40
    assert scan.lengths["prompt tokens"].max == 40 + 2 + 3
    assert scan.lengths["spoken tokens"].max == 8 + 3


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A shipped adapter with its base beside it."""
    for name in ("base", "cot"):
        shutil.copytree(resolve_checkpoint(f"tiny/{name}"), tmp_path / name)
    return tmp_path / "cot"


def change(folder: Path, **values: object) -> None:
    path = folder / "reasoner.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_whole_checkpoint_has_no_problems(checkpoint: Path) -> None:
    report = check_checkpoint(checkpoint)
    assert report.problems == []
    assert report.tensors == {"adapter_model.safetensors": 56, "lrkit.safetensors": 2}
    assert report.settings is not None and report.settings.lora.rank == 32
    assert report.base == "../base"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


SPOILED = [
    (lambda folder: (folder / "lrkit.safetensors").unlink(), "has no lrkit.safetensors"),
    (lambda folder: cut(folder / "lrkit.safetensors"), "bytes where"),
    (lambda folder: (folder / "lrkit.safetensors").write_bytes(b"x" * 20), "damaged header"),
    (lambda folder: (folder / "adapter_config.json").unlink(), "adapter_model.safetensors"),
    (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer.json"),
    (lambda folder: change(folder, schema=2), "has schema 2, this lrkit reads 1"),
    (lambda folder: change(folder, base="../elsewhere"), "elsewhere, which is not there"),
    (lambda folder: change(folder, base=None), "has no model.safetensors"),
    (lambda folder: change(folder, latent_id=3), "latent token is 3"),
    (lambda folder: change(folder, baselines={"cot": "../gone"}), "the baseline for cot"),
    (lambda folder: change(folder, settings={"think": {"max_latent_step": 3}}), "did you mean 'max_latent_steps'"),
    (lambda folder: (folder / "reasoner.json").write_text("{"), "is not valid JSON"),
]


@pytest.mark.parametrize(("spoil", "says"), SPOILED, ids=[says for _, says in SPOILED])
def test_each_fault_of_a_checkpoint_is_named(checkpoint: Path, spoil, says: str) -> None:
    spoil(checkpoint)
    report = check_checkpoint(checkpoint)
    assert len(report.problems) == 1
    assert says in report.problems[0]
    assert str(checkpoint) in report.problems[0]
    with pytest.raises(CheckpointError):
        report.raise_if_bad()


@pytest.fixture
def app() -> typer.Typer:
    made = typer.Typer()
    made.command()(validate)
    return made


def test_validate_shows_counts_and_writes_json(folder: Path, tmp_path: Path, app: typer.Typer) -> None:
    tokens = tmp_path / "tokens"
    make_processor().save(tokens)
    (tokens / "config.json").write_text("{}")
    path, report = write(folder, GOOD, GOOD), folder / "report.json"
    result = CliRunner().invoke(app, [str(path), "--checkpoint", str(tokens), "--json", str(report)])
    assert result.exit_code == 0, result.output
    assert "2 good lines" in result.output
    found = json.loads(report.read_text())
    assert (found["kind"], found["ok"], found["samples"]) == ("data", True, 2)
    assert found["lengths"]["visual tokens"]["mean"] == 40


def test_validate_writes_json_for_bad_data_too(folder: Path, app: typer.Typer) -> None:
    path, report = write(folder, GOOD, {"question": "x"}), folder / "report.json"
    result = CliRunner().invoke(app, [str(path), "--json", str(report)])
    assert isinstance(result.exception, DataError)
    found = json.loads(report.read_text())
    assert (found["ok"], found["samples"], found["bad_lines"]) == (False, 1, 1)
    assert found["problems"] == str(result.exception).splitlines()


def test_validate_checks_recipes_and_checkpoints(folder: Path, checkpoint: Path, app: typer.Typer) -> None:
    recipe = folder / "recipe.yaml"
    recipe.write_text("name: mine\ninit: base\nstages:\n  - {name: one, updates: 3}\n")
    result = CliRunner().invoke(app, [str(recipe)])
    assert result.exit_code == 0, result.output
    assert "stages: one" in result.output
    recipe.write_text("name: mine\ninit: base\nstages:\n  - {name: one, update: 3}\n")
    result = CliRunner().invoke(app, [str(recipe)])
    assert isinstance(result.exception, ConfigError)
    assert "did you mean 'updates'?" in str(result.exception)
    result = CliRunner().invoke(app, [str(checkpoint)])
    assert result.exit_code == 0, result.output
    shutil.rmtree(checkpoint.parent / "base")
    assert isinstance(CliRunner().invoke(app, [str(checkpoint)]).exception, CheckpointError)


def test_validate_opens_the_lines_that_a_recipe_names(folder: Path, app: typer.Typer) -> None:
    data, recipe = write(folder, GOOD, {"question": "x"}), folder / "recipe.yaml"
    stage = "stages:\n  - {name: one, updates: 3, lengths: [9]}\n"
    recipe.write_text(f"name: mine\ninit: base\ndata: {{kind: jsonl, train: {data}}}\n{stage}")
    assert "data.jsonl:2: answer is missing" in str(CliRunner().invoke(app, [str(recipe)]).exception)
    write(folder, GOOD)
    assert "stage one draws chains of 9 steps" in str(CliRunner().invoke(app, [str(recipe)]).exception)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("trail-latent", "recipe"), ("trail-options", "sweep"), ("cpu-int4", "target"), ("smoke", "suite"),
        ("l4", "device"), ("smolvlm-256m", "shape"),
    ],
)  # fmt: skip
def test_every_kind_of_values_is_checked_as_what_it_is(name: str, kind: str, app: typer.Typer) -> None:
    path = find_any(f"{kind}/{name}").path
    assert kind_of(str(path)) == kind
    result = CliRunner().invoke(app, [str(path)])
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"{kind} ")


def test_what_is_checked_follows_from_the_path(folder: Path) -> None:
    assert kind_of(str(folder)) == "checkpoint"
    assert kind_of("x.jsonl") == "data"
    assert kind_of("trail-latent") == "recipe"
    for path in (str(folder / "a.png"), str(folder / "missing"), "no-such-recipe"):
        with pytest.raises(UserError):
            kind_of(path)
