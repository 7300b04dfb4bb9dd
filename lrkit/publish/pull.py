"""A published checkpoint or bundle as a folder on this machine, through huggingface_hub's own download and cache.
Torch-free.

Fetched is what lrkit reads and nothing else: of a checkpoint the names in published_files.py, of a bundle what its
bundle.json lists. So no pickle ever comes along, whatever the repository holds.

Place in the pipeline: `Reasoner.from_pretrained` -> `pulled_folder` -> a bundle or a checkpoint.
"""

import os
from pathlib import Path
from typing import Any

from lrkit.contract.bundle.bundle_files import name_problem
from lrkit.contract.bundle.manifest import BUNDLE_FILE
from lrkit.errors import BundleError, CheckpointError, UserError, clean
from lrkit.files import read_json
from lrkit.publish.published_files import CHECKPOINT_PATTERNS, GENERATE_FILE, PICKLES
from lrkit.publish.told import hub_package, repository, told

# The code for custom_generate stays where it is: lrkit does not run it, and transformers fetches it when asked to.
_FIRST = [*(name for name in CHECKPOINT_PATTERNS if name != GENERATE_FILE), BUNDLE_FILE]
_HOLDS = ("reasoner.json", "config.json", BUNDLE_FILE)


def pulled_folder(
    name: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """The folder of `name`: a folder itself, or OWNER/NAME of the hub. Arguments as `from_pretrained` of
    transformers has them. With HF_HUB_OFFLINE or `local_files_only` nothing but the cache is looked at.

    Raises:
        UserError: no such folder or repository, no access, no network and nothing cached, or neither a checkpoint nor
            a bundle.
    """
    if os.path.isdir(name):
        return Path(name)
    repo_id = repository(str(name))
    hub = hub_package()
    given: dict[str, Any] = {
        "revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only,
        "force_download": force_download,
    }  # fmt: skip
    with told(repo_id, revision, cache_dir):
        folder = Path(hub.snapshot_download(repo_id, allow_patterns=_FIRST, **given))
    if (folder / BUNDLE_FILE).is_file():
        names = _listed(folder)
        with told(repo_id, revision, cache_dir):
            # Of the same commit: the branch may have moved since.
            hub.snapshot_download(repo_id, allow_patterns=names, **{**given, "revision": folder.name})
        return folder
    if not any((folder / held).is_file() for held in _HOLDS):
        raise UserError(
            f"{repo_id} holds neither a checkpoint (reasoner.json or config.json) nor a bundle ({BUNDLE_FILE}); check "
            "the name"
        )
    return _with_weights(folder, repo_id)


def _listed(folder: Path) -> list[str]:
    """The files that bundle.json names, as patterns; opening the bundle says what else is wrong with it."""
    files = read_json(folder / BUNDLE_FILE, BundleError).get("files")
    names = list(files) if isinstance(files, dict) else []
    for name in names:
        if name_problem(name) or name.endswith(PICKLES) or any(sign in name for sign in "*?["):
            raise BundleError(f"{folder / BUNDLE_FILE}: lists {clean(ascii(name))[:120]}; do not use this bundle")
    return names or [BUNDLE_FILE]


def _with_weights(folder: Path, repo_id: str) -> Path:
    """Raises `CheckpointError` where a repository has weights in pickles alone."""
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{repo_id} holds no safetensors, and pickles (.bin, .pt) are never loaded; ask its owner for safetensors"
        )
    return folder
