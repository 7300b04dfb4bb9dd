"""Fixtures that several test files share."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small real bundle with the roles latent and cot. Shared: a test that alters it takes `own_bundle`."""
    from tests.bundles import write_bundle

    return write_bundle(tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="session")
def step_bundle(bundle: Path) -> Path:
    """The latent role of `bundle` in the form `step`, driven by the host. Shared, like `bundle`."""
    from tests.bundles import write_step_bundle

    return write_step_bundle(bundle)


@pytest.fixture(scope="session")
def engine_bundle(bundle: Path) -> Path:
    """The latent role of `bundle` with an engine of TensorRT-RTX for sm89. Shared; skips without the builder."""
    pytest.importorskip("tensorrt_rtx", reason='needs the package tensorrt_rtx: pip install "lrkit[tensorrt-rtx]"')
    from tests.bundles import write_engine_bundle

    return write_engine_bundle(bundle)


@pytest.fixture(scope="session")
def step_engine_bundle(bundle: Path) -> Path:
    """The same in the form `step`: an engine for each of its three graphs."""
    pytest.importorskip("tensorrt_rtx", reason='needs the package tensorrt_rtx: pip install "lrkit[tensorrt-rtx]"')
    from tests.bundles import write_engine_bundle

    return write_engine_bundle(bundle, "step")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch on one thread, which sums in one order and does not wait for others."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def own_bundle(bundle: Path, tmp_path: Path) -> Path:
    """A copy of `bundle` to alter."""
    return Path(shutil.copytree(bundle, tmp_path / "own"))


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen2-VL in the published layout (old files, tied, one file of weights). Shared: read only."""
    from tests.published import write_published

    return write_published(tmp_path_factory.mktemp("published") / "old-tied")


@pytest.fixture(scope="session")
def published_new(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in the new layout: processor_config.json, chat_template.jinja, untied, three shards. Shared."""
    from tests.published import write_published

    return write_published(tmp_path_factory.mktemp("published") / "new-untied", "new", tied=False, shard="8MB", seed=1)
