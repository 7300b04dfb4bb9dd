"""Writes the setting that a sweep named into the bundle, so that the SDK uses it where a caller does not say.

Place in the pipeline: `lrkit sweep BUNDLE ... --write-choice` -> `write_choice` -> `defaults` in bundle.json.

Replay, routing and pruning are compiled into a program. Export again to choose those.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrkit.contract.bundle.bundle_folder import is_bundle, open_bundle, write_manifest
from lrkit.contract.bundle.manifest import SCHEMA, Defaults
from lrkit.contract.settings import PruneSettings, ReasonerSettings
from lrkit.errors import UserError

RUNTIME_KEYS = ("threads", "max_latent_steps", "halting")
"""Settings of a sweep that a bundle can take after its export."""
_EXPORTED = {
    "replay_tokens": ("replay", "num_tokens"), "routing_depth": ("routing", "depth"),
    "prune_after": ("prune", "after_layer"), "prune_keep": ("prune", "keep"),
}  # fmt: skip


def check_choice(models: "list[str]", sweep: Mapping[str, Any]) -> None:
    """Refuses what could not be written, before anything is measured.

    Raises:
        UserError: several models, a checkpoint, or a sweep of nothing but what is compiled in.
    """
    if len(models) != 1 or not is_bundle(models[0]):
        raise UserError("--write-choice writes into one bundle; name one, without other models")
    if not any(key in RUNTIME_KEYS for key in sweep):
        raise UserError(
            f"--write-choice: {', '.join(sweep)} cannot be changed in a bundle, whose program has it compiled in; "
            f"sweep {', '.join(RUNTIME_KEYS)}, or profile the checkpoint and export it with the setting it names"
        )


def write_choice(bundle: str | Path, report: Mapping[str, Any]) -> Defaults:
    """Writes the sweep's choice into the bundle, replacing an earlier one; bundle.json changes at once or not at all.

    Raises:
        UserError: the sweep names no setting, or the measurement was interrupted.
        BundleError: the bundle cannot be opened or written.
    """
    sweep = report["sweep"]
    if report["partial"] or sweep is None or sweep["use"] is None:
        raise UserError(
            "nothing was written into the bundle: the sweep was interrupted or measured no setting; run it again"
        )
    settings = chosen_settings(sweep)
    opened = open_bundle(bundle, verify=False)
    made = report["provenance"]
    reasons = {
        "command": report["command"], "use": sweep["use"], "why": sweep["why"], "cpu": made["cpu"],
        "num_cpus": made["num_cpus"], "time_utc": made["time_utc"], "lrkit": made["lrkit"],
    }  # fmt: skip
    kept = {key: value for key, value in settings.items() if key in RUNTIME_KEYS}
    defaults = Defaults(**kept, chosen=reasons)
    write_manifest(opened, opened.manifest.model_copy(update={"defaults": defaults, "schema_version": SCHEMA}))
    return defaults


def chosen_settings(sweep: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the point that the sweep recommends."""
    return {point["run"]: point["settings"] for point in sweep["points"]}[sweep["use"]]


def how_to_export(settings: Mapping[str, Any], model: Mapping[str, Any]) -> str | None:
    """How settings that are compiled in get into a bundle; None where the model (a report's `settings`) has them."""
    wanted = {_EXPORTED[key]: value for key, value in settings.items() if key in _EXPORTED}
    has = ReasonerSettings.model_validate(model).model_dump()
    has.setdefault("prune", PruneSettings().model_dump())  # not written where nothing is pruned
    changed = [f"{group}.{key}: {value}" for (group, key), value in wanted.items() if has[group][key] != value]
    if not changed:
        return None
    return (
        f"to have it in a bundle, copy the checkpoint (lrkit cp), set {', '.join(changed)} in its reasoner.json, and "
        "export that; the programs of a bundle have it compiled in"
    )
