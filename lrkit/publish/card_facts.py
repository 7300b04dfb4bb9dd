"""What a model card is written from: what a checkpoint or a bundle says of itself, and reports beside it. Torch-free.

Place in the pipeline: push.py -> `facts_of` -> card.py, card_part.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lrkit.errors import UserError, clean
from lrkit.files import read_json
from lrkit.pretrained import HUB_PREFIX, is_hub_id
from lrkit.publish.published_files import REPORTS, Kind

MERGED_BASE = "merged_base"
"""In reasoner.json of a whole model: the model of the hub that LoRA was added to."""


@dataclass(frozen=True)
class Facts:
    """What a card is written from."""

    repo_id: str
    """OWNER/NAME, or the name of a folder."""
    kind: Kind
    told: Mapping[str, Any]
    """reasoner.json of a checkpoint, bundle.json of a bundle."""
    base: str | None = None
    """The model of the hub it began from; None where nobody can know."""
    adapter: bool = False
    """A checkpoint whose weights change those of a base."""
    reports: tuple[Mapping[str, Any], ...] = ()
    """What `lrkit eval --json` and `lrkit profile` wrote."""
    license: str | None = None
    datasets: tuple[str, ...] = field(default=())
    """Data sets of the hub that it was trained on."""

    @property
    def name(self) -> str:
        """Without the owner."""
        return self.repo_id.rpartition("/")[2]

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Versions, commit, recipe; empty where nothing is known."""
        found = self.told.get("provenance")
        return found if isinstance(found, Mapping) else {}

    @property
    def has_latents(self) -> bool:
        """Whether it was taught to think in latent steps."""
        if self.kind == "bundle":
            programs = self.told.get("programs")
            return isinstance(programs, Mapping) and "latent" in programs
        stage = self.told.get("stage")
        mode = stage.get("mode") if isinstance(stage, Mapping) else None
        return mode in (None, "latent") and _most_latents(self.told) > 0


def facts_of(
    repo_id: str, kind: Kind, told: Mapping[str, Any], folder: Path, reports: tuple[Path, ...], license: str | None
) -> Facts:
    """Reads what is there. `reports` are files to read besides those of the folder.

    Raises:
        UserError: a report that cannot be read, or is neither of `lrkit eval` nor of `lrkit profile`.
    """
    beside = [folder / name for name in REPORTS if (folder / name).is_file()]
    read = [(file, read_json(file, UserError)) for file in (*beside, *reports)]
    for file, report in read:
        if report.get("kind") not in ("eval", "profile"):
            raise UserError(
                f"{clean(str(file))} is no report of a model; give what `lrkit eval --json` or `lrkit profile` wrote"
            )
    provenance = told.get("provenance")
    recipe = provenance.get("recipe") if isinstance(provenance, Mapping) else None
    recipe = recipe if isinstance(recipe, Mapping) else {}
    base = told.get("base") if kind == "checkpoint" else None
    return Facts(
        repo_id, kind, told,
        base=_hub_name(base) or _hub_name(told.get(MERGED_BASE)) or _hub_init(recipe.get("init")),
        adapter=base is not None,
        reports=tuple(report for _, report in read),
        license=license,
        datasets=_datasets(recipe.get("data")),
    )  # fmt: skip


def _datasets(data: Any) -> tuple[str, ...]:
    named = [data.get("name")] if isinstance(data, Mapping) and data.get("kind") == "hub" else []
    return tuple(name for name in named if isinstance(name, str) and is_hub_id(name))


def _hub_name(value: Any) -> str | None:
    name = value.removeprefix(HUB_PREFIX) if isinstance(value, str) else ""
    # tiny/cot, a shipped name, looks like one too.
    return name if is_hub_id(name) and not name.startswith("tiny/") else None


def _hub_init(value: Any) -> str | None:
    """The `init` of a recipe names a model of the hub as hub:ORG/NAME; runs/mine is a folder of whoever trained."""
    return _hub_name(value) if isinstance(value, str) and value.startswith(HUB_PREFIX) else None


def _most_latents(told: Mapping[str, Any]) -> int:
    settings = told.get("settings")
    think = settings.get("think") if isinstance(settings, Mapping) else None
    found = think.get("max_latent_steps") if isinstance(think, Mapping) else 0
    return found if isinstance(found, int) else 0
