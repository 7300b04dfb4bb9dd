"""A Python in which lmms-eval runs beside lrkit: what is installed here, and below it lmms-eval with what it imports.

lmms-eval 0.7.3 asks for 57 packages, torchvision for this very torch and wandb among them. A run on pictures imports
those in `PACKAGES`. Its use of filelock ends with version 4.
"""

import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from tests.package_index import need_index

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "lmms-eval==0.7.3", "filelock<4", "aiohappyeyeballs", "aiohttp", "aiosignal", "attrs", "chardet", "DataProperty",
    "evaluate", "frozenlist", "loguru", "lxml", "mbstrdecoder", "multidict", "pathvalidate", "portalocker", "propcache",
    "pytablewriter", "pytz", "sacrebleu", "tabledata", "tabulate", "tcolorpy", "tenacity", "typepy", "yarl",
)  # fmt: skip
GROUP = "lmms_eval.models"
_PATIENCE_SEC = 300


def make_place(folder: Path) -> Path:
    """Makes the environment in `folder`; returns its Python. Skips the test where pip finds no index."""
    pytest.importorskip("datasets", reason="lmms-eval reads its tasks by the package datasets")
    need_index(folder.parent / "probe")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=_PATIENCE_SEC)
    packages = next(folder.glob("lib/python*/site-packages"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--retries", "1", "--target", packages]
    done = subprocess.run([*map(str, pip), *PACKAGES], capture_output=True, text=True, timeout=_PATIENCE_SEC)
    assert done.returncode == 0, done.stderr
    below = [path for path in sys.path if path.endswith("site-packages")]
    lines = "".join(f"import site; site.addsitedir({path!r})\n" for path in below)
    (packages / "below.pth").write_text(lines, encoding="utf-8")
    _declare(packages)
    return folder / "bin" / "python"


def _declare(packages: Path) -> None:
    """lrkit's entry point, where lrkit was installed before it had one."""
    if any(one.name == "lrkit" for one in entry_points(group=GROUP)):
        return
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"][GROUP]
    info = packages / "lrkit_declared-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lrkit-declared\nVersion: 0\n", encoding="utf-8")
    lines = "".join(f"{name} = {place}\n" for name, place in declared.items())
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{lines}", encoding="utf-8")
