"""What to say where the hub refuses, or is not there: one sentence for each of huggingface_hub's errors. Torch-free."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lrkit.errors import UserError, clean, one_line, require, shown
from lrkit.pretrained import is_hub_id

LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def hub_package() -> Any:
    """huggingface_hub, which every install has: tokenizers needs it."""
    return require("huggingface_hub", "train")


def repository(name: str) -> str:
    """A repository's name, checked.

    Raises:
        UserError: it is not written as OWNER/NAME.
    """
    if not is_hub_id(name):
        raise UserError(f"{shown(name)} is no name of a repository; write OWNER/NAME, as in me/rooms")
    return name


@contextmanager
def told(repo_id: str, revision: str | None = None, cache_dir: str | Path | None = None) -> Generator[None]:
    """A context in which what huggingface_hub raises becomes one sentence.

    Raises:
        UserError: as said there.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the package and those below it raise what they like
        raise UserError(sentence(error, repo_id, revision, cache_dir)) from error


def sentence(error: Exception, repo_id: str, revision: str | None = None, cache_dir: str | Path | None = None) -> str:
    """What happened, and what to do."""
    hub = hub_package()
    errors, place = hub.errors, f"{hub.constants.ENDPOINT}/{repo_id}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.LocalTokenNotFoundError):
        return f"there is no token of the hub on this machine; {LOG_IN}"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"{repo_id} was not asked for, because HF_HUB_OFFLINE is set; take it away to use the network"
    if isinstance(error, errors.GatedRepoError):
        return f"{repo_id} is gated: ask for access at {place}, then {LOG_IN}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo_id} has no revision {shown(revision or 'main')}; {place} lists its branches and tags"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"there is no repository {repo_id}, or it is private and this token may not see it; check the name, or "
            f"{LOG_IN}"
        )
    if status == 401:
        return f"the hub does not know this token (401); {LOG_IN}"
    if status == 403:
        return f"this token may not do that in {repo_id} (403); make one with the right to write"
    if isinstance(error, errors.LocalEntryNotFoundError):
        cache = clean(str(cache_dir or hub.constants.HF_HUB_CACHE))
        return (
            f"{repo_id} is not in the cache ({cache}) and cannot be fetched now; leave local_files_only and "
            "HF_HUB_OFFLINE out where there is a network, or give a folder"
        )
    if isinstance(error, errors.HFValidationError):
        return f"{shown(repo_id)} is no name of a repository ({one_line(error, 120)}); write OWNER/NAME"
    if status is not None:
        return f"the hub refused {repo_id} ({status}: {one_line(error, 160)}); try again, or check {place}"
    if isinstance(error, OSError) or type(error).__module__.startswith("http"):  # httpx, httpx2, httpcore
        return f"the hub cannot be reached at {hub.constants.ENDPOINT} ({one_line(error, 120)}); check the network"
    return f"huggingface_hub could not do that for {repo_id} ({one_line(error, 160)}); check the name and its version"
