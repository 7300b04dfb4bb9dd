"""No default test sleeps or compares times: on a busy machine it would fail, and on a fast one it would waste time."""

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
CLOCKS = {"sleep", "perf_counter", "perf_counter_ns", "monotonic", "monotonic_ns", "process_time", "time_ns", "alarm"}
ALLOWED = {
    "fuzz/run.py": "prints how long a run took",
    "e2e/test_profile_compare.py": "moves the clock that answers are timed by; nothing waits for it",
    "stress/kill_export.py": "kills at random moments; its test is marked slow",
    "stress/serve_load.py": "loads a server for some time; its test is marked slow",
    "unit/test_clock.py": "this file",
}
"""Files that may use a clock, and why. `timeout=` of a subprocess stays allowed: it ends what hangs."""


def is_slow(node: ast.AST) -> bool:
    decorators = getattr(node, "decorator_list", [])
    return any("mark.slow" in ast.unparse(one) or "mark.gpu" in ast.unparse(one) for one in decorators)


def uses(node: ast.AST) -> Iterator[int]:
    """Lines that name a clock, outside functions that the default run leaves out."""
    gives_way = isinstance(node, ast.Call) and ast.unparse(node).endswith("sleep(0)")
    if is_slow(node) or gives_way:
        return
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else None
    if isinstance(node, ast.alias):
        name = node.name
    text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
    if name in CLOCKS or any(f"time.{clock}(" in text for clock in CLOCKS):
        yield getattr(node, "lineno", 0)
    for child in ast.iter_child_nodes(node):
        yield from uses(child)


def test_no_default_test_looks_at_a_clock() -> None:
    found = [
        f"{name}:{line}"
        for file in sorted(TESTS.rglob("*.py"))
        if (name := file.relative_to(TESTS).as_posix()) not in ALLOWED and not name.startswith("gpu/")
        for line in uses(ast.parse(file.read_text(encoding="utf-8")))
    ]
    assert found == [], "wait for an event (tests/waiting.py), count calls, or mark the test slow"


def test_the_sweep_sees_what_it_looks_for() -> None:
    seen = "import time\ntime.sleep(1)\nfrom time import monotonic\nprogram = 'time.sleep(2)'\n"
    marked = "@pytest.mark.slow\ndef test_it():\n    time.sleep(1)\n"
    assert list(uses(ast.parse(seen + marked))) == [2, 3, 4]
    assert set(ALLOWED) <= {file.relative_to(TESTS).as_posix() for file in TESTS.rglob("*.py")}
