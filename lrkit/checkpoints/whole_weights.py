"""Checks by their headers that the weights of a checkpoint are all there, of the right shapes, and made for each other.
Torch-free.

Place in the pipeline: the loader asks before it takes memory, and so does `lrkit validate`, so that both refuse the
same checkpoints. transformers then only meets files that hold what their config.json promises.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrkit.checkpoints.checkpoint_folder import (
    ADAPTER_FILE,
    ADAPTER_WEIGHTS,
    EXTRAS_FILE,
    INFO_FILE,
    OWN_BACKBONE,
    WEIGHTS,
    base_folder,
    is_plain,
    read_info,
    read_settings,
)
from lrkit.checkpoints.quantized.table import unpacked
from lrkit.checkpoints.tensors.stored import FLOATS, StoredTensor, Weight, is_plain_name, read_header, same_values
from lrkit.contract.settings import ReasonerSettings
from lrkit.errors import CheckpointError, clean, shown
from lrkit.families.layout import Layout, Shape
from lrkit.families.table import read_layout
from lrkit.files import read_json
from lrkit.pretrained import place_by_hand

_AGAIN = "copy the checkpoint again"
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "adapter_model.bin")
# What peft would do beyond plain LoRA by one scale. lrkit trains none of it, and some of it names code.
_BEYOND = (
    "auto_mapping", "modules_to_save", "rank_pattern", "alpha_pattern", "layers_to_transform", "layers_pattern",
    "exclude_modules", "layer_replication", "target_parameters", "trainable_token_indices", "use_rslora", "use_dora",
    "use_qalora", "use_bdlora", "fan_in_fan_out", "lora_bias", "alora_invocation_tokens", "megatron_config",
    "loftq_config", "corda_config", "eva_config", "arrow_config", "kasa_config", "lora_ga_config", "velora_config",
    "monteclora_config",
)  # fmt: skip


@dataclass(frozen=True)
class CheckedWeights:
    """A checkpoint whose files fit together."""

    folder: Path
    info: Mapping[str, Any]
    """reasoner.json; see `read_info` for a plain folder."""
    settings: ReasonerSettings
    base: Path
    """Folder of the backbone's weights."""
    layout: Layout
    latent_id: int
    """Token of the latent step; of a plain model that of the image, which no answer holds."""
    backbone: Mapping[str, Weight]
    """By name in transformers; where the checkpoint holds a weight of its own for the base's, that one."""
    adapter: Mapping[str, StoredTensor]
    """Empty without one; by name in the file."""
    extras: Mapping[str, StoredTensor]
    """Empty for a plain model."""
    replaced: Mapping[str, StoredTensor]
    """By name in transformers: weights in lrkit.safetensors that stand in place of the base's. Mostly empty."""

    @property
    def stored(self) -> list[Weight]:
        """All tensors that loading reads."""
        return [*self.backbone.values(), *self.adapter.values(), *self.extras.values()]


def own_backbone_names(names: Iterable[str]) -> list[str]:
    """Of names in lrkit.safetensors those of the backbone's own weights, by name in transformers."""
    return [name.removeprefix(OWN_BACKBONE) for name in names if name.startswith(OWN_BACKBONE)]


def check_weights(folder: Path, download: bool = False, settings: ReasonerSettings | None = None) -> CheckedWeights:
    """Reads all that loading depends on but the values. With `settings` other than the checkpoint's own (a recipe that
    goes on from it) its extra weights need not be those that its own settings ask for.

    Raises:
        CheckpointError: the first thing that is missing, damaged or does not fit.
    """
    info = read_info(folder)
    own = read_settings(folder, info)
    base = base_folder(folder, info, download)
    layout = read_layout(base)
    backbone = check_backbone(base, layout)
    has_adapter = (folder / ADAPTER_FILE).exists()
    _refuse_pickled(folder, "adapter_model.bin")
    for place in {base} if has_adapter else {base, folder}:
        _refuse_stray_adapter(place, folder)
    adapter = check_adapter(folder, layout, own) if has_adapter else {}
    latent_id = layout.image_id if info["latent_id"] is None else int(info["latent_id"])
    if latent_id >= layout.vocabulary:
        raise CheckpointError(
            f"{folder / INFO_FILE}: latent_id is {latent_id}, the backbone has {layout.vocabulary} rows; {_AGAIN}"
        )
    extras = {} if is_plain(folder) else _header_of(folder, EXTRAS_FILE)
    replaced = {name: extras.pop(OWN_BACKBONE + name) for name in own_backbone_names(list(extras))}
    _check_replaced(folder / EXTRAS_FILE, replaced, layout)
    if not is_plain(folder) and settings is None:
        _hold_against(folder / EXTRAS_FILE, extras, dict(extra_shapes(own, layout)), _EXTRAS_WORDS)
    return CheckedWeights(
        folder, info, own, base, layout, latent_id, {**backbone, **replaced}, adapter, extras, replaced
    )


def check_backbone(base: Path, layout: Layout) -> dict[str, Weight]:
    """The weights in a backbone's folder by their names in transformers: all that `layout` asks for, and no others.
    Those that the folder holds as integers are `PackedWeight`s.

    Raises:
        CheckpointError: a file is missing, damaged or of pickled weights, or a weight is missing, too much or of
            another shape.
    """
    found = unpacked(base, tensors_by_name(base, layout), layout)
    for copy, name in layout.copies.items():
        if copy in found and name in found:
            _take_out_copy(base, found, copy, name)
    _hold_against(base, found, layout.tensors, _BACKBONE_WORDS)
    return found


def tensors_by_name(base: Path, layout: Layout) -> dict[str, StoredTensor]:
    """The tensors of a backbone's safetensors files by their names in transformers, whatever they are.

    Raises:
        CheckpointError: a file is missing, damaged or of pickled weights, or a name stands twice.
    """
    found: dict[str, StoredTensor] = {}
    for stored in _listed(base):
        name = layout.canonical(stored.name)
        if name is None:
            continue
        if name in found:
            raise CheckpointError(f"{base}: holds {clean(name)} twice; {_AGAIN}")
        found[name] = stored
    return found


def _take_out_copy(base: Path, found: dict[str, Weight], copy: str, name: str) -> None:
    """A weight that is stored a second time must have the same values: transformers would keep both otherwise."""
    one, other = found[copy], found[name]
    if isinstance(one, StoredTensor) and isinstance(other, StoredTensor):
        same = same_values(one, other)
    else:
        same = one.shape == other.shape and bool((one.read() == other.read()).all())
    if not same:
        raise CheckpointError(
            f"{base}: {copy} and {name} have different values where config.json says that they are one "
            f"(tie_word_embeddings); set that to false there, or {_AGAIN}"
        )
    del found[copy]


def check_adapter(folder: Path, layout: Layout, settings: ReasonerSettings) -> dict[str, StoredTensor]:
    """The weights of an adapter: plain LoRA on the modules that lrkit adapts, of the rank and scale in reasoner.json.

    adapter_config.json is for peft alone. It must not contradict, and nothing is made from it.

    Raises:
        CheckpointError: it is another kind of adapter, or made for another backbone or other settings.
    """
    file = folder / ADAPTER_FILE
    config = read_json(file, CheckpointError)
    for key, right, allowed in _adapter_rules(config, settings):
        if not right:
            raise CheckpointError(f"{file}: {key} is {shown(config.get(key), 60)} where {allowed}; {_AGAIN}")
    rank = settings.lora.rank
    wanted: dict[str, Shape] = {}
    for module, (inputs, outputs) in layout.adapted.items():
        wanted[f"base_model.model.{module}.lora_A.weight"] = (rank, inputs)
        wanted[f"base_model.model.{module}.lora_B.weight"] = (outputs, rank)
    tensors = _header_of(folder, ADAPTER_WEIGHTS)
    _hold_against(folder / ADAPTER_WEIGHTS, tensors, wanted, _ADAPTER_WORDS)
    return tensors


def _check_replaced(file: Path, replaced: Mapping[str, StoredTensor], layout: Layout) -> None:
    """Weights in place of the base's have its shapes, and LoRA leaves them alone."""
    if adapted := next((name for name in replaced if name.rpartition(".")[0] in layout.adapted), None):
        raise CheckpointError(
            f"{file}: {OWN_BACKBONE}{clean(adapted)[:160]} is of a matrix that LoRA adapts, which only the base may "
            "hold; put it there"
        )
    wanted = {name: shape for name, shape in layout.tensors.items() if name in replaced}
    _hold_against(file, replaced, wanted, _REPLACED_WORDS)


def extra_shapes(settings: ReasonerSettings, layout: Layout) -> Iterator[tuple[str, Shape]]:
    """Names and shapes of lrkit.safetensors, by the settings."""
    width = layout.width
    yield from {"latent.head_row_D": (width,), "latent.norm": ()}.items()
    if not layout.tied:
        yield "latent.embedding_row_D", (width,)
    if settings.think.latents != "fed_back":
        yield "latent.constant_TD", (settings.think.max_latent_steps, width)
    if settings.think.latent_scale == "learned":
        yield "latent.scale", ()
    for layer in settings.routing.chosen_layers(layout.num_layers):
        yield f"routers.{layer}.step_encoding_RD", (settings.routing.depth, width)
        mlp = settings.routing.router == "mlp"
        yield from _linear(f"routers.{layer}.router", width, 1, mlp)
    if settings.distill.weight > 0:
        yield from _linear("token_sr.map", width, width, settings.distill.head == "mlp")


def _linear(name: str, width: int, outputs: int, mlp: bool) -> Iterator[tuple[str, Shape]]:
    """One linear map, or two with an activation between them."""
    maps = {f"{name}.0": width, f"{name}.2": outputs} if mlp else {name: outputs}
    for map_name, size in maps.items():
        yield f"{map_name}.weight", (size, width)
        yield f"{map_name}.bias", (size,)


def _adapter_rules(config: Mapping[str, Any], settings: ReasonerSettings) -> list[tuple[str, bool, str]]:
    """(key, whether its value can be used, what belongs there)."""
    lora = settings.lora
    rank, alpha = config.get("r"), config.get("lora_alpha")
    numbers = isinstance(alpha, int | float) and not isinstance(alpha, bool)
    rules = [
        ("peft_type", config.get("peft_type") == "LORA", "only LORA is read"),
        ("bias", config.get("bias", "none") == "none", "only 'none' is read"),
        ("r", type(rank) is int and rank == lora.rank, f"{INFO_FILE} says {lora.rank}"),
        ("lora_alpha", numbers and alpha == lora.alpha, f"{INFO_FILE} says {lora.alpha:g}"),
    ]
    return rules + [(key, not config.get(key), "plain LoRA has nothing") for key in _BEYOND]


def _listed(base: Path) -> Iterable[StoredTensor]:
    """All tensors of a backbone, in one file or in shards. As in transformers, one file goes before an index."""
    whole, index = (base / name for name in WEIGHTS)
    if whole.exists():
        return list(read_header(whole).values())
    if not index.exists():
        for name in _PICKLED:
            _refuse_pickled(base, name)
        raise CheckpointError(f"{base} has no {WEIGHTS[0]} and no {WEIGHTS[1]}; {place_by_hand(base)}")
    return _shards(base, index)


def _header_of(folder: Path, name: str) -> dict[str, StoredTensor]:
    if not (folder / name).exists():
        raise CheckpointError(f"{folder}: has no {name}; {_AGAIN}")
    return read_header(folder / name)


def _shards(base: Path, index: Path) -> Iterator[StoredTensor]:
    places = read_json(index, CheckpointError).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()) or not places:
        raise CheckpointError(f"{index}: weight_map does not say which file holds which weight; {_AGAIN}")
    for file in dict.fromkeys(places.values()):
        if not is_plain_name(file):
            raise CheckpointError(f"{index}: names the file {clean(file)[:80]!r}, which is not in the folder; {_AGAIN}")
        if not file.endswith(".safetensors"):
            raise CheckpointError(f"{index}: names {clean(file)[:80]!r}; only .safetensors files are read")
        if not (base / file).exists():
            raise CheckpointError(f"{base / file} is not there, and {index.name} names it; put it there by hand")
        held = read_header(base / file)
        if lost := next((name for name, place in places.items() if place == file and name not in held), None):
            raise CheckpointError(
                f"{base / file}: lacks {clean(lost)[:120]}, which {index.name} says is in it; {_AGAIN}"
            )
        yield from held.values()


def _refuse_pickled(folder: Path, name: str) -> None:
    if (folder / name).exists():
        raise CheckpointError(
            f"{folder / name}: pickled weights can run code when they are read; save them as safetensors"
        )


def _refuse_stray_adapter(place: Path, folder: Path) -> None:
    """transformers puts an adapter on by itself when it finds one beside the weights."""
    for name in (ADAPTER_FILE, ADAPTER_WEIGHTS):
        if (place / name).exists():
            whose = "the backbone's folder" if place != folder else "a folder with weights of its own"
            raise CheckpointError(
                f"{place / name}: an adapter in {whose} is not read; name the backbone as base in {INFO_FILE}, or "
                "take the file out"
            )


@dataclass(frozen=True)
class _Words:
    """How a misfit is told."""

    what: str
    against: str
    remedy: str


_BACKBONE_WORDS = _Words("its weights do not fit config.json", "config.json needs", _AGAIN)
_ADAPTER_WORDS = _Words(
    "the adapter does not fit its backbone", "the backbone and reasoner.json need",
    "give the adapter that was trained on this backbone",
)  # fmt: skip
_REPLACED_WORDS = _Words(
    "what it has in place of the base's weights does not fit config.json", "config.json needs", _AGAIN
)
_EXTRAS_WORDS = _Words(
    "does not fit the settings in reasoner.json", "the settings in reasoner.json need",
    "the two files must come from the same checkpoint",
)  # fmt: skip


def _hold_against(place: Path, found: Mapping[str, Weight], wanted: Mapping[str, Shape], words: _Words) -> None:
    """Names, shapes and types; the first misfit is told."""
    missing = [name for name in wanted if name not in found]
    if missing:
        raise CheckpointError(f"{place}: {words.what}: {_count(missing, 'lacks')}; {words.remedy}")
    homeless = [name for name in found if name not in wanted]
    if homeless:
        raise CheckpointError(f"{place}: {words.what}: {_count(homeless, 'has no place for')}; {words.remedy}")
    for name, shape in wanted.items():
        stored = found[name]
        if stored.shape != shape:
            raise CheckpointError(
                f"{stored.file}: {words.what}: {clean(name)} has shape {stored.shape}, {words.against} {shape}; "
                f"{words.remedy}"
            )
        if stored.dtype not in FLOATS:
            raise CheckpointError(
                f"{stored.file}: {clean(name)} is of type {stored.dtype}, lrkit reads {', '.join(FLOATS)}; give "
                "weights that are not quantized"
            )


def _count(names: list[str], what: str) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{what} {clean(names[0])[:160]}{more}"
