"""Fuzzed: files of values of every kind, overrides, conditions and sweeps of `lrkit profile`, reports to compare."""

import json
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from lrkit.cli.shared.validate_config import check_config, kind_of_config
from lrkit.config import load_config, load_yaml
from lrkit.data.shapes import load_shape, shape_processor
from lrkit.export.preflight.rules import OperatorTable, RuleFile
from lrkit.export.targets.target import Target
from lrkit.profile.ceilings.devices import DeviceSheet
from lrkit.profile.judge.sweep import parse_axes, with_sweep
from lrkit.profile.measure.conditions import failures, parse_condition
from lrkit.profile.measure.suite import Suite, load_suite
from lrkit.profile.pages.comparison import compare_reports, render_comparison
from lrkit.profile.report_file import read_report
from lrkit.resources import find_any, list_resources
from lrkit.runtime.engines.table import parse_options
from lrkit.train.ablate import Sweep
from lrkit.train.recipe import as_written, load_recipe
from tests.fuzz import mutate

_work: list[Path] = []
_CLASSES: dict[str, Any] = {"sweep": Sweep, "target": Target, "suite": Suite, "device": DeviceSheet, "rules": RuleFile}
ROOT = Path(__file__).resolve().parents[2]


def prepare(work: Path, bundle: Path) -> None:
    _work[:] = [work]


@cache
def _sources(kind: str) -> list[tuple[str, dict[str, Any]]]:
    files = [resource.path for resource in list_resources(kind)]  # pyright: ignore[reportArgumentType]
    # The rules are long: their beginning says as much about the reader.
    texts = [file.read_text()[:3500] if kind == "rules" else file.read_text() for file in files]
    return [(text, load_yaml(file)) for file, text in zip(files, texts, strict=True)]


def _yaml_case(kind: str, rng: Random) -> bytes:
    text, values = rng.choice(_sources(kind))
    if rng.random() < 0.5:
        text = json.dumps(mutate.values({**values, "rules": values["rules"][:3]} if "rules" in values else values, rng))
        text = mutate.text(text, rng) if rng.random() < 0.1 else text
    else:
        text = mutate.text(text, rng)
    return mutate.encoded(text, rng)


def _file(name: str, content: bytes) -> Path:
    file = _work[0] / name
    file.write_bytes(content)
    return file


def _run_recipe(content: bytes) -> None:
    recipe = load_recipe(_file("recipe.yaml", content))
    as_written(recipe)
    kind_of_config(_work[0] / "recipe.yaml")


def _run_config(kind: str, content: bytes) -> None:
    file = _file(f"{kind}.yaml", content)
    if kind == "rules" and b"\noperators:" in b"\n" + content:
        load_config(OperatorTable, file)
    elif len(content) % 7 == 0 and kind != "rules":
        check_config(kind, file, {})  # pyright: ignore[reportArgumentType]
    else:
        load_config(_CLASSES[kind], file)


def _override_case(rng: Random) -> list[str]:
    keys = ["seed", "model.replay.num_tokens", "stages.0.updates", "stages", "data", "data.kind", "init.hidden_size",
            "stages.0.lengths.0", "optimizer.lr", "model.routing", "name", "eval.every", "stages.1.rehearse", "init",
            "description", "model.think.max_latent_steps", "trainable", "stages.0", "data.boards.main"]  # fmt: skip
    made: list[str] = []
    for _ in range(rng.choice((1, 1, 2, 4))):
        key = rng.choice(keys)
        if rng.random() < 0.4:
            parts = key.split(".")
            parts[rng.randrange(len(parts))] = rng.choice(("0", "-1", "99", "9" * 5000, "\u0663", "", *mutate.TEXTS))
            key = ".".join(parts)
        shown = rng.choice((rng.choice(mutate.YAML), rng.choice(mutate.TEXTS), json.dumps(mutate.value(rng))))
        made.append(rng.choice((f"{key}={shown}", f"{key}={shown}", key, f"={shown}", f"{key}={shown}={key}")))
    return made


@cache
def _smoke() -> dict[str, Any]:
    return load_yaml(find_any("recipe/smoke").path)


def _run_overrides(overrides: list[str]) -> None:
    as_written(load_recipe(_smoke(), overrides))


def _option_case(rng: Random) -> tuple[list[str], list[str], list[str]]:
    def text(good: str) -> str:
        return mutate.text(good, rng, (*mutate.TEXTS, *mutate.YAML, "1,2,3", ",", "=", ">="))

    axes = [text(rng.choice(("replay_tokens=0,4,8", "threads=1,2", "halting=fixed,adaptive"))) for _ in range(2)]
    condition = text(rng.choice(("latent.p95_ms > 500", "cot.accuracy<=1e-3")))
    return axes, [condition], [text(rng.choice(("device=1", "cuda_graphs=[speak]", "runtime_cache=k")))]


def _run_options(case: tuple[list[str], list[str], list[str]]) -> None:
    axes, conditions, options = case
    parsers = (
        lambda: with_sweep(load_suite("smoke"), parse_axes(axes)),
        lambda: failures([parse_condition(text) for text in conditions], {"latent": {"p95_ms": 2.0}}),
        lambda: parse_options(options, "tensorrt-rtx"),
    )
    refused: list[Exception] = []
    for parse in parsers:
        try:
            parse()
        except ValueError as error:  # the runner looks at the last one
            refused.append(error)
    if refused:
        raise refused[-1]


@cache
def _shapes() -> list[dict[str, Any]]:
    return [json.loads(resource.path.read_text()) for resource in list_resources("shape")]


def _run_shape(content: bytes) -> None:
    shape = load_shape(str(_file("shape.json", content)))
    shape_processor(shape)
    assert shape.num_weights > 0


@cache
def _report() -> dict[str, Any]:
    report = json.loads((ROOT / "profiles/reports/qwen2-vl-2b-cpu.json").read_text())
    for run in report["runs"]:
        run["rows"] = run["rows"][:4]
    keys = ("schema", "kind", "runs", "provenance", "models")
    return {key: report[key] for key in keys} | {"runs": report["runs"][:2]}


def _run_report(content: bytes) -> None:
    other = _work[0] / "whole.json"
    if not other.exists():
        other.write_text(json.dumps(_report()))
    found = read_report(_file("report.json", content))
    render_comparison(compare_reports(found, read_report(other)))
    render_comparison(compare_reports(read_report(other), found))


TARGETS: dict[str, Any] = {
    "recipe": (4, lambda rng: _yaml_case("recipe", rng), _run_recipe),
    **{
        kind: (3, lambda rng, kind=kind: _yaml_case(kind, rng), lambda content, kind=kind: _run_config(kind, content))
        for kind in _CLASSES
    },
    "overrides": (6, _override_case, _run_overrides),
    "options": (2, _option_case, _run_options),
    "shape": (4, lambda rng: mutate.json_file(rng.choice(_shapes()), rng), _run_shape),
    "report": (3, lambda rng: mutate.json_file(_report(), rng), _run_report),
}
"""Name -> weight, how a case is drawn, what is done with it."""
