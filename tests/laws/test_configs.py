"""Every config class of the package: what is written reads back equal, and a key that it does not know is refused.

Objects come from what ships and from the least that a class asks for; fields are then drawn anew by their types, each
kept where the class takes it.
"""

import functools
import importlib
import inspect
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from pydantic.fields import FieldInfo

import lrkit
from lrkit.config import Config, dump_yaml, load_config, load_yaml
from lrkit.contract.bundle.bundle_folder import open_bundle
from lrkit.contract.bundle.io_spec import IoSpec
from lrkit.contract.bundle.manifest import EngineEntry, StepEntry
from lrkit.data.flat_shape import FlatShape
from lrkit.errors import ConfigError
from lrkit.export.tensorrt.into_bundle import TakenEngine
from lrkit.files import read_json
from lrkit.resources import list_everything
from lrkit.runtime.scenes.scene_file import SceneNote
from lrkit.strict_yaml import parse_yaml

PACKAGE = Path(lrkit.__file__).parent
SHIPPED = {"recipe": "Recipe", "sweep": "Sweep", "target": "Target", "rules": "RuleFile", "suite": "Suite",
           "device": "DeviceSheet", "shape": "Shape"}  # fmt: skip
"""Kind of resource -> the class of its files."""
DECLARES = re.compile(r"^class (\w+)\(([\w, ]+)\):", re.MULTILINE)


@functools.cache
def classes() -> dict[str, type[Config]]:
    """Module and name of each class that derives from `Config`, through others too -> the class."""
    declared = {
        ".".join(["lrkit", *file.relative_to(PACKAGE).with_suffix("").parts]): DECLARES.findall(file.read_text("utf-8"))
        for file in sorted(PACKAGE.rglob("*.py"))
    }
    derived, before = {"Config"}, 0
    while len(derived) > before:
        before = len(derived)
        derived |= {name for pairs in declared.values() for name, bases in pairs if derived & set(bases.split(", "))}
    return {
        f"{module}.{name}": getattr(importlib.import_module(module), name)
        for module, pairs in declared.items()
        for name, _ in pairs
        if name in derived - {"Config"}
    }


def parts(config: Any) -> Iterator[Config]:
    """A config and all that it holds."""
    if isinstance(config, Config):
        yield config
        for name in type(config).model_fields:
            yield from parts(getattr(config, name))
    elif isinstance(config, Mapping):
        yield from (part for value in config.values() for part in parts(value))
    elif isinstance(config, Sequence) and not isinstance(config, str):
        yield from (part for value in config for part in parts(value))


@functools.cache
def shipped() -> dict[type[Config], list[Config]]:
    """Objects of each class that are in the files that ship."""
    found: dict[type[Config], list[Config]] = {}
    for resource in list_everything():
        name = "OperatorTable" if resource.name.endswith("-operators") else SHIPPED.get(resource.kind)
        if name is None:
            continue
        values = (load_yaml if resource.path.suffix == ".yaml" else read_json)(resource.path)
        cls = next(cls for cls in classes().values() if cls.__name__ == name)
        for part in parts(load_config(cls, values)):
            found.setdefault(type(part), []).append(part)
    return found


SIMPLE: dict[Any, st.SearchStrategy[Any]] = {
    type(None): st.none(),
    bool: st.booleans(),
    int: st.integers(-2, 70) | st.integers(0, 2**40),
    float: st.sampled_from([0.0, 0.1, 0.5, 1.0, 1e-4, 3e20]) | st.floats(0, 1) | st.floats(-1e9, 1e9),
    str: st.sampled_from(["a", "latent", "{images}{question}", "Answer: {answer}", "1e5", "no", "é: b"])
    | st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8),
    Path: st.sampled_from(["data.jsonl", "a folder/with spaces"]).map(Path),
}


def drawn(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind in SIMPLE:
        return SIMPLE[kind]
    if origin is typing.Annotated:
        return drawn(inner[0])
    if origin is typing.Literal:
        return st.sampled_from(inner)
    if origin in (typing.Union, types.UnionType):
        return st.one_of([drawn(one) for one in inner])
    if origin is tuple and len(inner) == 2 and inner[1] is Ellipsis:
        return st.lists(drawn(inner[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*map(drawn, inner))
    if origin is dict:
        return st.dictionaries(drawn(inner[0]), drawn(inner[1]), max_size=3)
    if isinstance(kind, type) and issubclass(kind, Config):
        known = [config for cls, configs in shipped().items() if issubclass(cls, kind) for config in configs]
        return st.sampled_from(known) if known else st.nothing() if inspect.isabstract(kind) else least(kind)
    return st.nothing()


def required(field: FieldInfo) -> st.SearchStrategy[Any]:
    """Values of a field that has to be given: of its pattern where it has one, which hardly any text fits."""
    pattern = next((found for one in field.metadata if (found := getattr(one, "pattern", None))), None)
    if pattern is None:
        return drawn(field.annotation)
    return st.from_regex(pattern, alphabet=st.characters(exclude_categories=["Cs", "Cc"]))


@st.composite
def least(draw: st.DrawFn, cls: type[Config]) -> Config:
    """An object with the fields that the class asks for."""
    for _ in range(10):
        values = {name: draw(required(field)) for name, field in cls.model_fields.items() if field.is_required()}
        try:
            return cls.model_validate(values)
        except ValidationError:
            continue
    return draw(st.nothing())


@st.composite
def objects(draw: st.DrawFn, cls: type[Config], known: list[Config]) -> Config:
    config = draw(st.sampled_from(known)) if known else draw(least(cls))
    for name in draw(st.lists(st.sampled_from(sorted(cls.model_fields)), max_size=4, unique=True)):
        kept = {other: getattr(config, other) for other in config.model_fields_set}
        try:
            config = cls.model_validate(kept | {name: draw(drawn(cls.model_fields[name].annotation))})
        except ValidationError:
            continue  # another field, or a rule of the class, forbids it
    return config


def test_all_config_classes_are_found() -> None:
    assert len(classes()) >= 40
    loaded = {cls for cls in all_below(Config) if cls.__module__.startswith("lrkit.")}
    assert loaded <= set(classes().values())


def all_below(cls: type[Any]) -> Iterator[type[Any]]:
    for below in cls.__subclasses__():
        yield below
        yield from all_below(below)


@pytest.fixture(scope="module")
def known(bundle: Path) -> dict[type[Config], list[Config]]:
    found = {cls: list(configs) for cls, configs in shipped().items()}
    for part in parts(open_bundle(bundle, verify=False).manifest):
        found.setdefault(type(part), []).append(part)
    sizes = ((1, 3), (2, 64), (4, 256))
    engine = EngineEntry(
        file="engines/a.plan", kind="tensorrt", version="10.13.2", graph="program", archs=("sm89",), build_seconds=1.5,
        profile={"input_ids": sizes}, options={"level": 3, "names": ["a"], "nested": {"on": None}},
    )  # fmt: skip
    step = StepEntry(file="think.onnx", spec=cast(IoSpec, found[IoSpec][0]))
    taken = TakenEngine(role="latent", onnx_sha256="0" * 64, entry=engine)
    flat = FlatShape(
        description="small", hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=96,
        vocabulary=256, tied_embeddings=True, vision_depth=1, vision_width=32, vision_heads=2, vision_mlp_ratio=2,
        patch_size=4, merge_size=2, image_size=(80, 32),
    )  # fmt: skip
    shrunk = {"image": 0, "original": [800, 320], "used": [80, 32], "limit": "max_pixels"}
    scene = SceneNote.model_validate({
        "version": 1, "lrkit": "0.1.0", "model": "0" * 64, "engine": "torch", "dtype": "float32",
        "family": "qwen2_vl", "grids": [[1, 8, 20]], "sizes": [[80, 32]], "content": "1" * 64, "resized": [shrunk],
    })  # fmt: skip
    made: dict[type[Config], list[Config]] = {
        SceneNote: [scene], EngineEntry: [engine], StepEntry: [step], TakenEngine: [taken], FlatShape: [flat]
    }  # fmt: skip
    return found | made


@pytest.mark.parametrize("name", sorted(name for name, cls in classes().items() if not inspect.isabstract(cls)))
def test_what_is_written_reads_back_equal_and_unknown_keys_are_refused(
    name: str, known: dict[type[Config], list[Config]]
) -> None:
    cls = classes()[name]

    @settings(max_examples=6)
    @given(objects(cls, known.get(cls, [])))
    def holds(config: Config) -> None:
        values = parse_yaml(dump_yaml(config), "it")
        assert load_config(cls, values) == config
        assert cls.model_validate_json(config.model_dump_json()) == config or "Infinity" in dump_yaml(config)
        with pytest.raises(ConfigError, match="of_no_class"):
            load_config(cls, {**values, "of_no_class": 1})

    holds()
