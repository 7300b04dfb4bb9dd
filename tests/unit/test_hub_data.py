"""Published data sets: each schema as its publisher writes it, and whatever is wrong with a row or a file said once."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from lrkit.config import load_config
from lrkit.contract.sample import Sample
from lrkit.data.hub.datasets_package import opening
from lrkit.data.hub.hub_data import HubData
from lrkit.data.sources import load_samples, scan_samples
from lrkit.errors import ConfigError, DataError, LrkitError
from lrkit.pictures.load import load_image
from lrkit.train.stage import Stage
from tests import hub_files
from tests.commands import lrkit
from tests.hub_files import M3COT, WRITERS, encoded, m3cot, scienceqa, write_json, write_m3cot, write_parquet

STAGE = Stage(name="say", updates=1)


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The package's copies of rows, and no network."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        for name in ("HF_DATASETS_CACHE", "HF_MODULES_CACHE"):
            patch.setattr(datasets.config, name, folder / name)
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield


def data(name: object, columns: object, **fields: Any) -> HubData:
    return load_config(HubData, {"kind": "hub", "name": str(name), "columns": columns, **fields})


def drawn(given: HubData, count: int = 6) -> list[Sample]:
    import numpy as np

    return given.open(0, [STAGE]).draw(STAGE, count, np.random.default_rng(0))


@pytest.mark.parametrize("schema", list(WRITERS))
def test_each_published_schema_is_read(schema: str, tmp_path: Path) -> None:
    name = WRITERS[schema](tmp_path / schema)
    samples = load_samples(f"hub:{name}#{schema}", None)
    wanted: dict[str, tuple[str, tuple[str, ...], str, int]] = {
        "m3cot": (
            "Look at the map.\nWhich land is low?\n(A) the blue one\n(B) the green one\n(C) none",
            ("The map has a legend.", "Green stands for 3.5 m, i.e. low land.", "So the answer is B."), "B", 1,
        ),
        "scienceqa": ("What is it?\n(A) a bird\n(B) a plane", (), "A", 0),
        "gqa": ("What color is the bowl?", ("select: bowl", "query: color"), "red", 1),
        "onethinker": ("What is red?", ("The square is one colour.", "It is red."), "the square", 1),
        "tabmwp": (
            "How many cups are there? (Unit: cups)",
            ("Read the table.", "1,000 + 12 = 1,012", "There are 1,012 cups."), "1,012", 1,
        ),
    }  # fmt: skip
    first = samples[0]
    assert (first.question, first.steps, first.answer, len(first.images)) == wanted[schema]
    for sample in samples:
        for image in sample.images:
            assert min(load_image(image).size) >= 30
    second = {"scienceqa": "B", "onethinker": "red", "tabmwp": "no"}
    assert schema not in second or samples[1].answer == second[schema]
    scan = scan_samples(f"hub:{name}#{schema}")
    assert len(scan.samples) == len(samples) and scan.num_bad_lines == 0 and scan.lengths["images"].max == 1
    assert [s.question for s in load_samples(f"hub:{name}#{schema}", 1)] == [first.question], "a few are streamed"


def test_ways_of_naming_rows_and_pictures(tmp_path: Path) -> None:
    """One data set, as files of the hub, a pattern, a saved folder, plain structs, paths, PIL pictures, several."""
    rows = [m3cot(number) for number in range(3)]
    folder = write_m3cot(tmp_path / "published", (3, 2, 1))
    Image.new("RGB", (48, 32)).save(tmp_path / "a.png")
    plain = write_parquet(tmp_path / "plain.parquet", rows)
    pil = [{**row, "image": Image.new("RGB", (48, 32), "red")} for row in rows]
    write_parquet(tmp_path / "pil.parquet", pil, M3COT)
    saved = tmp_path / "saved"
    datasets.Dataset.from_list(rows, datasets.Features(M3COT)).save_to_disk(str(saved))
    several = [{**row, "image": [row["image"], row["image"]]} for row in rows]
    write_parquet(tmp_path / "several.parquet", several, M3COT | {"image": datasets.List(datasets.Image())})
    write_json(tmp_path / "paths.json", [{**row, "image": "a.png"} for row in rows])
    (tmp_path / "lines.jsonl").write_text("\n".join(json.dumps({**row, "image": ["a.png"]}) for row in rows))
    for name, images in {
        str(folder): 1, str(plain): 1, str(tmp_path / "pil.parquet"): 1, str(saved): 1,
        str(tmp_path / "several.parquet"): 2, str(tmp_path / "paths.json"): 1, str(tmp_path / "lines.jsonl"): 1,
        str(folder / "data" / "train-*.parquet"): 1,
    }.items():  # fmt: skip
        given = data(name, "m3cot")
        for sample in drawn(given, 3):
            assert len(sample.images) == images, name
            assert {load_image(image).size for image in sample.images} == {(48, 32)}, name
        assert given.digests() and given.digests() == data(name, "m3cot").digests()
    parts = data(folder, "m3cot", validation="validation")
    source = parts.open(0, [STAGE])
    assert {n: len(found) for n, found in source.validation(STAGE, 9).items()} == {3: 2}
    assert set(source.files()) == {"train/train-00000-of-00001.parquet", "validation/validation-00000-of-00001.parquet"}
    own = {"image": "image", "question": "question", "answer": "answer", "steps": ["context", "rationale"]}
    mapped = drawn(data(plain, own, steps="paragraphs", max_steps=1), 3)
    assert {sample.steps for sample in mapped} == {
        (hub_files.RATIONALE,), (f"Look at the map. {hub_files.RATIONALE}",)
    }  # fmt: skip
    assert {sample.question for sample in mapped} == {"Which land is low?"}


def bad_rows() -> dict[str, tuple[dict[str, Any], str]]:
    """Change of a row -> what is said."""
    return {
        "null picture": ({"image": None}, "image is null; give a picture, or set without_image: take"),
        "no bytes": ({"image": {"bytes": None, "path": None}}, "neither bytes nor a path"),
        "empty bytes": ({"image": {"bytes": b"", "path": None}}, "a picture has no bytes"),
        "no file": ({"image": {"bytes": None, "path": "gone.png"}}, "picture 'gone.png' is not there"),
        "address": ({"image": {"bytes": None, "path": "https://a.b/c.png"}}, "is no path; save the picture"),
        "no question": ({"question": ""}, "question is empty; give a text"),
        "null question": ({"question": None}, "question is null; give a text"),
        "control": ({"question": "a\x07b"}, r"question holds the control character U\+0007"),
        "beyond": ({"answer": "D"}, "answer 'D' is none of the 3 choices; give a letter A to C"),
        "no answer": ({"answer": None}, "answer is null; give a text, a number or the letter of a choice"),
        "one choice": ({"choices": ["a"]}, "choices are 1 in number"),
        "5,000 choices": ({"choices": [str(n) for n in range(5000)]}, "choices are 5000 in number"),
        "no choices": ({"choices": []}, "choices is null; give the choices"),
        "empty choice": ({"choices": ["a", "", "c"]}, "choice B is empty"),
        "long": ({"rationale": "a" * 70_000}, "rationale has 70000 characters; at most 65536"),
    }


def test_rows_that_cannot_be_used_are_named_or_counted(tmp_path: Path) -> None:
    changes = bad_rows()
    rows = [m3cot(0), *({**m3cot(1), **change} for change, _ in changes.values()), {**m3cot(2), "rationale": ""}]
    file = write_parquet(tmp_path / "bad.parquet", rows)
    scan = data(file, "m3cot").scan_part("train")
    assert scan.num_bad_lines == len(changes) and [s.steps for s in scan.samples][1] == (), "no rationale: no step"
    for number, (problem, (_, said)) in enumerate(zip(scan.problems, changes.values(), strict=True), start=2):
        assert problem.startswith(f"{file}:{number}: ")
        with pytest.raises(AssertionError, match=said):
            raise AssertionError(problem)
    with pytest.raises(DataError) as refused:
        drawn(data(file, "m3cot"))
    assert str(refused.value).splitlines() == scan.problems
    source = data(file, "m3cot", on_bad="skip").open(0, [STAGE])
    assert source.num_samples(STAGE) == 2
    assert source.notes() == [f"{file}: {len(changes)} bad rows were left out; the first: {scan.problems[0]}"]
    assert source.notes() == []


def test_damaged_pictures_are_found_by_the_check_and_by_skipping(tmp_path: Path) -> None:
    whole = encoded(3, (64, 64), "JPEG")
    rows = [m3cot(0), {**m3cot(1), "image": {"bytes": whole[: len(whole) // 2], "path": None}}, m3cot(2)]
    rows += [{**m3cot(3), "image": {"bytes": b"no picture at all", "path": None}}]
    file = write_parquet(tmp_path / "cut.parquet", rows, M3COT)
    scan = data(file, "m3cot").scan_part("train")
    assert [problem.split(": ")[0] for problem in scan.problems] == [f"{file}:2", f"{file}:4"]
    assert "damaged or cut off" in scan.problems[0] and "is not an image file" in scan.problems[1]
    assert data(file, "m3cot").open(0, [STAGE]).num_samples(STAGE) == 4, "a run opens a picture when it is drawn"
    assert data(file, "m3cot", on_bad="skip").open(0, [STAGE]).num_samples(STAGE) == 2
    assert len(load_samples(f"hub:{file}#m3cot,on_bad=skip", None)) == 2
    stream = data(file, "m3cot", on_bad="skip", streaming=True).open(0, [STAGE])
    assert {s.id for s in stream.draw(STAGE, 4, None)} == {"geography-0", "geography-2"}  # pyright: ignore
    assert stream.notes()[0].startswith(f"{file}: ")


def wrong(folder: Path) -> dict[str, tuple[dict[str, Any], str]]:
    published, empty = write_m3cot(folder / "published"), folder / "empty"
    empty.mkdir()
    file = write_parquet(folder / "a.parquet", [scienceqa(1)], hub_files.SCIENCEQA)
    none = write_parquet(folder / "none.parquet", [], M3COT)
    (folder / "broken.parquet").write_bytes(b"PAR1 this is no parquet PAR1")
    (folder / "broken.json").write_text("[{]")
    (folder / "rows.txt").write_text("x")
    write_json(folder / "number.json", [1, 2])
    nested: Any = []
    for _ in range(3000):
        nested = [nested]
    (folder / "deep.json").write_text("[" * 3000 + "]" * 3000)
    mapping = {"question": "question", "answer": "answer", "answer_as": "letter"}
    return {
        "no such split": ({"name": published, "split": "dev"}, "has no split 'dev'; it has train, validation, test"),
        "split of a file": ({"name": file, "split": "test"}, "a file is one split, and has none of the name 'test'"),
        "validation of a file": ({"name": file, "validation": "val"}, "leave it out, or give validation a file"),
        "another schema": ({"name": file, "columns": "m3cot"}, "has no column rationale; it has .*choose another"),
        "own mapping": ({"name": file, "columns": {"question": "qestion"}}, "has no column qestion; .*'question'"),
        "letter": ({"name": file, "columns": mapping}, "answer_as: letter needs data.columns.choices"),
        "no row": ({"name": none}, "holds no row in this split; check name and split"),
        "nothing": ({"name": folder / "gone.parquet"}, "there is no such file or folder; give ORG/NAME of the hub"),
        "no match": ({"name": f"{folder}/*.pq"}, "there is no such file or folder"),
        "several kinds": ({"name": f"{folder}/broken.*"}, "names files ending in .json, .parquet; give"),
        "kind": ({"name": folder / "rows.txt"}, "names files ending in .txt; give ORG/NAME"),
        "parquet": ({"name": folder / "broken.parquet"}, "cannot be read .*copy the files again"),
        "json": ({"name": folder / "broken.json"}, "is not valid JSON .*line 1"),
        "numbers": ({"name": folder / "number.json"}, "holds no rows; write a list of objects"),
        "deep": ({"name": folder / "deep.json"}, "is nested more than"),
        "streamed json": ({"name": folder / "number.json", "streaming": True}, "JSON files are read whole"),
        "folder": ({"name": empty}, "holds no data files that can be read"),
        "config of a file": ({"name": file, "config": "x"}, "a file has no config and no revision"),
        "offline": ({"name": "SOME/Thing"}, "is not on this machine and cannot be fetched from the hub; check the net"),
        "NUL": ({"name": "a\0b"}, "there is no such file|is no path of a data set"),
        "long": ({"name": "a" * 900}, "is no path of a data set|there is no such file"),
    }  # fmt: skip


def test_whatever_is_wrong_with_a_data_set_is_one_sentence(tmp_path: Path) -> None:
    for case, (values, said) in wrong(tmp_path).items():
        given = data(values.pop("name"), values.pop("columns", "m3cot"), **values)
        with pytest.raises(LrkitError, match=said) as caught:
            given.open(0, [STAGE])
        assert len(str(caught.value).splitlines()) == 1, case
    for values, said in (
        ({"columns": "m4cot"}, "columns: .*'m3cot', 'scienceqa', 'gqa', 'onethinker', 'tabmwp' or 'tabmwp-text'"),
        ({"columns": {"qeustion": "q"}}, "columns.*qeustion: unknown key"),
        ({"steps": "words"}, "steps: .*'auto', 'paragraphs' or 'sentences'"),
        ({"max_steps": 0}, "max_steps: got 0"),
        ({"on_bad": "ignore"}, "on_bad: .*'refuse' or 'skip'"),
    ):
        with pytest.raises(ConfigError, match=said):
            data("a/b", **{"columns": "m3cot", **values})
    for name in ("hub:a/b", "hub:#m3cot", "hub:a/b#m4cot", "hub:a/b#m3cot,streaming"):
        with pytest.raises(DataError, match="names no data set; write hub:NAME#COLUMNS or hub:NAME#COLUMNS/SPLIT"):
            load_samples(name, 1)
    with pytest.raises(DataError, match=r"xyz: unknown key.*write hub:NAME#COLUMNS"):
        load_samples("hub:a/b#m3cot,xyz=1", 1)


def test_stages_that_a_stream_cannot_serve_are_refused(tmp_path: Path) -> None:
    streamed = data("a/b", "m3cot", streaming=True)
    by_rows = Stage(name="say", epochs=1, batches="equal")
    assert [problem[:12] for problem in streamed.stage_problems(by_rows)] == ["epochs count", "a stream giv"]
    assert list(data("a/b", "m3cot").stage_problems(by_rows)) == []
    assert list(data("a/b", "m3cot", buffer=9).problems()) == ["data.buffer belongs to streaming: true; leave it out"]
    file = write_parquet(tmp_path / "a.parquet", [m3cot(n) for n in range(3)], M3COT)
    none = Stage(name="long", updates=1, lengths=(9,))
    with pytest.raises(DataError, match=r"stage long: .*a.parquet has no row with \[9\] steps that can be used"):
        data(file, "m3cot", streaming=True).open(0, [none]).draw(none, 1, None)  # pyright: ignore


def test_a_stream_goes_on_exactly_and_its_order_follows_the_seed(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a-0.parquet", [m3cot(n) for n in range(7)], M3COT)
    write_parquet(tmp_path / "a-1.parquet", [m3cot(n) for n in range(7, 11)], M3COT)
    given = data(f"{tmp_path}/a-*.parquet", "m3cot", streaming=True, buffer=4)

    def ids(source: Any, count: int) -> list[str]:
        return [sample.id for sample in source.draw(STAGE, count, None)]

    whole = ids(given.open(0, [STAGE]), 40)
    assert all(sorted(whole[at : at + 11]) == sorted({*whole}) for at in (0, 11, 22)), "each row once a turn"
    assert len({tuple(whole[at : at + 11]) for at in (0, 11, 22)}) == 3, "in another order each turn"
    assert ids(given.open(1, [STAGE]), 11) != whole[:11]
    for stop in (0, 1, 4, 7, 10, 11, 13, 25):
        first = given.open(0, [STAGE])
        assert ids(first, stop) == whole[:stop]
        saved = first.state()
        ids(first, 5)  # what was drawn ahead is not in the state
        second = given.open(0, [STAGE])
        ids(second, 9)
        second.load_state(saved)
        assert ids(second, 12) == whole[stop : stop + 12], stop
        first.load_state(saved)
        assert ids(first, 12) == whole[stop : stop + 12], stop


@pytest.mark.skipif("LRKIT_TABMWP" not in os.environ, reason="LRKIT_TABMWP names no folder with TabMWP's problems")
def test_the_published_tables_are_read() -> None:
    folder = Path(os.environ["LRKIT_TABMWP"])
    for file in sorted(folder.glob("problems_*.json")):
        samples = load_samples(f"hub:{file}#tabmwp", None)
        assert len(samples) >= 100 and all(len(s.images) == 1 and 1 <= len(s.steps) <= 40 for s in samples)


def test_the_verbs_take_published_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_m3cot(tmp_path / "m3cot")
    report = tmp_path / "findings.json"
    assert lrkit("validate", f"hub:{folder}#m3cot/test", "--json", str(report)) == 0
    found = json.loads(report.read_text())
    assert found["samples"] == 3 and found["lengths"]["steps"]["max"] == 3
    assert lrkit("validate", f"hub:{folder}#m3cot/dev") == 2
    assert "has no split 'dev'" in capsys.readouterr().err


def test_a_base_install_names_the_extra_and_still_reads_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = write_parquet(tmp_path / "a.parquet", [m3cot(0)], M3COT)
    problems = WRITERS["tabmwp"](tmp_path / "tables")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        LrkitError, match=r'needs the package datasets, which is not installed; pip install "lrkit\[data\]"'
    ):
        load_samples(f"hub:{parquet}#m3cot", 1)
    assert len(load_samples(f"hub:{problems}#tabmwp", None)) == 3


def test_a_table_of_tabmwp_is_told_as_text_under_its_title(tmp_path: Path) -> None:
    problems = WRITERS["tabmwp"](tmp_path / "tables")
    told, shown = (load_samples(f"hub:{problems}#{columns}", None) for columns in ("tabmwp-text", "tabmwp"))
    rows = json.loads(problems.read_text())
    for text, picture, row in zip(told, shown, rows.values(), strict=True):
        assert text.images == () and len(picture.images) == 1
        title = row.get("table_title")
        before = f"{title}\n{row['table']}\n" if title else f"{row['table']}\n"
        assert text.question == before + picture.question
        assert (text.steps, text.answer) == (picture.steps, picture.answer)


def write_gqa_of_the_hub(folder: Path) -> Path:
    """Questions and pictures in configurations of their own, with a card that names them."""
    questions = [
        {
            "id": f"0{n}",
            "imageId": f"n{n % 2}",
            "question": "What color?",
            "answer": "red",
            "semanticStr": "query: color [0]",
        }
        for n in range(3)
    ]
    pictures = [{"id": f"n{n}", "image": {"bytes": encoded(n, (40 + n, 30)), "path": None}} for n in range(2)]
    named = {"testdev_balanced_instructions": questions, "testdev_balanced_images": pictures}
    card = "".join(
        f"- config_name: {name}\n  data_files:\n  - {{split: testdev, path: '{name}/testdev-*'}}\n" for name in named
    )
    for name, rows in named.items():
        write_parquet(folder / name / "testdev-00000-of-00001.parquet", rows)
    (folder / "README.md").write_text(f"---\nconfigs:\n{card}---\n")
    return folder


def test_pictures_may_have_rows_of_their_own(tmp_path: Path) -> None:
    folder = write_gqa_of_the_hub(tmp_path / "GQA")
    fields = {"config": "testdev_balanced_instructions", "split": "testdev"}
    for streaming in (False, True):
        given = data(folder, "gqa", **fields, streaming=streaming)
        found = {sample.id: load_image(sample.images[0]).size for sample in drawn(given, 3)}
        assert found == {"00": (40, 30), "01": (41, 30), "02": (40, 30)}
    assert {name.partition("/")[2].split("/")[0] for name in given.digests()} == {
        "testdev-00000-of-00001.parquet", "pictures",
    }  # fmt: skip
    named = f"hub:{folder}#gqa/testdev,config=testdev_balanced_instructions"
    assert [sample.steps for sample in load_samples(named, 1)] == [("query: color",)]
    with pytest.raises(DataError, match=r"GQA: .*gone"):
        data(folder, "gqa", **fields, pictures_config="gone").open(0, [STAGE])
    with pytest.raises(DataError, match="has no column image; choose another pictures_config"):
        data(folder, "gqa", **fields, pictures_config=fields["config"]).open(0, [STAGE])
    with pytest.raises(DataError, match=r"give one of its configurations as config"):
        data(folder, "gqa", split="testdev").open(0, [STAGE])


def test_what_the_hub_refuses_is_one_sentence() -> None:
    from datasets.exceptions import DatasetNotFoundError

    for error, said in (
        (
            DatasetNotFoundError("Dataset 'a/b' is a gated dataset on the Hub."),
            "a/b: is gated on the hub; accept its terms",
        ),
        (DatasetNotFoundError("Dataset 'a/b' doesn't exist on the Hub."), "a/b: is not on the hub, or private"),
        (
            ConnectionError("x" * 999),
            "a/b: is not on this machine and cannot be fetched from the hub; check the network",
        ),
        (RuntimeError("line\nline"), r"a/b: cannot be read \(line line\); copy the files again"),
    ):
        with pytest.raises(DataError, match=said) as caught, opening("a/b"):
            raise error
        assert "\n" not in str(caught.value)


def test_a_parquet_file_is_told_how_it_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_parquet(tmp_path / "a.parquet", [m3cot(0)], M3COT)
    with pytest.raises(DataError, match=rf"is a parquet file; write hub:{file}#COLUMNS"):
        load_samples(str(file), 1)
    assert lrkit("validate", str(file)) == 2
    assert f"write hub:{file}#COLUMNS" in "".join(capsys.readouterr().err.split("\n"))
