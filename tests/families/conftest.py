"""What the tests of the battery share: a family's case, its folders, its models opened once per file."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lrkit.families.table import FAMILIES
from lrkit.runtime.encode.processor import Processor
from tests.conftest import MadeOnce
from tests.fake_family import NAME, installed
from tests.families.cases import NOT_PUBLISHED, ROWS, FamilyCase, case_of

LONG = tuple(f"tests.families.test_{name}" for name in ("program", "training", "work", "invariants"))
"""Modules whose tests take a second name of one architecture in the long run only."""
ONE = "tests.families.test_program"
"""In the default run its tests take the first family only: each exports a program and compares it number by number."""


def second_names() -> set[str]:
    """Rows whose package lies in that of another: the same code under another model_type."""
    rows = FAMILIES.rows
    return {name for name in rows if any(rows[name].startswith(f"{other}.") for other in rows.values())}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Before tests are chosen by their marks."""
    twins = second_names()
    others = set([*ROWS][1:])
    _share_ways(items)
    for item in items:
        module, given = getattr(item, "module", None), getattr(item, "callspec", None)
        if module is None or given is None or module.__name__ not in LONG or item.get_closest_marker("slow"):
            continue
        later = twins | others if module.__name__ == ONE else twins
        if any(isinstance(value, str) and value in later for value in given.params.values()):
            item.add_marker(pytest.mark.long)


def _share_ways(items: list[pytest.Item]) -> None:
    """Of tests with the mark `shared`, each family keeps some of the ways in the long run, and all families together
    have each way several times. The rest is slow."""
    seen: dict[tuple[str, str], int] = {}
    for item in items:
        given, shared = getattr(item, "callspec", None), item.get_closest_marker("shared")
        if given is None or shared is None:
            continue
        family = str(given.params["case"])
        name = item.name.partition("[")[0]
        way = seen[name, family] = seen.get((name, family), -1) + 1
        if (way + list(ROWS).index(family)) % shared.kwargs["among"]:
            item.add_marker(pytest.mark.slow)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`variant` is every published layout of every family; `folder` alone is the first of each."""
    if "variant" in metafunc.fixturenames:
        pairs = [(name, variant) for name in ROWS for variant in case_of(name).variants]
        metafunc.parametrize("variant", pairs, ids=[f"{name}, {variant}" for name, variant in pairs], indirect=True)


@pytest.fixture(scope="module", params=ROWS)
def case(request: pytest.FixtureRequest) -> FamilyCase:
    """A published family."""
    return case_of(request.param)


@pytest.fixture(scope="module", params=[*ROWS, *NOT_PUBLISHED])
def any_case(request: pytest.FixtureRequest) -> Iterator[FamilyCase]:
    """A family, published or not."""
    with ExitStack() as stack:
        if request.param == NAME:
            stack.enter_context(installed())
        yield case_of(request.param)


def written(case: FamilyCase, variant: str, made_once: MadeOnce) -> Path:
    """The folder of a variant, which one worker of the run writes."""
    number = list(case.variants).index(variant)
    return made_once(f"family-{case.name}-{number}", lambda folder: case.variants[variant](folder / "published"))


@pytest.fixture(scope="module")
def folder(case: FamilyCase, made_once: MadeOnce) -> Path:
    """The first variant's checkpoint. Shared: read only."""
    return written(case, next(iter(case.variants)), made_once)


@pytest.fixture(scope="module")
def variants(case: FamilyCase, made_once: MadeOnce) -> list[Path]:
    """The folders of all published layouts of the family. Shared: read only."""
    return [written(case, variant, made_once) for variant in case.variants]


@pytest.fixture(scope="module")
def any_folder(any_case: FamilyCase, made_once: MadeOnce) -> Path:
    """The same of a family that need not be published."""
    return written(any_case, next(iter(any_case.variants)), made_once)


@pytest.fixture
def variant(request: pytest.FixtureRequest, made_once: MadeOnce) -> tuple[FamilyCase, Path]:
    """A family and the folder of one of its published layouts. Shared: read only."""
    name, layout = request.param
    case = case_of(name)
    return case, written(case, layout, made_once)


@pytest.fixture(scope="module")
def processor(folder: Path) -> Processor:
    """lrkit's own, of the first variant."""
    return Processor.from_folder(folder)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture in which every pixel counts."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


PICTURES: tuple[tuple[int, int], ...] = ((112, 84), (60, 90))
"""Sizes of the pictures of a prompt: unlike, and small."""


def pictures_of(case: FamilyCase, count: int) -> list[Image.Image]:
    """So many pictures; none more than the family takes."""
    most = 1 if "several_pictures" in case.cannot else count
    return [noise(*PICTURES[number % 2], seed=number) for number in range(min(count, most))]


@pytest.fixture(autouse=True)
def threads(one_thread: None) -> None:
    """Sums in one order."""
