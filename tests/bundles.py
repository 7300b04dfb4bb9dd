"""Writes small real bundles for tests: programs of tiny random reasoners, the word tokenizer, a full manifest."""

from pathlib import Path

import onnx_ir as ir

from lrkit.data.tokenizer import build_word_tokenizer
from lrkit.data.trail import VOCABULARY as WORDS
from lrkit.export.target import Target
from lrkit.model.reasoner import LatentReasoner
from lrkit.model.settings import ReasonerSettings
from lrkit.runtime.manifest import BUNDLE_FILE, Manifest, RecordedSample, Role, TokenIds, digest
from lrkit.runtime.preprocess import ImageGeometry
from lrkit.runtime.processor import Processor
from lrkit.runtime.prompt import PromptFormat
from tests import programs
from tests.tiny import EOS, FRAMES, IMAGE, LATENT, MERGE, PAD, PATCH, tiny_reasoner

THINKING = ReasonerSettings.model_validate(
    {
        "think": {"max_latent_steps": 3, "halting": "fixed"},
        "replay": {"num_tokens": 4},
        "routing": {"depth": 1, "alpha": 8},
    }
)
PLAIN = ReasonerSettings.model_validate({"think": {"max_latent_steps": 0}, "replay": {"num_tokens": 0}})


def processor() -> Processor:
    """The trail data's words have ids below the tiny reasoner's vocabulary, and the special tokens have its ids."""
    geometry = ImageGeometry(
        patch_size=PATCH, merge_size=MERGE, temporal_patch_size=FRAMES, min_pixels=64, max_pixels=8192
    )
    return Processor(build_word_tokenizer(WORDS), geometry, PromptFormat())


def reasoners() -> dict[Role, LatentReasoner]:
    """One reasoner per role, as `write_bundle` exports them."""
    return {"latent": tiny_reasoner(THINKING), "cot": tiny_reasoner(PLAIN, seed=0)}


def write_bundle(folder: Path, samples: tuple[RecordedSample, ...] = ()) -> Path:
    """A bundle with the roles latent and cot in `folder`; pictures of `samples` must lie there already."""
    folder.mkdir(parents=True, exist_ok=True)
    processor().save(folder)
    entries = {}
    for role, reasoner in reasoners().items():
        built = programs.build(reasoner, max_prompt_tokens=128, max_patches=200, max_images=2)
        ir.save(built.model, folder / f"{role}.onnx")
        entries[role] = {
            "file": f"{role}.onnx", "dialect": "ort", "precision": "fp32", "spec": built.spec,
            "settings": reasoner.settings, "num_layers": reasoner.backbone.num_layers,
            "routed_layers": built.routed_layers, "bytes_by_part": built.part_bytes,
        }  # fmt: skip
    manifest = Manifest(
        name="random", target=Target().model_dump(mode="json"), programs=entries,
        limits=programs.limits(THINKING, max_prompt_tokens=128, max_patches=200, max_images=2),
        tokens=TokenIds(image=IMAGE, latent=LATENT, eos=EOS, pad=PAD), merge_size=MERGE,
        files={str(path.relative_to(folder)): digest(path) for path in sorted(folder.rglob("*")) if path.is_file()},
        samples=samples, validation={}, provenance={},
    )  # fmt: skip
    (folder / BUNDLE_FILE).write_text(manifest.model_dump_json(indent=2), encoding="utf-8")
    return folder
