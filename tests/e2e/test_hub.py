"""Publish and fetch through huggingface_hub's own client, against a hub in a thread: checkpoints, bundles, refusals."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from lrkit import Reasoner, UserError, push_to_hub, save_pretrained
from lrkit.publish.card import BEGIN
from lrkit.publish.pull import pulled_folder
from lrkit.resources import resolve_checkpoint
from lrkit.runtime.engines.common.protocol import AskOptions
from tests.bundles import QUESTION, picture
from tests.commands import lrkit
from tests.hub_server import READER, TOKEN, Hub, Repository, hub_server
from tests.published_folders import adapter, with_strays
from tests.without_lrkit import ask_without_lrkit

ROOT = Path(__file__).resolve().parents[2]
ROOMS, TRAIL = ROOT / "docs" / "images" / "rooms.png", "Take 4 hops. Which room are you in? Start in room 3"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub, as HF_ENDPOINT, HF_HUB_CACHE and HF_TOKEN would name it before the package is imported."""
    with hub_server() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        place = f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", place)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "tokens"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        yield hub


def test_a_bundle_is_published_and_answers_from_the_hub_alike(bundle: Path, hub: Hub) -> None:
    done = push_to_hub(bundle, "me/rooms", private=True)
    listed = json.loads((bundle / "bundle.json").read_text())["files"]
    there = hub.repositories["me/rooms"]
    assert there.private and there.branches["main"].keys() == {"bundle.json", "README.md", *listed}
    assert done.url is not None and done.url.startswith(f"{hub.endpoint}/me/rooms/commit/")
    answered = Reasoner.from_pretrained("me/rooms", threads=1).ask(picture(), QUESTION)
    assert answered.text == Reasoner.load(bundle, threads=1).ask(picture(), QUESTION).text
    hub.asked.clear()
    again = Reasoner.from_pretrained("me/rooms", local_files_only=True, threads=1)
    assert again.ask(picture(), QUESTION).text == answered.text and hub.asked == []


def test_only_what_is_read_is_fetched_and_a_pickle_never(hub: Hub) -> None:
    push_to_hub("tiny/base", "me/rooms")
    hub.repositories["me/rooms"].branches["main"] |= {"pytorch_model.bin": b"pickle", "model.py": b"code"}
    folder = pulled_folder("me/rooms")
    names = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    assert {"model.safetensors", "reasoner.json", "README.md"} <= names
    assert not any(name.endswith((".bin", ".py")) for name in names)
    assert (folder / "model.safetensors").read_bytes() == (
        resolve_checkpoint("tiny/base") / "model.safetensors"
    ).read_bytes()


def test_pickles_alone_are_refused(hub: Hub) -> None:
    hub.repositories["me/old"] = Repository(branches={"main": {"config.json": b"{}", "pytorch_model.bin": b"pickle"}})
    with pytest.raises(UserError, match=r"me/old holds no safetensors, and pickles \(\.bin, \.pt\) are never loaded"):
        pulled_folder("me/old")
    hub.repositories["me/other"] = Repository(branches={"main": {"README.md": b"hello"}})
    with pytest.raises(UserError, match=r"me/other holds neither a checkpoint .* nor a bundle"):
        pulled_folder("me/other")


def test_a_card_on_the_hub_keeps_what_a_hand_wrote_and_old_weights_go(tmp_path: Path, hub: Hub) -> None:
    push_to_hub(adapter(tmp_path / "c"), "me/rooms")
    there = hub.repositories["me/rooms"].branches["main"]
    assert "adapter_model.safetensors" in there and BEGIN.encode() in there["README.md"]
    there["README.md"] += b"\nMine, written on the page.\n"
    there["examples.md"] = b"mine too"
    done = push_to_hub("tiny/base", "me/rooms", license="apache-2.0")
    card = there["README.md"].decode()
    assert "Mine, written on the page." in card and card.count(BEGIN) == 1 and "license: apache-2.0" in card
    assert set(done.removed) == {"adapter_config.json", "adapter_model.safetensors"} and "examples.md" in there
    assert not {"adapter_config.json", "adapter_model.safetensors"} & there.keys() and "model.safetensors" in there


def test_an_adapter_brings_its_base_and_may_go_whole(tmp_path: Path, hub: Hub) -> None:
    push_to_hub("tiny/base", "me/base")
    folder = adapter(tmp_path / "c", base="me/base")
    push_to_hub(folder, "me/rooms")
    assert "base_model: me/base" in hub.repositories["me/rooms"].branches["main"]["README.md"].decode()
    shipped = Reasoner.from_checkpoint("tiny").ask(ROOMS, TRAIL)
    answered = Reasoner.from_pretrained("me/rooms").ask(ROOMS, TRAIL)
    assert (answered.text, answered.latent_steps) == (shipped.text, shipped.latent_steps) and shipped.latent_steps > 1
    push_to_hub(folder, "me/whole", merge=True)
    there = hub.repositories["me/whole"].branches["main"]
    assert "model.safetensors" in there and "adapter_config.json" not in there
    card = there["README.md"].decode()
    assert "base_model: me/base" in card and "library_name: transformers" in card and "- lora" not in card
    assert Reasoner.from_pretrained("me/whole").ask(ROOMS, TRAIL).text == shipped.text


@pytest.mark.long
def test_pushed_latents_run_in_plain_transformers_by_the_name_of_the_repository(tmp_path: Path, hub: Hub) -> None:
    """The whole road, by transformers' own client: of a whole model, and of an adapter that peft puts over its base."""
    push_to_hub("tiny/base", "me/base")
    folder = adapter(tmp_path / "c", base="me/base")
    push_to_hub(folder, "me/rooms")
    push_to_hub(folder, "me/whole", merge=True)
    shipped = Reasoner.from_checkpoint("tiny")
    (expected,) = shipped.engine.generate([shipped.processor.encode_prompt([ROOMS], TRAIL)], AskOptions())
    own = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN}
    for name in ("me/whole", "me/rooms"):
        call = {"custom_generate": name, "checkpoint": name, "trust_remote_code": True, "batch": 1}
        asked = {"folder": name, "questions": [{"picture": str(ROOMS), "question": TRAIL}], "calls": [call]}
        ((found,),) = ask_without_lrkit(asked, tmp_path / "asked.json", **own)
        assert (found["ids"], found["latent_steps"]) == (expected.token_ids, expected.latent_steps)


def test_a_branch_is_made_and_fetched_by_its_name(tmp_path: Path, hub: Hub) -> None:
    push_to_hub(adapter(tmp_path / "c"), "me/rooms", revision="second", commit_message="more")
    there = hub.repositories["me/rooms"].branches
    assert there["main"] == {} and "reasoner.json" in there["second"]
    assert (pulled_folder("me/rooms", revision="second") / "reasoner.json").is_file()
    with pytest.raises(UserError, match=r"me/rooms has no revision 'third'"):
        pulled_folder("me/rooms", revision="third")


def test_a_dry_run_lists_files_and_asks_nothing(
    tmp_path: Path, hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    folder, file = with_strays(adapter(tmp_path / "c")), tmp_path / "pushed.json"
    assert lrkit("push", folder, "me/rooms", "--dry-run", "--json", file) == 0
    shown = capsys.readouterr()
    assert "1,253,208  adapter_model.safetensors" in shown.out and "11 files, not sent" in shown.out
    assert "stays: state.pt (training state, a pickle)" in shown.err and "state.pt" not in shown.out
    report = json.loads(file.read_text())
    assert report["sent"]["adapter_model.safetensors"] == 1253208 and report["url"] is None and hub.asked == []


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "no token": ({"token": None}, r"there is no token of the hub on this machine; log in with `hf auth login`"),
    "unknown token": ({"token": "hf_old"}, r"the hub does not know this token \(401\)|it is private and this token"),
    "reader": ({"token": READER}, r"this token may not do that in me/rooms \(403\); make one with the right to write"),
    "name": ({"repo": "rooms"}, r"'rooms' is no name of a repository; write OWNER/NAME, as in me/rooms"),
    "climbs": ({"repo": "../x/y"}, r"is no name of a repository"),
    "no network": ({"endpoint": "http://127.0.0.1:9"}, r"the hub cannot be reached at http://127\.0\.0\.1:9 \("),
    "public": ({"repo": "me/public", "private": True}, r"me/public is there already and public, and --private"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_push_that_is_refused_is_one_sentence(
    name: str, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, says = REFUSALS[name]
    hub.repositories["me/public"] = Repository()
    monkeypatch.setattr(constants, "ENDPOINT", given.get("endpoint", hub.endpoint))
    if (token := given.get("token", TOKEN)) is None:
        monkeypatch.delenv("HF_TOKEN")
    options = {"private": given.get("private"), "token": token}
    with pytest.raises(UserError, match=says) as refused:
        push_to_hub(adapter(tmp_path / "c"), given.get("repo", "me/rooms"), **options)
    assert len(str(refused.value).splitlines()) == 1
    assert not any("/commit/" in asked for asked in hub.asked)


def test_a_fetch_that_is_refused_is_one_sentence(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories |= {"me/gated": Repository(gated=True), "me/private": Repository(private=True)}
    monkeypatch.setenv("HF_TOKEN", READER)
    for name, says in {
        "me/gated": r"me/gated is gated: ask for access at http://127.*/me/gated, then log in",
        "me/nowhere": r"there is no repository me/nowhere, or it is private and this token may not see it",
        "rooms": r"'rooms' is no name of a repository",
    }.items():
        with pytest.raises(UserError, match=says):
            Reasoner.from_pretrained(name)
    with pytest.raises(UserError, match=r"me/rooms is not in the cache \(.*\) and cannot be fetched now; leave local"):
        Reasoner.from_pretrained("me/rooms", local_files_only=True)


def test_a_folder_is_taken_as_it_is_and_saved_as_it_would_be_published(bundle: Path, tmp_path: Path, hub: Hub) -> None:
    reasoner = Reasoner.from_pretrained(bundle, threads=1)
    report = Path(__file__).resolve().parents[2] / "profiles" / "reports" / "tiny-eval.json"
    saved = reasoner.save_pretrained(tmp_path / "saved", reports=[str(report)])
    assert "## Figures" in (saved / "README.md").read_text()
    assert (saved / "README.md").read_text().startswith("---\nlibrary_name: lrkit\n") and hub.asked == []
    (saved / "README.md").write_text("Mine.\n")
    assert save_pretrained(bundle, saved) == saved and "Mine.\n" in (saved / "README.md").read_text()
    assert Reasoner.from_pretrained(saved, threads=1).ask(picture(), QUESTION).text
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("keep me")
    with pytest.raises(UserError, match=r"other is neither a checkpoint nor a bundle"):
        save_pretrained(bundle, tmp_path / "other")


def test_without_a_network_the_cache_answers_and_torch_is_not_imported(bundle: Path, tmp_path: Path, hub: Hub) -> None:
    push_to_hub(bundle, "me/rooms")
    pulled_folder("me/rooms")
    picture().save(tmp_path / "p.png")
    program = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from lrkit import Reasoner, UserError\n"
        "reasoner = Reasoner.from_pretrained('me/rooms', threads=1)\n"
        f"print(repr(reasoner.ask({str(tmp_path / 'p.png')!r}, {QUESTION!r}).text))\n"
        "try: Reasoner.from_pretrained('me/other')\n"
        "except UserError as error: print(error)\n"
    )
    own = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **own},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    answered, refused = done.stdout.splitlines()
    assert answered == repr(Reasoner.load(bundle, threads=1).ask(picture(), QUESTION).text)
    assert refused.startswith("me/other is not in the cache (") and "HF_HUB_OFFLINE" in refused


def test_links_of_a_bundle_lead_into_the_cache_alone(bundle: Path, tmp_path: Path, hub: Hub) -> None:
    push_to_hub(bundle, "me/rooms")
    folder = pulled_folder("me/rooms")
    (tmp_path / "stranger.json").write_bytes((folder / "prompt.json").read_bytes())
    (folder / "prompt.json").unlink()
    (folder / "prompt.json").symlink_to(tmp_path / "stranger.json")
    with pytest.raises(UserError, match=r"prompt\.json is a link that leads out of the bundle"):
        Reasoner.load(folder)
    shutil.rmtree(tmp_path / "cache")
