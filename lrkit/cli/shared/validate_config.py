"""`lrkit validate` of files that hold values: recipes, sweeps, targets, suites, device sheets and shapes.

The keys of a YAML file say which it is: the kind that knows most of them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lrkit.config import Config, load_yaml
from lrkit.resources import Kind

Findings = dict[str, Any]


def _classes() -> dict[Kind, type[Config]]:
    """Kind -> class of its YAML files; the first wins where two know as many keys."""
    from lrkit.export.targets.target import Target
    from lrkit.profile.ceilings.devices import DeviceSheet
    from lrkit.profile.measure.suite import Suite
    from lrkit.train.ablate import Sweep
    from lrkit.train.recipe import Recipe

    return {"recipe": Recipe, "sweep": Sweep, "target": Target, "suite": Suite, "device": DeviceSheet}


def kind_of_config(path: Path) -> Kind:
    """The kind of a YAML file.

    Raises:
        ConfigError: it cannot be read.
    """
    keys = load_yaml(path).keys()
    known: dict[Kind, int] = {kind: len(keys & cls.model_fields.keys()) for kind, cls in _classes().items()}
    return max(known, key=lambda kind: known[kind])


def check_config(kind: Kind, path: Path, findings: Findings) -> str:
    """Reads the file as what it is; returns a line about it.

    Raises:
        ConfigError: with a line for each problem.
        DataError: a recipe's own data are bad, or lack a length that a stage draws.
    """
    return CHECKS[kind](path, findings)


def _recipe(path: Path, findings: Findings) -> str:
    from lrkit.train.recipe import load_recipe

    recipe = load_recipe(path)
    findings["name"] = recipe.name
    findings["stages"] = [stage.name for stage in recipe.stages]
    scans = [recipe.data.scan_part(part) for part in recipe.data.parts()]
    if scans:
        findings["samples"] = {str(scan.path): len(scan.samples) for scan in scans}
    for scan in scans:
        recipe.data.settle(scan)
    recipe.data.open(recipe.seed, recipe.stages)
    return f"recipe {recipe.name}: {recipe.description}\nstages: {', '.join(findings['stages'])}"


def _sweep(path: Path, findings: Findings) -> str:
    from lrkit.resources import find_recipe
    from lrkit.train.ablate import load_sweep
    from lrkit.train.recipe import load_recipe

    sweep = load_sweep(path)
    findings["name"], findings["variants"] = sweep.name, list(sweep.variants)
    for overrides in sweep.variants.values():
        load_recipe(find_recipe(sweep.recipe), [*sweep.common, *overrides])
    return f"sweep {sweep.name}: {sweep.description}\nvariants: {', '.join(sweep.variants)}"


def _plain(kind: Kind) -> Callable[[Path, Findings], str]:
    def check(path: Path, findings: Findings) -> str:
        from lrkit.config import load_config

        loaded: Any = load_config(_classes()[kind], path)
        findings["name"] = path.stem
        return f"{kind} {path.stem}: {getattr(loaded, 'description', '')}".rstrip(": ")

    return check


def _suite(path: Path, findings: Findings) -> str:
    from lrkit.profile.measure.suite import load_suite

    suite = load_suite(str(path))
    findings["name"], findings["runs"] = path.stem, [run.name for run in suite.runs]
    return f"suite {path.stem}: {suite.description}\nruns: {', '.join(findings['runs'])}"


def _shape(path: Path, findings: Findings) -> str:
    from lrkit.data.shapes import load_shape

    load_shape(str(path))
    findings["name"] = path.stem
    return f"shape {path.stem}"


CHECKS: dict[Kind, Callable[[Path, Findings], str]] = {
    "recipe": _recipe, "sweep": _sweep, "target": _plain("target"), "suite": _suite, "device": _plain("device"),
    "shape": _shape,
}  # fmt: skip
"""Kind -> its check."""
