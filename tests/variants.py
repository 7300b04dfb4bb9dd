"""Every value of every setting that shapes a program, read off the settings themselves: one change of a base each.

Values of `Literal` fields come from their types, so a new one is swept as soon as it exists; the other fields need an
entry in NUMBERS, and a field without one fails (`settings_variants` raises).
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import combinations
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

from lrkit.contract.schemes import SCHEMES
from lrkit.contract.settings import ReasonerSettings, ReplaySettings, RoutingSettings, ThinkSettings
from lrkit.contract.weightings import WEIGHTINGS
from lrkit.export.targets.target import Int4, Target

Change = tuple[str, str, Any]
"""(section, field, value)."""

SECTIONS: Mapping[str, type[BaseModel]] = {"think": ThinkSettings, "replay": ReplaySettings, "routing": RoutingSettings}
TRAINING = {"distill", "lora"}
"""Sections that are gone once a program is written: distillation ends with training, adapters are merged."""
REFUSED = {("think", "latents", "parallel"), ("think", "gradient", "cut")}
"""What no program is built for, and what training alone knows."""
ELSEWHERE = {"prune"}
"""Sections that tests of their own sweep."""
BASE = {
    "think": {"max_latent_steps": 2}, "replay": {"num_tokens": 3}, "routing": {"depth": 2, "alpha": 4},
}  # fmt: skip
"""Every loop is there, also the one over depths."""
NUMBERS: Mapping[tuple[str, str], tuple[Any, ...]] = {
    ("think", "max_latent_steps"): (0, 1, 5),
    ("think", "passes"): (1,),
    ("replay", "num_tokens"): (0, 1, 32),
    ("replay", "zoom"): (2,),
    ("replay", "weighting"): tuple(WEIGHTINGS),
    ("routing", "depth"): (0, 1, 3),
    ("routing", "layers"): ((0,), (1, 3)),
    ("routing", "alpha"): (1, 32),
    ("routing", "alpha_end"): (1, 6),
    ("routing", "threshold"): (0.4,),
}
"""What to try of fields that are no `Literal`."""


def literals(annotation: Any) -> list[Any]:
    """Values of the Literals in a type."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [value for inner in get_args(annotation) for value in literals(inner)]


def changes() -> dict[str, Change]:
    """Name -> one value of one setting.

    Raises:
        LookupError: a section or a field of which nothing is known here.
    """
    if strange := set(ReasonerSettings.model_fields) - set(SECTIONS) - TRAINING - ELSEWHERE:
        raise LookupError(f"tests/variants.py knows nothing of the sections {sorted(strange)}")
    found: dict[str, Change] = {}
    for section, cls in SECTIONS.items():
        for field, info in cls.model_fields.items():
            values = [*literals(info.annotation), *NUMBERS.get((section, field), ())]
            if not values:
                raise LookupError(f"tests/variants.py has no values for {section}.{field}")
            own = [(section, field, value) for value in values]
            found |= {f"{section}.{field}={value[-1]}": value for value in own if value not in REFUSED}
    return found


def settings_with(*changed: Change) -> ReasonerSettings:
    """The base with changes."""
    values: dict[str, dict[str, Any]] = {section: dict(fields) for section, fields in BASE.items()}
    for section, field, value in changed:
        values[section][field] = value
    return ReasonerSettings.model_validate(values)


def single_variants() -> dict[str, ReasonerSettings]:
    """Name -> settings with one value changed; those that change nothing are left out but for the base itself."""
    base = settings_with()
    found = {name: settings_with(change) for name, change in changes().items()}
    return {"base": base} | {name: settings for name, settings in found.items() if settings != base}


def paired_variants() -> dict[str, ReasonerSettings]:
    """Name -> settings with two values changed, of different fields; those that contradict each other are left out."""
    known = {name: change for name, change in changes().items() if settings_with(change) != settings_with()}
    pairs = combinations(known.items(), 2)
    found: dict[str, ReasonerSettings] = {}
    for (a, one), (b, two) in pairs:
        if one[:2] != two[:2]:
            with suppress(ValidationError):
                found[f"{a} {b}"] = settings_with(one, two)
    return found


def packed_variants() -> dict[str, ReasonerSettings]:
    """Name -> settings with as many values changed at once as there are fields: each value is in one of them, so that
    few programs have them all. Zeros, which switch off what others change, stand alone."""
    packs: list[dict[str, Change]] = []
    for name, change in changes().items():
        if settings_with(change) == settings_with():
            continue
        fits = (pack for pack in packs if change[2] != 0 and _fits(pack, change))
        pack = next(fits, None)
        if pack is None:
            packs.append({name: change})
        else:
            pack[name] = change
    return {" ".join(pack): settings_with(*pack.values()) for pack in packs}


def _fits(pack: Mapping[str, Change], change: Change) -> bool:
    """Whether a pack has no such field and no zero, and does not contradict the change."""
    if any(change[:2] == other[:2] or other[2] == 0 for other in pack.values()):
        return False
    try:
        settings_with(*pack.values(), change)
    except ValidationError:
        return False
    return True


def target_variants() -> dict[str, Target]:
    """Name -> target in the dialect standard, with every choice of how its numbers are written."""
    return dict(_targets())


def _targets() -> Iterator[tuple[str, Target]]:
    activations = [None, *literals(Target.model_fields["activations"].annotation)]
    for precision, row in SCHEMES.items():
        for kind in activations if not row.offsets else ():  # TensorRT takes none
            int4 = {"block": row.blocks[-1]} if row.blocks else {}
            changed: dict[str, Any] = {"precision": precision, "activations": kind, "int4": int4}
            yield f"{precision} {kind}", Target.model_validate({"dialect": "standard", **changed})
    scheme = SCHEMES["int4"]
    for field, choices in {"block": scheme.blocks, **scheme.parts}.items():
        # Chunks of their own are for the dialect ort alone,
        for value in choices if field in Int4.model_fields and field != "chunks" else ():
            if (field, value) == ("embedding", "int4"):
                continue  # and so are rows of four bits
            int4 = {"block": 32, field: value}
            values = {"dialect": "standard", "precision": "int4", "activations": "fp16", "int4": int4}
            yield f"int4.{field}={value}", Target.model_validate(values)
