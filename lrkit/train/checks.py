"""Checks whether a recipe can be run here, and reports all problems together, before a weight is loaded. Torch-free.

recipe -> `check_start`     what every run checks first; seconds, however large the data
       -> `find_problems`   `lrkit train --dry-run`: also every line, text and picture, and all files
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from lrkit.checkpoints.checkpoint_folder import read_info
from lrkit.checkpoints.quantized.table import quantization_of
from lrkit.config import load_config
from lrkit.contract.attention import problems as attention_problems
from lrkit.contract.sample import Sample
from lrkit.contract.settings import ReasonerSettings
from lrkit.data.jsonl import Advance, JsonlScan
from lrkit.data.sources import length_problems
from lrkit.errors import CheckpointError, ConfigError, LrkitError, MissingExtraError, UserError, require
from lrkit.families.layout import Layout
from lrkit.families.table import read_layout
from lrkit.files import read_json
from lrkit.gpus import torch_can_use
from lrkit.pretrained import HUB_PREFIX, is_hub_id
from lrkit.resources import REASONER_FILE, resolve_checkpoint
from lrkit.runtime.checks.checkpoint_files import check_checkpoint
from lrkit.runtime.encode.processor import Processor
from lrkit.train.known_bases import BASES
from lrkit.train.recipe import Recipe, as_written, differences, load_recipe, overlay
from lrkit.train.run_folder import RECIPE_FILE, check_folder
from lrkit.train.stage import OwnGroup

T = TypeVar("T")

PACKAGES = ("torch", "transformers", "peft", "accelerate", "tensorboard", "sklearn")
"""What training imports beside the base install."""

ADAPTER_FILE = "adapter_config.json"


@dataclass
class Problems:
    """What was found so far."""

    errors: list[LrkitError] = field(default_factory=list)

    def attempt(self, function: Callable[..., T], *given: Any, prefix: str = "") -> T | None:
        """The function's value; where it raises a problem, that is kept and the value is None."""
        try:
            return function(*given)
        except LrkitError as error:
            kind = type(error) if isinstance(error, UserError) else UserError
            self.errors += [kind(prefix + line) for line in str(error).splitlines()]
            return None

    def add(self, kind: type[UserError], lines: Iterator[str]) -> None:
        """More problems of one kind."""
        self.errors += [kind(line) for line in lines]

    def raise_if_any(self) -> None:
        """All problems as one error, a line each.

        Raises:
            UserError: of the problems' own class where all have the same.
        """
        if self.errors:
            kinds = {type(error) for error in self.errors}
            kind = kinds.pop() if len(kinds) == 1 else UserError
            raise kind("\n".join(dict.fromkeys(map(str, self.errors))))


@dataclass(frozen=True)
class Init:
    """What can be known of a run's start without loading it."""

    folder: Path | None
    """None for random weights and models of the hub."""
    settings: ReasonerSettings
    """Those of the run."""
    layout: Layout | None = None
    """What config.json says of the backbone; None where it is not known yet."""


def check_start(recipe: Recipe) -> ReasonerSettings:
    """The settings that the run will have.

    Raises:
        CheckpointError: `init` or a baseline is not there, or cannot be trained as asked.
        ConfigError: the settings do not go together, or do not fit the model.
        UserError: several of these.
    """
    problems = Problems()
    init = _check_init(recipe, problems)
    problems.add(UserError, _kernel_problems(recipe))
    _check_teacher(recipe, init, problems)
    for mode, where in recipe.baselines.items():
        problems.attempt(resolve_checkpoint, where, prefix=f"baselines.{mode}: ")
    problems.raise_if_any()
    assert init is not None  # or there was a problem
    return init.settings


def check_init(recipe: Recipe) -> Init:
    """The start alone, for a plan: kernels, teacher and baselines are not looked for.

    Raises:
        CheckpointError: `init` is not there, or cannot be trained as asked.
        ConfigError: the settings do not go together, or do not fit the model.
    """
    problems = Problems()
    init = _check_init(recipe, problems)
    problems.raise_if_any()
    assert init is not None  # or there was a problem
    return init


def find_problems(recipe: Recipe, folder: Path, resume: bool, reading: Callable[[Path], Advance] | None = None) -> None:
    """Everything that can be checked without weights. `reading` gives what is told how far a data file was read.

    Raises:
        UserError: with a line for each problem.
    """
    problems = Problems()
    init = _check_init(recipe, problems)
    problems.add(UserError, _kernel_problems(recipe))
    processor = _check_files(init, recipe, problems) if init is not None else None
    _check_teacher(recipe, init, problems)
    for mode, where in recipe.baselines.items():
        found = problems.attempt(resolve_checkpoint, where, prefix=f"baselines.{mode}: ")
        if found is not None:
            problems.attempt(_check_checkpoint, found, prefix=f"baselines.{mode}: ")
    _check_lines(recipe, init, processor, problems, reading)
    if not recipe.data.drawn or missing_package() is None:
        problems.attempt(recipe.data.try_out, recipe.stages, recipe.seed, processor, prefix="data: ")
    if problems.attempt(check_folder, folder, resume):
        problems.attempt(_check_recipe_of if missing_package() is not None else _check_state, folder, recipe)
    problems.raise_if_any()


def _check_teacher(recipe: Recipe, init: Init | None, problems: Problems) -> None:
    """Somebody says where to look if the pointing loss asks, and nobody if it does not."""
    if recipe.teacher is not None:
        problems.attempt(_check_latent, recipe.teacher, prefix="teacher: ")
    if init is not None:
        problems.add(ConfigError, _pointing_problems(recipe, init.settings.distill.pointing))


def _check_latent(name: str) -> None:
    """Raises: UserError: a checkpoint is not there, or was not trained to take latent steps."""
    info = read_info(resolve_checkpoint(name))
    stage = info.get("stage")
    mode = stage.get("mode", "latent") if isinstance(stage, dict) else "latent"
    mode = None if info["latent_id"] is None else mode
    if mode != "latent":
        what = "a plain model" if mode is None else f"trained for the mode {mode}"
        raise CheckpointError(
            f"{name} is {what}, so it takes no latent steps that could point anywhere; give a checkpoint of a latent "
            "stage"
        )


def _pointing_problems(recipe: Recipe, weight: float) -> Iterator[str]:
    if weight and recipe.teacher is None and not recipe.data.points:
        yield (
            "model.distill.pointing is above 0, and nothing says where to look: the data has no such labels; give a "
            "teacher, or set model.distill.pointing=0"
        )
    if recipe.teacher is not None and not weight:
        yield "teacher is given, and model.distill.pointing is 0, so nobody listens; set it above 0 or remove teacher"


def missing_package() -> str | None:
    """The sentence of the first package that training needs and that is not there."""
    try:
        for package in PACKAGES:
            require(package, "train")
    except MissingExtraError as error:
        return str(error)
    return None


def unchecked(recipe: Recipe) -> Iterator[str]:
    """What `find_problems` cannot look at, in words."""
    if recipe.data.drawn and missing_package() is not None:
        yield recipe.data.drawn
    yield from recipe.data.unchecked()
    if isinstance(recipe.init, str) and recipe.init.startswith(HUB_PREFIX):
        yield f"{recipe.init}, which is fetched from the network when the run starts, and the data's words in it"


def init_folder(init: str) -> Path:
    """The folder of a checkpoint by name or path, or of a plain Hugging Face model.

    Raises:
        CheckpointError: neither.
    """
    try:
        return resolve_checkpoint(init)
    except CheckpointError as error:
        hint = f", or write init: {HUB_PREFIX}{init} to have it fetched" if is_hub_id(init) else ""
        if (name := Path(init).name) in BASES:
            hint = f", or make it: lrkit fetch-base {name}"
        raise CheckpointError(f"init: {error}{hint}") from error


def _kernel_problems(recipe: Recipe) -> Iterator[str]:
    """Kernels of attention that cannot run here; a run takes the GPU where torch can use one."""
    if recipe.attention.asked:
        yield from attention_problems(recipe.attention, "cuda" if torch_can_use() else "cpu", None)


def _check_init(recipe: Recipe, problems: Problems) -> Init | None:
    """Folder, settings and shape of the start; None where it is not there."""
    if not isinstance(recipe.init, str):
        problems.add(ConfigError, _model_problems(recipe.model, recipe.init.num_layers))
        problems.add(ConfigError, _rate_problems(recipe, recipe.model))
        return Init(None, recipe.model)
    if recipe.init.startswith(HUB_PREFIX):
        problems.add(ConfigError, _rate_problems(recipe, recipe.model))
        return Init(None, recipe.model)
    folder = problems.attempt(init_folder, recipe.init)
    if folder is None:
        return None
    settings = problems.attempt(_settings_of, folder, recipe)
    if settings is None:
        settings = recipe.model
    else:
        problems.add(ConfigError, _rate_problems(recipe, settings))
    layout = problems.attempt(read_layout, folder, prefix="init: ")
    problems.attempt(quantization_of, folder, prefix="init: ")
    if layout is not None:
        problems.add(ConfigError, _model_problems(settings, layout.num_layers))
    return Init(folder, settings, layout)


def _settings_of(folder: Path, recipe: Recipe) -> ReasonerSettings:
    if not (folder / REASONER_FILE).is_file():
        return recipe.model
    info = read_json(folder / REASONER_FILE, CheckpointError)
    try:
        own = load_config(ReasonerSettings, info.get("settings") or {})
    except ConfigError as error:
        lines = str(error).splitlines()
        raise CheckpointError("\n".join(f"{folder / REASONER_FILE}: {line}" for line in lines)) from error
    settings = overlay(own, recipe.model)
    if not (folder / ADAPTER_FILE).is_file():
        return settings
    if recipe.trainable == "full":
        raise CheckpointError(
            f"init: {recipe.init} is an adapter, which trainable: full cannot train; set trainable: lora or start from "
            "its base"
        )
    if settings.lora != own.lora:
        raise CheckpointError(
            f"init: {recipe.init} has an adapter of rank {own.lora.rank}, alpha {own.lora.alpha} and dropout "
            f"{own.lora.dropout}, model.lora asks for {settings.lora.rank}, {settings.lora.alpha} and "
            f"{settings.lora.dropout}; leave these out or start from its base"
        )
    return settings


def _model_problems(settings: ReasonerSettings, num_layers: int) -> Iterator[str]:
    """Settings that a backbone of so many layers cannot have."""
    if settings.routing.depth:
        outside = [layer for layer in settings.routing.chosen_layers(num_layers) if not 0 <= layer < num_layers]
        if outside:
            yield (
                f"model.routing.layers: the model has the layers 0 to {num_layers - 1}, not "
                f"{', '.join(map(str, outside))}; leave these out"
            )
    if problem := settings.prune.problem(num_layers):
        yield f"model.{problem}"


def _rate_problems(recipe: Recipe, settings: ReasonerSettings) -> Iterator[str]:
    """Rates of weights that the model will not have."""
    absent: dict[OwnGroup, str] = {}
    if settings.routing.depth == 0:
        absent |= dict.fromkeys(("step_encodings", "routers"), "model.routing.depth")
    if settings.distill.weight == 0:
        absent["distillation"] = "model.distill.weight"
    named = {
        "optimizer": recipe.optimizer,
        **{f"stages.{i}.optimizer": s.optimizer for i, s in enumerate(recipe.stages)},
    }
    for where, optimizer in named.items():
        for group in optimizer.rates:
            if group in absent:
                yield (
                    f"{where}.rates: {group} are weights that this model does not have, because {absent[group]} is 0; "
                    f"set {absent[group]} above 0, or leave {group} out"
                )


def _check_files(init: Init, recipe: Recipe, problems: Problems) -> Processor | None:
    """All files of `init`; its processor, as training will have it."""
    if init.folder is None:
        return None
    problems.attempt(_check_checkpoint, init.folder, prefix="init: ")
    processor = problems.attempt(Processor.from_folder, init.folder, prefix="init: ")
    if processor is not None and init.layout is not None and not (init.folder / REASONER_FILE).is_file():
        problems.add(CheckpointError, _latent_problems(processor, init.layout.vocabulary))
    geometry = None if processor is None else problems.attempt(processor.geometry.with_max_pixels, recipe.max_pixels)
    if processor is not None and geometry is not None:
        processor.geometry = geometry
        problems.attempt(processor.see_for, init.settings.replay, prefix="model.")
    return processor


def _check_checkpoint(folder: Path) -> None:
    check_checkpoint(folder, values=False).raise_if_bad()


def _latent_problems(processor: Processor, rows: int) -> Iterator[str]:
    if processor.latent_id >= rows:
        yield (
            f"init: the model has {rows} embedding rows and no room for {processor.format.tokens.latent}; enlarge its "
            "embedding first (resize_token_embeddings of transformers)"
        )


def _check_lines(
    recipe: Recipe,
    init: Init | None,
    processor: Processor | None,
    problems: Problems,
    reading: Callable[[Path], Advance] | None,
) -> None:
    """Every line, text and picture of the data's files."""
    for part, path in (problems.attempt(recipe.data.parts) or {}).items():
        read = None if reading is None or not path.is_file() else reading(path)
        scan = problems.attempt(recipe.data.scan_part, part, processor, read)
        if scan is None:
            continue
        problems.attempt(recipe.data.settle, scan)
        if part == "train" and scan.samples:
            lengths = {len(sample.steps) for sample in scan.samples}
            problems.add(UserError, iter(length_problems(recipe.stages, path, lengths)))
        if init is not None and processor is not None:
            problems.add(UserError, _long_samples(path, scan, init, processor))


def _long_samples(path: Path, scan: JsonlScan, init: Init, processor: Processor) -> Iterator[str]:
    """Samples with more positions than the model has; pictures are looked at again only where one may be."""
    most = None if init.layout is None else init.layout.max_positions
    tokens = [scan.lengths[name].max for name in ("prompt tokens", "spoken tokens") if name in scan.lengths]
    replay = init.settings.replay
    replayed = replay.num_tokens * replay.fine_zoom**2
    latents = init.settings.think.max_latent_steps * (1 + replayed * (replay.positions == "consecutive"))
    if most is None or not tokens or sum(value or 0 for value in tokens) + latents <= most:
        return
    for sample in scan.samples:
        length = _num_positions(sample, processor, latents)
        if length > most:
            yield (
                f"{path}:{sample.info['line']}: takes {length} positions with its latent steps, and the model has "
                f"{most}; shorten the sample, or lower max_pixels"
            )


def _num_positions(sample: Sample, processor: Processor, latents: int) -> int:
    """Positions of the prompt and the longer of its explicit steps and its latents, each with the answer."""
    prompt = processor.encode_prompt(sample.images, sample.question)
    places = processor.geometry.positions(prompt.ids, processor.image_id, prompt.grids)
    spoken = len(processor.encode_speech(sample.steps, sample.answer))
    answer = len(processor.encode_speech((), sample.answer))
    return int(places.max()) + 1 + max(spoken, latents + answer)


def _check_state(folder: Path, recipe: Recipe) -> None:
    """The run in the folder was started with this recipe and with these data."""
    from lrkit.train.origin import changed
    from lrkit.train.training_state import load_state

    before = load_state(folder, recipe).origin.data
    now = recipe.data.digests()
    if problems := list(changed("data", before, now)):
        raise ConfigError("\n".join(f"{folder} cannot go on: {problem}" for problem in problems))


def _check_recipe_of(folder: Path, recipe: Recipe) -> None:
    """The run in the folder was started with this recipe. Its state says so too, but only torch can read that."""
    if not (folder / RECIPE_FILE).is_file():
        return
    before, now = ({**as_written(one), "loader": None} for one in (load_recipe(folder / RECIPE_FILE), recipe))
    if changed := list(differences(before, now)):
        raise ConfigError("\n".join(f"{folder} was started with another recipe: {line}" for line in changed))
