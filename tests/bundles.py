"""Exports a small real bundle for tests: tiny random reasoners with the word tokenizer of the trail data."""

from pathlib import Path

from PIL import Image

from lrkit.contract.bundle.io_spec import Form
from lrkit.contract.bundle.manifest import BUNDLE_FILE, Manifest, Role, digest
from lrkit.contract.prompt import PromptFormat
from lrkit.contract.settings import ReasonerSettings
from lrkit.data.tokenizer import build_word_tokenizer
from lrkit.data.trail import VOCABULARY as WORDS
from lrkit.data.trail import trail_set
from lrkit.export.bundle import export_bundle
from lrkit.export.graph.front import write_front
from lrkit.export.targets.engine_target import EngineTarget, OpenVinoTarget
from lrkit.export.targets.target import ProgramLimits, Target
from lrkit.export.tensorrt.into_bundle import add_engines
from lrkit.families.qwen2_vl.geometry import ImageGeometry
from lrkit.model.checkpoint import save_checkpoint
from lrkit.runtime.encode.processor import Processor
from lrkit.runtime.engines.torch.engine import TorchEngine
from lrkit.runtime.sdk import Reasoner
from tests.tiny import FRAMES, MERGE, PATCH, tiny_reasoner

SETTINGS: dict[Role, ReasonerSettings] = {
    "latent": ReasonerSettings.model_validate(
        {
            "think": {"max_latent_steps": 3, "halting": "fixed"},
            "replay": {"num_tokens": 4},
            "routing": {"depth": 1, "alpha": 8},
        }
    ),
    "cot": ReasonerSettings.model_validate({"think": {"max_latent_steps": 0}, "replay": {"num_tokens": 0}}),
}
MAX_NEW_TOKENS = 6
CAPACITY = {"max_prompt_tokens": 120, "max_patches": 200, "max_images": 2, "max_new_tokens": MAX_NEW_TOKENS}
"""A trail picture has 160 patches, so two pictures of that size are too many."""
TARGET = Target(limits=ProgramLimits(**CAPACITY))
QUESTION = "Take 3 hops. Which room are you in? Start in room 4"


def picture(number: int = 2) -> Image.Image:
    """A picture of the trail data, 80 x 32 pixels."""
    image = trail_set("main", "test", number + 1)[number].images[0]
    assert isinstance(image, Image.Image)
    return image


def processor() -> Processor:
    """The trail data's words have ids below the tiny reasoner's vocabulary, and the special tokens have its ids."""
    geometry = ImageGeometry(
        patch_size=PATCH, merge_size=MERGE, temporal_patch_size=FRAMES, min_pixels=64, max_pixels=8192
    )
    return Processor(build_word_tokenizer(WORDS), geometry, PromptFormat())


def torch_reasoner(role: Role = "latent") -> Reasoner:
    """The same weights on torch."""
    return Reasoner(TorchEngine(tiny_reasoner(SETTINGS[role]), processor()))


def write_bundle(folder: Path) -> Path:
    """Exports a bundle with the roles latent and cot to `folder`/bundle; the checkpoints are beside it."""
    for role, others in (("cot", {}), ("latent", {"baselines": {"cot": "../cot"}})):
        info = {"stage": role, **others}
        save_checkpoint(folder / role, tiny_reasoner(SETTINGS[role]), processor(), base=None, info=info)
    return export_bundle(folder / "latent", folder / "bundle", TARGET, trail_set("main", "test", 4)).folder


def write_step_bundle(bundle: Path) -> Path:
    """The latent role of `bundle` once more, in the form `step`."""
    place = bundle.parent / "step-bundle"
    samples = trail_set("main", "test", 2)
    return export_bundle(bundle.parent / "latent", place, TARGET, samples, form="step", baselines=False).folder


def add_front(bundle: Path) -> Path:
    """Gives a bundle a front, as an export with front=true does."""
    manifest = Manifest.model_validate_json((bundle / BUNDLE_FILE).read_text(encoding="utf-8"))
    front = write_front(bundle, Processor.from_folder(bundle, manifest.family))
    files = {**manifest.files, front.file: digest(bundle / front.file)}
    told = manifest.model_copy(update={"front": front, "files": files})
    (bundle / BUNDLE_FILE).write_text(told.model_dump_json(), encoding="utf-8")
    return bundle


def write_openvino_bundle(bundle: Path, form: Form = "program") -> Path:
    """The latent role of `bundle` for OpenVINO, on which it is compared with torch."""
    place = bundle.parent / f"openvino-{form}"
    target = Target(dialect="standard", openvino=OpenVinoTarget(), limits=ProgramLimits(**CAPACITY))
    samples = trail_set("main", "test", 2)
    return export_bundle(bundle.parent / "latent", place, target, samples, form=form, baselines=False).folder


def write_engine_bundle(bundle: Path, form: Form = "program") -> Path:
    """The latent role of `bundle` in the dialect standard, with a real engine of TensorRT-RTX for sm89 per graph."""
    place = bundle.parent / f"engine-{form}"
    target = TARGET.model_copy(update={"dialect": "standard"})
    samples = trail_set("main", "test", 2)
    export_bundle(bundle.parent / "latent", place, target, samples, form=form, baselines=False)
    add_engines(place, EngineTarget(kind="tensorrt-rtx", archs=("sm89",)))
    return place
