"""Files and names that docstrings and comments of the package mention exist. A move or a rename leaves none behind."""

import ast
import builtins
import io
import keyword
import re
import tokenize
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "lrkit"
MODULES = sorted(PACKAGE.rglob("*.py"))
FOLDERS = ("lrkit", "tests", "benchmarks", "examples", "docs", "train", "export", "profiles")
FILES = [path for name in FOLDERS for path in (ROOT / name).rglob("*") if path.is_file()]
ENDS = Counter(
    "/".join(parts[start:])
    for path in [*FILES, *(path for path in ROOT.iterdir() if path.is_file())]
    for parts in [path.relative_to(ROOT).parts]
    for start in range(len(parts))
)
"""Every end of a path, such as graph/nodes.py, and how many files have it."""

WRITTEN = {"build_engine.py", "custom_generate/generate.py"}
"""Files that lrkit writes for its users."""
OTHERS = {"ICudaEngine", "Qwen2VLModel", "convert_to_rgb", "get_rope_index", "smart_resize"}
"""Names of other libraries that no code of the package uses."""

Said = tuple[Path, int, str]
"""A file, a line and what a docstring or comment there says."""


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def docstrings(file: Path) -> list[ast.Constant]:
    """Every string that stands alone: docstrings of modules, classes and functions, and those under a field."""
    alone = [node.value for node in ast.walk(tree(file)) if isinstance(node, ast.Expr)]
    return [value for value in alone if isinstance(value, ast.Constant) and isinstance(value.value, str)]


def comments(file: Path) -> list[Said]:
    tokens = tokenize.generate_tokens(io.StringIO(file.read_text(encoding="utf-8")).readline)
    return [(file, token.start[0], token.string) for token in tokens if token.type == tokenize.COMMENT]


@cache
def said() -> list[Said]:
    found = [(file, node.lineno, str(node.value)) for file in MODULES for node in docstrings(file)]
    return found + [comment for file in MODULES for comment in comments(file)]


def missing(named: list[Said]) -> str:
    return "\n".join(f"{file.relative_to(ROOT)}:{line} {name}" for file, line, name in named)


def is_there(name: str, file: Path) -> bool:
    """`name` lies beside `file`, or is the unique end of the path of one file of the repository."""
    if (file.parent / name).is_file() or name in WRITTEN:
        return True
    return ENDS[name.removeprefix("/")] == 1


def test_every_file_that_is_named_is_there() -> None:
    named = [
        (file, line, name)
        for file, line, text in said()
        for name in re.findall(r"(?<![\w*{/.])[\w./]*\w\.py\b|docs/\w+\.md", text)
    ]
    assert len(named) > 100
    assert missing([said for said in named if not is_there(said[2], said[0])]) == ""


def members(node: ast.ClassDef) -> set[str]:
    """Methods, fields, nested classes, and what methods put on `self`."""
    names: set[str] = set()
    for child in ast.walk(node):
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            names.add(child.name)
        elif isinstance(child, ast.Attribute) and isinstance(child.ctx, ast.Store):
            names.add(child.attr)
        elif isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
            names.add(child.id)
    return names


@cache
def classes() -> dict[str, set[str]]:
    """Class -> its members and those of its bases in the package. Classes of one name are taken together."""
    own, bases = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set)
    for file in MODULES:
        for node in ast.walk(tree(file)):
            if isinstance(node, ast.ClassDef):
                own[node.name] |= members(node)
                bases[node.name] |= {ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases}

    def whole(name: str) -> set[str]:
        return own[name].union(*(whole(base) for base in bases[name] if base in own and base != name))

    return {name: whole(name) for name in list(own)}


def has_member(parts: list[str]) -> bool:
    return len(parts) == 1 or parts[1] in classes()[parts[0]]


@cache
def known() -> set[str]:
    """Every name in the package's code: defined or used, an argument, a keyword, or a word in one of its strings."""
    names = {*keyword.kwlist, *dir(builtins), *OTHERS}
    for file in MODULES:
        alone = {id(node) for node in docstrings(file)}
        names |= {file.stem, file.parent.name}
        for node in ast.walk(tree(file)):
            for field in ("id", "attr", "arg", "name", "asname", "module"):
                names |= set(str(getattr(node, field, None) or "").split("."))
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in alone:
                names |= set(re.findall(r"\w+", node.value))
    return names


@cache
def backticked() -> list[Said]:
    return [
        (file, line, name)
        for file, line, text in said()
        for name in re.findall(r"(?<!`)`([A-Za-z_][\w.]*)(?:\([^`]*\))?`(?!`)", text)
        if not re.search(r"\.(py|md|yaml|json|jsonl|onnx|safetensors)$", name)
    ]


def test_every_member_of_a_class_that_is_named_exists() -> None:
    named = [(file, line, name) for file, line, name in backticked() if name.split(".")[0] in classes()]
    assert len(named) > 50
    assert missing([said for said in named if not has_member(said[2].split("."))]) == ""


def test_every_name_in_backticks_exists() -> None:
    named = backticked()
    assert len(named) > 300
    assert missing([said for said in named if not set(said[2].strip(".").split(".")) <= known()]) == ""
