"""A checkpoint or a bundle to the Hugging Face hub, and into a folder as it would be there. Torch-free but for `merge`.

huggingface_hub's own functions do the work (create_repo, create_commit, snapshot_download), under the names and
arguments of its ModelHubMixin. The mixin itself does not fit: it saves an object into a new folder, where a checkpoint
is a folder already, of gigabytes; it writes the arguments of `__init__` as config.json, which is the backbone's here;
it sends the whole folder, a pickle too; and it is a base class, which would import the package with every lrkit.

Place in the pipeline: `lrkit push`, `lrkit.push_to_hub`, `Reasoner.push_to_hub` -> published_files.py, card.py -> the
hub.
"""

import shutil
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrkit.contract.bundle.bundle_folder import is_bundle
from lrkit.contract.bundle.manifest import BUNDLE_FILE
from lrkit.errors import BundleError, CheckpointError, UserError, require
from lrkit.files import read_json, read_text
from lrkit.folders import staged_folder
from lrkit.publish.card import is_unfilled_card, write_card
from lrkit.publish.card_facts import facts_of
from lrkit.publish.published_files import CARD_FILE, INFO_FILE, Left, Part, Parts, is_own, parts_of
from lrkit.publish.told import LOG_IN, hub_package, repository, told
from lrkit.resources import resolve_checkpoint

DEFAULT_MESSAGE = "Published by lrkit"


@dataclass(frozen=True)
class Pushed:
    """What was sent, or with `dry_run` what would be."""

    repo_id: str
    sent: tuple[tuple[str, int], ...]
    """(name, bytes)"""
    left: tuple[Left, ...]
    """What of the folder stayed behind."""
    removed: tuple[str, ...] = ()
    """Files of an earlier push that this one has no more; unknown in a dry run."""
    url: str | None = None
    """Of the commit, or of the pull request; None in a dry run."""

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return sum(size for _, size in self.sent)


def push_to_hub(
    model: str | Path,
    repo_id: str,
    *,
    merge: bool = False,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    reports: Sequence[str | Path] = (),
    license: str | None = None,
    dry_run: bool = False,
) -> Pushed:
    """Publishes a checkpoint or a bundle as OWNER/NAME on the Hugging Face hub, with a card, in one commit; the
    repository is made where there is none.

    `model` is a folder, a run (its last checkpoint) or a shipped name. `merge` adds LoRA into the backbone's weights
    first, so that plain transformers loads the repository. `private` is for a new repository. `revision` is a branch,
    made where there is none. `reports` (of `lrkit eval --json` and `lrkit profile`) go into the card. With `dry_run`
    nothing is sent, nothing is asked of the hub, and a card that is there is not known: the result lists the files and
    their bytes.

    Raises:
        UserError: no such model, nothing that can be published, no token, no rights, or a hub that refuses.
    """
    repository(repo_id)
    with _whole(_found(model), merge, allow_download=not dry_run) as ready:
        parts = parts_of(ready)
        if dry_run:
            card = _card(parts, repo_id, reports, license, None)
            return Pushed(repo_id, _sizes(parts, card), parts.left)
        hub = hub_package()
        if not (token or hub.get_token()):
            raise UserError(f"there is no token of the hub on this machine; {LOG_IN}")
        api = hub.HfApi(token=token)
        with told(repo_id, revision):
            _ready(api, repo_id, private, revision)
            there = api.list_repo_files(repo_id, revision=revision)
        card = _card(parts, repo_id, reports, license, _card_there(api, repo_id, revision, there))
        gone = sorted(name for name in there if is_own(name) and name not in parts.names)
        operations = [hub.CommitOperationAdd(part.name, part.content) for part in (*parts.sent, Part(CARD_FILE, card))]
        operations += [hub.CommitOperationDelete(name) for name in gone]
        with told(repo_id, revision):
            done = api.create_commit(
                repo_id, operations, commit_message=commit_message or DEFAULT_MESSAGE, revision=revision,
                create_pr=create_pr,
            )  # fmt: skip
        return Pushed(repo_id, _sizes(parts, card), parts.left, tuple(gone), done.pr_url or done.commit_url)


def save_pretrained(
    model: str | Path,
    folder: str | Path,
    *,
    merge: bool = False,
    reports: Sequence[str | Path] = (),
    license: str | None = None,
    allow_download: bool = False,
) -> Path:
    """Writes into `folder` what `push_to_hub` would send, the card included, and returns it. Arguments as there. A
    README.md that is there already keeps what a hand has written. To merge, a base of the hub is fetched only with
    `allow_download`.

    Raises:
        UserError: no such model, or nothing that can be published.
        FileError: `folder` cannot be written, or holds other things.
    """
    target = Path(folder)
    with _whole(_found(model), merge, allow_download) as ready:
        parts = parts_of(ready)
        before = target / CARD_FILE
        card = _card(parts, target.absolute().name, reports, license, read_text(before) if before.is_file() else None)
        if target.is_dir() and any(target.iterdir()):
            parts_of(target)  # anything but a checkpoint or a bundle is not replaced
        with staged_folder(target, replace=True) as staging:
            for part in (*parts.sent, Part(CARD_FILE, card)):
                place = staging / part.name
                place.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(part.content, bytes):
                    place.write_bytes(part.content)
                else:
                    shutil.copyfile(part.content, place)
    return target


def _found(model: str | Path) -> Path:
    return Path(model) if is_bundle(Path(model)) else resolve_checkpoint(model)


@contextmanager
def _whole(folder: Path, merge: bool, allow_download: bool) -> Generator[Path]:
    """The folder, or a temporary one with LoRA added into the weights."""
    if not merge:
        yield folder
        return
    if is_bundle(folder):
        raise UserError(f"{folder} is a bundle, whose weights are in its program; leave --merge out")
    require("torch", "train")
    from lrkit.publish.whole import write_whole

    with tempfile.TemporaryDirectory(prefix="lrkit-push-") as place:
        whole = Path(place) / "model"
        write_whole(folder, whole, allow_download)
        if (folder / CARD_FILE).is_file():
            shutil.copyfile(folder / CARD_FILE, whole / CARD_FILE)
        yield whole


def _ready(api: Any, repo_id: str, private: bool | None, revision: str | None) -> None:
    """The repository and its branch are there afterwards.

    Raises:
        UserError: it is public, and private was asked for.
    """
    api.create_repo(repo_id, private=private, exist_ok=True)
    if private and not api.repo_info(repo_id).private:
        raise UserError(
            f"{repo_id} is there already and public, and --private is for a new repository; change it in its settings, "
            "or give another name"
        )
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)


def _card_there(api: Any, repo_id: str, revision: str | None, there: Sequence[str]) -> str | None:
    """The repository's card; None where it has none."""
    if CARD_FILE not in there:
        return None
    with told(repo_id, revision), tempfile.TemporaryDirectory() as place:  # not from the cache: somebody just wrote it
        return Path(api.hf_hub_download(repo_id, CARD_FILE, revision=revision, cache_dir=place)).read_text("utf-8")


def _card(parts: Parts, repo_id: str, reports: Sequence[str | Path], license: str | None, there: str | None) -> bytes:
    """The folder's own card goes before the one that is there, unless nobody has written in it."""
    told = _told(parts)
    facts = facts_of(repo_id, parts.kind, told, parts.folder, tuple(Path(one) for one in reports), license)
    file = parts.folder / CARD_FILE
    own = read_text(file) if file.is_file() else None
    if there is not None and (own is None or is_unfilled_card(own)):
        own = there
    return write_card(facts, own).encode()


def _told(parts: Parts) -> dict[str, Any]:
    """reasoner.json or bundle.json; of a plain Hugging Face folder nothing."""
    if parts.kind == "bundle":
        return read_json(parts.folder / BUNDLE_FILE, BundleError)
    file = parts.folder / INFO_FILE
    return read_json(file, CheckpointError) if file.is_file() else {}


def _sizes(parts: Parts, card: bytes) -> tuple[tuple[str, int], ...]:
    return tuple((part.name, part.num_bytes) for part in (*parts.sent, Part(CARD_FILE, card)))
