"""The order of the rooms: imports point down, and neither folders nor files import in a circle.

Every import counts, one inside a function too. The folders of the families are plug-ins: families/table.py loads them
by name, so they may use the rooms above the table, and nobody imports them. families/common is none: they share it.
"""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

from lrkit.families.table import FAMILIES

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "lrkit"

ORDER = (
    "cli", "serve", "harness", "analyze", "train", "probe", "profile", "export", "batch", "evaluate", "data", "runtime",
    "publish", "model", "checkpoints", "families", "contract", "pictures", "ground",
)  # fmt: skip
"""From the top; a module imports its own room and those below. The ground: what lies directly in lrkit/."""
DOORS = {"lrkit", "lrkit.__main__", "lrkit.api"}
"""The public names and the command line: they open rooms above the ground, on demand; no module imports them."""


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(file): file for file in sorted(PACKAGE.rglob("*.py"))}


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def imported(file: Path) -> Iterator[str]:
    """The modules of lrkit that a file imports, wherever in it."""
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in FILES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lrkit."):
            for alias in node.names:
                within = f"{node.module}.{alias.name}"
                yield within if within in FILES else str(node.module)


IMPORTS = {name: set(imported(file)) - {name} for name, file in FILES.items() if name not in DOORS}


def room(module: str) -> str:
    parts = FILES[module].relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else "ground"


def folder(module: str) -> str:
    return FILES[module].parent.relative_to(ROOT).as_posix()


def circles(arrows: Mapping[str, set[str]]) -> list[str]:
    """Arrows are taken away at nodes without an arrow out, again and again; what is left goes in circles."""
    left = {node: set(arrows[node]) for node in arrows}
    while True:
        done = {node for node, out in left.items() if not out & set(left)}
        if not done:
            return sorted(left)
        left = {node: out for node, out in left.items() if node not in done}


def home(place: str) -> str:
    """The folder of a row's family; two names of one architecture share it."""
    return "/".join(place.split(".")[:3])


FAMILY_FOLDERS = {home(place): name for name, place in FAMILIES.rows.items()}
"""Folder -> its family; of several that share a folder, the last."""


def family_folder(module: str) -> str | None:
    """The folder of a family that a module lies in."""
    within = folder(module)
    return next((place for place in FAMILY_FOLDERS if within == place or within.startswith(place + "/")), None)


def is_plugin(module: str) -> bool:
    return family_folder(module) is not None


def test_every_room_has_its_place_in_the_order() -> None:
    assert {room(module) for module in FILES} == set(ORDER)
    assert len(FILES) > 200, "the sweep must see the package"


def test_imports_point_down() -> None:
    wrong = [
        f"{name} imports {target}"
        for name, targets in IMPORTS.items()
        for target in targets
        if not is_plugin(name) and ORDER.index(room(target)) < ORDER.index(room(name))
    ]
    assert wrong == []


def test_no_file_imports_in_a_circle() -> None:
    assert circles(IMPORTS) == []


def test_no_folder_imports_in_a_circle() -> None:
    arrows: dict[str, set[str]] = {}
    for name, targets in IMPORTS.items():
        arrows.setdefault(folder(name), set()).update({folder(target) for target in targets} - {folder(name)})
    assert circles(arrows) == []


def test_a_circle_would_be_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_nobody_imports_a_family() -> None:
    """The table loads them by name."""
    wrong = [
        f"{name} imports {target}"
        for name, targets in IMPORTS.items()
        for target in targets
        if is_plugin(target) and family_folder(name) != family_folder(target)
    ]
    assert wrong == [] and any(is_plugin(name) for name in FILES)
    assert {file.parent.name for file in PACKAGE.glob("families/*/__init__.py")} - {"common"} == {
        Path(place).name for place in FAMILY_FOLDERS
    }, "every folder of a family has a row"


STEMS = sorted({re.split(r"\d|_", name)[0] for name in FAMILIES.rows})
"""How names of families begin, as in Qwen2VLModel and qwen2_vl."""
FAMILY_WORDS = re.compile("|".join([*STEMS, "grid_thw", "mrope"]), re.IGNORECASE)
CLASSES_IN_FILES = re.compile(r"Qwen2VLImageProcessor(Fast|Pil)?")
"""Names that published files of several families hold, whichever family they began with."""
SHAPES = sorted(file.stem for file in (ROOT / "profiles" / "shapes").glob("*.json"))
A_MODELS_NAME = re.compile("|".join(map(re.escape, [*SHAPES, "Qwen2-VL-2B-Instruct"])))
"""Of a shipped shape, and of a model on the hub: in examples of the command line."""
MAY_NAME_A_FAMILY = {
    "lrkit/families/table.py": "the table",
    "lrkit/families/common/merged_patches.py": "mrope.py, which it imports",
    "lrkit/families/common/mrope.py": "its own function",
    "lrkit/families/common/mrope_layout.py": "keys of config.json that several families' files have",
    "lrkit/families/common/mrope_fresh.py": "a key of several families' configs",
    "lrkit/model/merged_patch_backbone.py": "mrope.py, which it imports, and an argument of several families' towers",
    "lrkit/export/weights/mrope_dimensions.py": "a key of several families' configs",
    "lrkit/families/common/patch_processor_file.py": "classes of transformers that several families' files name",
}


def words_of(file: Path) -> Iterator[str]:
    """The names and texts of a file; docstrings and comments are none."""
    tree = tree_of(file)
    said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said:
            yield node.value
        for field in ("id", "attr", "arg", "name", "asname"):
            if isinstance(word := getattr(node, field, None), str):
                yield word


def test_no_other_room_names_a_family() -> None:
    wrong = [
        f"{file.relative_to(ROOT)}: {word[:60]!r}"
        for name, file in FILES.items()
        if not is_plugin(name) and file.relative_to(ROOT).as_posix() not in MAY_NAME_A_FAMILY
        for word in words_of(file)
        if FAMILY_WORDS.search(CLASSES_IN_FILES.sub("", A_MODELS_NAME.sub("", word)))
    ]
    assert wrong == []
    assert any(FAMILY_WORDS.search(word) for word in words_of(PACKAGE / "families" / "table.py")), "it would be found"


def plain(word: str) -> str:
    """Letters and digits alone: Qwen2_5_VLModel and qwen2_5_vl alike."""
    return re.sub(r"[^a-z0-9]", "", word.lower())


def others_named(own: str, words: Iterable[str]) -> list[str]:
    """The words that name a family of another folder than `own`; the longest name that fits is meant."""
    names = sorted(((plain(name), place) for name, place in FAMILIES.rows.items()), key=lambda row: -len(row[0]))
    found: list[str] = []
    for word in words:
        left = plain(CLASSES_IN_FILES.sub("", word))
        for name, place in names:
            if name in left and home(place) != own:
                found.append(word)
            left = left.replace(name, " ")
    return found


def test_no_family_names_another() -> None:
    wrong = {
        file.relative_to(ROOT).as_posix(): named
        for name, file in FILES.items()
        if (own := family_folder(name)) is not None and (named := others_named(own, words_of(file)))
    }
    assert wrong == {}
    assert others_named("lrkit/families/mine", ["Qwen2VLConfig", "Llama", "from lrkit.families.qwen2_vl"]) == [
        "Qwen2VLConfig", "from lrkit.families.qwen2_vl"
    ]  # fmt: skip


SHARED_OF_ENGINES = {
    "lrkit.runtime.engines.torch.prompt_batch": "training and export pad prompts as the engine does",
    "lrkit.runtime.engines.torch.engine": "a shape with random weights is put into an engine without a checkpoint",
    "lrkit.runtime.engines.torch.counts": "a plan of training counts the weights of its reasoner as profiles do",
    "lrkit.runtime.engines.onnxruntime.engine": "export compares programs with the optimizers that the engine uses",
    "lrkit.runtime.engines.onnxruntime.session": "export compares a program with its declaration as the engine does",
    "lrkit.runtime.engines.onnxruntime.provider_options": "a target may give no option that its bundle is refused for",
    "lrkit.runtime.engines.openvino.compiled": "export compares programs as the engine compiles them",
    "lrkit.runtime.engines.openvino.library": "export and preflight ask the package that the engine runs",
    "lrkit.runtime.engines.openvino.options": "export compares programs in the number types of the engine",
    "lrkit.runtime.engines.openvino.reader": "preflight reads a program as the engine does",
    "lrkit.runtime.engines.tensorrt.library": "export builds with the packages that run what they built",
}
"""Modules of an engine's folder that others import, and why they have no other home."""


def is_engine(module: str) -> bool:
    place = folder(module)
    return place.startswith("lrkit/runtime/engines/") and not place.endswith(("/common", "/programs"))


def test_an_engine_is_imported_by_its_table_alone() -> None:
    """By string, so that a package is imported when its engine is asked for."""
    imported = {
        target
        for name, targets in IMPORTS.items()
        for target in targets
        if is_engine(target) and folder(name) != folder(target)
    }
    assert imported == set(SHARED_OF_ENGINES), "take out what is no longer imported, too"
