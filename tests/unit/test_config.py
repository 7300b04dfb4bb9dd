"""Strict configs: every problem named at once, with its place and a way out."""

from pathlib import Path
from typing import Literal, Self

import pytest
from pydantic import Field, ValidationError, model_validator

from lrkit.config import Config, dump_yaml, load_config, load_yaml
from lrkit.errors import ConfigError


class Stage(Config):
    """A part of a run."""

    steps: int = Field(default=5, gt=0)
    """How many."""
    mode: Literal["latent", "cot"] = "latent"
    lr: float = 1e-4


class Run(Config):
    """A run."""

    stages: tuple[Stage, ...] = ()
    init: Stage | str = "tiny"
    layers: tuple[int, ...] | Literal["all", "every_second"] = "all"
    folder: Path = Path("runs")
    weights: dict[str, float] = {}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.stages) > 2:
            raise ValueError(f"{len(self.stages)} stages; allowed are 2\nremove some")
        return self


def problems(source: Path | dict[str, object], overrides: tuple[str, ...] = ()) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(Run, source, overrides)
    return str(caught.value).splitlines()


def test_file_and_overrides_become_an_object(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("stages:\n- {steps: 3, lr: 1e-3}\n- {}\nfolder: out\n")
    run = load_config(Run, file, ["stages.0.mode=cot", "stages.1.lr=2e-5", "weights.digit=.inf", "layers=[1, 3]"])
    assert run.stages == (Stage(steps=3, lr=1e-3, mode="cot"), Stage(lr=2e-5))
    assert (run.folder, run.layers, run.weights) == (Path("out"), (1, 3), {"digit": float("inf")})


def test_written_yaml_reads_back_equal(tmp_path: Path) -> None:
    run = Run(stages=(Stage(lr=1e-7), Stage(lr=1e20)), weights={"inf": float("inf"), "big": 1e16})
    file = tmp_path / "run.yaml"
    file.write_text(dump_yaml(run))
    assert load_config(Run, file) == run
    assert dump_yaml(run).index("stages") < dump_yaml(run).index("init"), "in the order of the class"


def test_all_problems_are_reported_together(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("stages:\n- {stps: 3, lr: true}\nfoldr: out\n")
    found = problems(file, ("stages.0.steps=0", "stages.0.mode=latnt", "nonsense", "stages.7.lr=1"))
    assert len(found) == 7
    assert f"{file}: stages.0.stps: unknown key; allowed: lr, mode, steps; did you mean 'steps'?" in found
    assert f"{file}: stages.0.lr: got true; input should be a valid number" in found
    assert any(line.startswith(f"{file}: foldr: unknown key") and line.endswith("'folder'?") for line in found)
    assert "override: stages.0.steps: got 0; input should be greater than 0" in found
    assert any('got "latnt"' in line and line.endswith("did you mean 'latent'?") for line in found)
    assert "override 'nonsense': must look like key.path=value; write it as in seed=1" in found
    assert "override 'stages.7.lr=1': stages is a list of 1; use an index from 0 to 0" in found


def test_problems_inside_a_union_name_the_key_not_the_member() -> None:
    assert problems({"init": {"stps": 3}}) == [
        "Run: init.stps: unknown key; allowed: lr, mode, steps; did you mean 'steps'?"
    ]
    (line,) = problems({"layers": "al"})
    assert line.startswith('Run: layers: got "al"; ') and line.endswith("did you mean 'all'?")


def test_values_are_taken_strictly() -> None:
    assert problems({"stages": [{"steps": "5"}]}) == ['Run: stages.0.steps: got "5"; input should be a valid integer']
    assert problems({"folder": 3}) == ["Run: folder: got 3; input should be a valid string"]


def test_a_validator_may_name_several_problems() -> None:
    assert problems({"stages": [{}, {}, {}]}) == ["Run: 3 stages; allowed are 2", "Run: remove some"]


def test_overrides_do_not_change_the_source() -> None:
    source: dict[str, object] = {"stages": [{"steps": 3}]}
    assert load_config(Run, source, ["stages.0.steps=4"]).stages[0].steps == 4
    assert source == {"stages": [{"steps": 3}]}


def test_an_override_below_a_plain_value_is_named() -> None:
    assert problems({"folder": "out"}, ("folder.name=x",)) == [
        "override 'folder.name=x': folder is 'out', which has no keys; give it whole, as folder=VALUE"
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("folder: a\nfolder: b\n", "given twice"),
        ("- 1\n- 2\n", "must be a mapping"),
        ("folder: [\n", "not valid YAML"),
        ("? [a, b]\n: c\n", "text keys"),
    ],
)
def test_yaml_that_is_no_config_is_refused(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=says) as caught:
        load_yaml(file)
    assert str(file) in str(caught.value)


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_yaml(tmp_path / "none.yaml")


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("")
    assert load_config(Run, file) == Run()


def test_configs_are_frozen_and_documented_by_the_literal_below_the_field() -> None:
    with pytest.raises(ValidationError):
        Stage().steps = 3  # pyright: ignore[reportAttributeAccessIssue]
    assert Stage.model_fields["steps"].description == "How many."
