"""The examples in Node.js, C++ and Java: answers, steps and refusals on the same bundle are those of Python.

tests/languages.py says where each of them runs.
"""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from lrkit import Reasoner
from lrkit.contract.bundle.manifest import digest
from lrkit.data.trail import trail_set
from tests.bundles import QUESTION, add_front, picture
from tests.commands import lrkit
from tests.conftest import MadeOnce
from tests.languages import LANGUAGES, Command, run

BOARDS = 12
# C++ is compiled first, and Java starts slowly.
ALL = ["node", pytest.param("cpp", marks=pytest.mark.long), pytest.param("java", marks=pytest.mark.long)]


@pytest.fixture(params=ALL)
def ask(request: pytest.FixtureRequest, made_once: MadeOnce) -> Command:
    """The command of one language."""
    name = request.param

    def write(folder: Path) -> Path:
        command = folder / "command.json"
        command.write_text(json.dumps(LANGUAGES[name](folder)), encoding="utf-8")
        return command

    return json.loads(made_once(f"asks-in-{name}", write).read_text(encoding="utf-8"))


@pytest.fixture
def fronted(bundle: Path, made_once: MadeOnce) -> Path:
    """`bundle` with a front. Shared."""
    return made_once("bundle-with-front", lambda folder: add_front(Path(shutil.copytree(bundle, folder / "bundle"))))


@pytest.fixture
def rooms(tmp_path: Path) -> Path:
    path = tmp_path / "rooms.png"
    picture().save(path)
    return path


def same_as_python(ask: Command, bundle: Path, board: Path, question: str, mode) -> None:
    done = run([*ask, str(bundle), str(board), question, mode])
    assert done.returncode == 0, done.stderr
    answer = Reasoner.open(bundle).baseline(mode).ask(board, question, mode)
    assert done.stdout.removesuffix("\n") == answer.text != ""
    expected = (answer.ar_steps, answer.latent_steps, answer.spoken_tokens)
    assert "{} autoregressive steps ({} latent, {} tokens spoken), ".format(*expected) in done.stderr


def rewrite(bundle: Path, name: str, **values: object) -> None:
    """Changes a JSON file of a bundle, which then knows of it."""
    path, manifest = bundle / name, bundle / "bundle.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **values}), encoding="utf-8")
    told = json.loads(manifest.read_text(encoding="utf-8"))
    told["files"][name] = digest(path).model_dump()
    manifest.write_text(json.dumps(told), encoding="utf-8")


@pytest.mark.parametrize("mode", ["latent", "cot", "direct"])
def test_the_answer_is_that_of_python(fronted: Path, ask: Command, rooms: Path, mode) -> None:
    same_as_python(ask, fronted, rooms, QUESTION, mode)


def test_a_gray_picture_is_read_as_it_is(fronted: Path, ask: Command, tmp_path: Path) -> None:
    """Java takes the values of a gray PNG for light, and brightens them."""
    picture().convert("L").save(tmp_path / "gray.png")
    same_as_python(ask, fronted, tmp_path / "gray.png", QUESTION, "cot")


def test_visual_tokens_count_as_the_bundle_says(own_bundle: Path, ask: Command, rooms: Path) -> None:
    """The model was trained on the grid, so that what it then says is another thing."""
    rewrite(own_bundle, "preprocessor_config.json", visual_positions="sequence")
    same_as_python(ask, add_front(own_bundle), rooms, QUESTION, "cot")


def test_a_control_token_may_follow_punctuation(own_bundle: Path, ask: Command, rooms: Path) -> None:
    """`?<|im_end|>` was looked up as one word in Node.js."""
    rewrite(own_bundle, "prompt.json", template="{images}{question}?<|im_end|>")
    same_as_python(ask, add_front(own_bundle), rooms, QUESTION, "cot")


@pytest.mark.long
def test_boards_of_the_shipped_model(made_once: MadeOnce, ask: Command, tmp_path: Path) -> None:
    def write(folder: Path) -> Path:
        assert lrkit("export", "tiny", "--int4", "front=true", "--samples", "8", "-o", folder / "tiny-int4") == 0
        return folder / "tiny-int4"

    bundle = made_once("tiny-int4", write)
    for index, sample in enumerate(trail_set("main", "test", BOARDS, seed=9)):
        board, found = tmp_path / f"{index}.png", sample.images[0]
        assert isinstance(found, Image.Image)
        found.save(board)
        same_as_python(ask, bundle, board, sample.question, ("latent", "latent", "cot", "direct")[index % 4])


def refused(ask: Command, *words: object) -> str:
    """The one sentence of an exit with code 2."""
    done = run([*ask, *map(str, words)])
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    return done.stderr


def test_what_cannot_be_asked_is_refused(fronted: Path, ask: Command, rooms: Path, tmp_path: Path) -> None:
    odd, glass, text = (tmp_path / name for name in ("odd.png", "glass.png", "text.png"))
    picture().resize((81, 32)).save(odd)
    see_through = picture().convert("RGBA")
    see_through.putpixel((3, 3), (1, 2, 3, 254))
    see_through.save(glass)
    text.write_text("no picture")
    told = refused(ask, fronted, odd, QUESTION)
    assert "the picture has 81 x 32 pixels" in told and "scale it first" in told
    assert "transparent in places" in refused(ask, fronted, glass, QUESTION)
    assert 'does not know the word "Where"' in refused(ask, fronted, rooms, "Where are you?")
    assert "there is no mode loud" in refused(ask, fronted, rooms, QUESTION, "loud")
    assert "usage: " in refused(ask, fronted, rooms)
    assert "bundle.json" in refused(ask, tmp_path, rooms, QUESTION)
    refused(ask, fronted, text, QUESTION)
    refused(ask, fronted, tmp_path / "none.png", QUESTION)
    refused(ask, fronted, rooms, "<|image_pad|>")


def test_an_altered_program_is_refused(own_bundle: Path, ask: Command, rooms: Path) -> None:
    """C++ looks at its length alone."""
    path = add_front(own_bundle) / "latent.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    assert "latent.onnx was altered" in refused(ask, own_bundle, rooms, QUESTION)


def test_only_javascript_takes_a_bundle_without_a_front(bundle: Path, ask: Command, rooms: Path) -> None:
    if ask[-1].endswith(".mjs"):
        same_as_python(ask, bundle, rooms, QUESTION, "latent")
    else:
        assert "the bundle has no front; export it with front=true" in refused(ask, bundle, rooms, QUESTION)
