"""constraints.txt holds one version of each package that the default tests need, and pyproject.toml allows it."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pinned() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pairs = [line.split("==") for line in lines]
    assert all(len(pair) == 2 and re.fullmatch(r"[\d.]+(post\d+)?", pair[1]) for pair in pairs)
    names = [canonicalize_name(name) for name, _ in pairs]
    assert len(set(names)) == len(names)
    return dict(zip(names, (version for _, version in pairs), strict=True))


def asked(*extras: str) -> list[Requirement]:
    lines = PROJECT["dependencies"] + [line for extra in extras for line in PROJECT["optional-dependencies"][extra]]
    found = [Requirement(line) for line in lines]
    inner = [extra for requirement in found if requirement.name == "lrkit" for extra in sorted(requirement.extras)]
    own = [requirement for requirement in found if requirement.name != "lrkit"]
    return own + (asked(*inner) if inner else [])


def test_every_package_is_pinned_to_a_version_that_is_allowed() -> None:
    versions = pinned()
    for requirement in asked("export", "dev"):
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement
    assert len(versions) > len(asked("export", "dev")), "what those need is pinned too"


def test_make_installs_by_it_and_it_is_in_the_source_archive() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert "CONSTRAINTS ?= constraints.txt" in makefile and makefile.count("$(CONSTRAINED)") == 2
    hatch = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]
    assert "/constraints.txt" in hatch["build"]["targets"]["sdist"]["include"]
