"""Fixtures that several test files share, and what all workers of a run make only once."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from tests.traces import keep_traces

MadeOnce = Callable[[str, Callable[[Path], Path]], Path]


def pytest_configure() -> None:
    """A shell starts background jobs with Ctrl-C ignored, and so would all processes be that tests start and stop."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup() -> None:
    """Before the fixtures of a test."""
    keep_traces()


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """`made_once(name, write)`: what `write(folder)` made, which one worker of the run does; the others wait for it."""
    own = tmp_path_factory.getbasetemp()
    root = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def made(name: str, write: Callable[[Path], Path]) -> Path:
        told = root / f"{name}.made"
        with FileLock(root / f"{name}.lock"):
            if not told.exists():
                folder = root / name
                shutil.rmtree(folder, ignore_errors=True)  # of a worker that died while it wrote
                folder.mkdir()
                told.write_text(str(write(folder)), encoding="utf-8")
        return Path(told.read_text(encoding="utf-8"))

    return made


@pytest.fixture(scope="session")
def bundle(made_once: MadeOnce) -> Path:
    """A small real bundle with the roles latent and cot. Shared: a test that alters it takes `own_bundle`."""
    from tests.bundles import write_bundle

    return made_once("exported", write_bundle)


@pytest.fixture(scope="session")
def step_bundle(bundle: Path, made_once: MadeOnce) -> Path:
    """The latent role of `bundle` in the form `step`, driven by the host. Shared, like `bundle`."""
    from tests.bundles import write_step_bundle

    return made_once("exported-step", lambda _: write_step_bundle(bundle))


@pytest.fixture(scope="session")
def engine_bundle(bundle: Path, made_once: MadeOnce) -> Path:
    """The latent role of `bundle` with an engine of TensorRT-RTX for sm89. Shared; skips without the builder."""
    pytest.importorskip("tensorrt_rtx", reason='needs the package tensorrt_rtx: pip install "lrkit[tensorrt-rtx]"')
    from tests.bundles import write_engine_bundle

    return made_once("exported-engine", lambda _: write_engine_bundle(bundle))


@pytest.fixture(scope="session")
def step_engine_bundle(bundle: Path, made_once: MadeOnce) -> Path:
    """The same in the form `step`: an engine for each of its three graphs."""
    pytest.importorskip("tensorrt_rtx", reason='needs the package tensorrt_rtx: pip install "lrkit[tensorrt-rtx]"')
    from tests.bundles import write_engine_bundle

    return made_once("exported-step-engine", lambda _: write_engine_bundle(bundle, "step"))


@pytest.fixture(scope="session")
def openvino_bundle(bundle: Path, made_once: MadeOnce) -> Path:
    """The latent role of `bundle` for OpenVINO. Shared; skips without the package."""
    pytest.importorskip("openvino", reason='needs the package openvino: pip install "lrkit[openvino]"')
    from tests.bundles import write_openvino_bundle

    return made_once("exported-openvino", lambda _: write_openvino_bundle(bundle))


@pytest.fixture(scope="session")
def openvino_step_bundle(bundle: Path, made_once: MadeOnce) -> Path:
    """The same in the form `step`."""
    pytest.importorskip("openvino", reason='needs the package openvino: pip install "lrkit[openvino]"')
    from tests.bundles import write_openvino_bundle

    return made_once("exported-openvino-step", lambda _: write_openvino_bundle(bundle, "step"))


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
def published(made_once: MadeOnce) -> Path:
    """A tiny Qwen2-VL in the published layout (old files, tied, one file of weights). Shared: read only."""
    from tests.published import write_published

    return made_once("published-old", lambda folder: write_published(folder / "old-tied"))


@pytest.fixture(scope="session")
def published_new(made_once: MadeOnce) -> Path:
    """The same in the new layout: processor_config.json, chat_template.jinja, untied, three shards. Shared."""
    from tests.published import write_published

    def write(folder: Path) -> Path:
        return write_published(folder / "new-untied", "new", tied=False, shard="8MB", seed=1)

    return made_once("published-new", write)
