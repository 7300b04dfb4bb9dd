"""Writes a small real bundle for tests: programs of tiny random reasoners, the word tokenizer, a full manifest.

What its recorded samples expect is what torch answers.
"""

from pathlib import Path

import onnx_ir as ir
from PIL import Image

from lrkit.data.tokenizer import build_word_tokenizer
from lrkit.data.trail import VOCABULARY as WORDS
from lrkit.data.trail import trail_set
from lrkit.export.target import Target
from lrkit.model.settings import ReasonerSettings
from lrkit.runtime.engine import AskOptions
from lrkit.runtime.manifest import BUNDLE_FILE, Manifest, ProgramEntry, RecordedSample, Role, TokenIds, digest
from lrkit.runtime.preprocess import ImageGeometry
from lrkit.runtime.processor import Processor
from lrkit.runtime.prompt import PromptFormat
from lrkit.runtime.session import Reasoner
from lrkit.runtime.torch_engine import TorchEngine
from tests import programs
from tests.tiny import EOS, FRAMES, IMAGE, LATENT, MERGE, PAD, PATCH, tiny_reasoner

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
CAPACITY = {"max_prompt_tokens": 120, "max_patches": 200, "max_images": 2}
"""A trail picture has 160 patches, so two pictures of that size are too many."""
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
    """A bundle with the roles latent and cot and a recorded sample for each."""
    folder.mkdir(parents=True)
    processor().save(folder)
    manifest = Manifest(
        name="random", target=Target().model_dump(mode="json"),
        programs={role: _write_program(folder, role) for role in SETTINGS},
        limits=programs.limits(SETTINGS["latent"], **CAPACITY),
        tokens=TokenIds(image=IMAGE, latent=LATENT, eos=EOS, pad=PAD), merge_size=MERGE,
        samples=tuple(_record(folder, role) for role in SETTINGS),
        files={str(path.relative_to(folder)): digest(path) for path in sorted(folder.rglob("*")) if path.is_file()},
        validation={}, provenance={},
    )  # fmt: skip
    (folder / BUNDLE_FILE).write_text(manifest.model_dump_json(indent=2), encoding="utf-8")
    return folder


def _write_program(folder: Path, role: Role) -> ProgramEntry:
    reasoner = tiny_reasoner(SETTINGS[role])
    built = programs.build(reasoner, **CAPACITY)
    ir.save(built.model, folder / f"{role}.onnx")
    return ProgramEntry(
        file=f"{role}.onnx", dialect="ort", precision="fp32", spec=built.spec, settings=reasoner.settings,
        num_layers=reasoner.backbone.num_layers, routed_layers=built.routed_layers, bytes_by_part=built.part_bytes,
    )  # fmt: skip


def _record(folder: Path, role: Role) -> RecordedSample:
    name = f"samples/{role}.png"
    (folder / "samples").mkdir(exist_ok=True)
    picture().save(folder / name)
    engine = torch_reasoner(role).engine
    prompt = engine.processor.encode_prompt([picture()], QUESTION)
    (told,) = engine.generate([prompt], AskOptions(mode=role, max_new_tokens=programs.MAX_NEW_TOKENS))
    return RecordedSample(
        images=(name,), question=QUESTION, answer="1", role=role, token_ids=tuple(told.token_ids),
        latent_steps=told.latent_steps,
    )  # fmt: skip
