"""lrkit: vision-language models that reason in a few latent steps, from training to the device.

The public names. Each is imported on first use, so that `import lrkit` stays cheap and silent:

    from lrkit import Reasoner

    answer = Reasoner.load("bundle").ask("rooms.png", "Take 4 hops. Which room are you in? Start in room 3")

| to ... | there is |
|---|---|
| ask | `Reasoner`, `Answer`, `Scene` |
| train | `train_recipe`, `load_recipe`, `Recipe` |
| export | `export_model`, `Target`; `open_bundle`, `check_bundle`, `Bundle` |
| measure | `evaluate_model`, `Evaluation`, `profile_models`, `probe_model`; `load_samples`, `Sample` |
| publish | `push_to_hub`, `save_pretrained`; `Reasoner.from_pretrained` |
| catch | `LrkitError`, and of it `UserError`: something that the caller can mend |

`lrkit.train`, `lrkit.export`, `lrkit.evaluate`, `lrkit.probe` and `lrkit.profile` are packages, so the functions say in
their names what they work on. Modules, and names in them, may change from release to release; these names stay.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lrkit.telemetry import turn_off

if TYPE_CHECKING:
    from lrkit.api import check_bundle, evaluate_model, export_model, probe_model, profile_models, train_recipe
    from lrkit.contract.bundle.bundle_folder import Bundle, open_bundle
    from lrkit.contract.sample import Sample
    from lrkit.data.sources import load_samples
    from lrkit.errors import LrkitError, UserError
    from lrkit.evaluate.evaluation import Evaluation
    from lrkit.export.targets.target import Target
    from lrkit.publish.push import push_to_hub, save_pretrained
    from lrkit.runtime.answer.answer import Answer
    from lrkit.runtime.scenes.scene import Scene
    from lrkit.runtime.sdk import Reasoner
    from lrkit.train.recipe import Recipe, load_recipe

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "Bundle",
    "Evaluation",
    "LrkitError",
    "Reasoner",
    "Recipe",
    "Sample",
    "Scene",
    "Target",
    "UserError",
    "__version__",
    "check_bundle",
    "evaluate_model",
    "export_model",
    "load_recipe",
    "load_samples",
    "open_bundle",
    "probe_model",
    "profile_models",
    "push_to_hub",
    "save_pretrained",
    "train_recipe",
]

_LAZY = {
    "Answer": "lrkit.runtime.answer.answer",
    "Bundle": "lrkit.contract.bundle.bundle_folder",
    "Evaluation": "lrkit.evaluate.evaluation",
    "LrkitError": "lrkit.errors",
    "Reasoner": "lrkit.runtime.sdk",
    "Recipe": "lrkit.train.recipe",
    "Sample": "lrkit.contract.sample",
    "Scene": "lrkit.runtime.scenes.scene",
    "Target": "lrkit.export.targets.target",
    "UserError": "lrkit.errors",
    "check_bundle": "lrkit.api",
    "evaluate_model": "lrkit.api",
    "export_model": "lrkit.api",
    "load_recipe": "lrkit.train.recipe",
    "load_samples": "lrkit.data.sources",
    "open_bundle": "lrkit.contract.bundle.bundle_folder",
    "probe_model": "lrkit.api",
    "profile_models": "lrkit.api",
    "push_to_hub": "lrkit.publish.push",
    "save_pretrained": "lrkit.publish.push",
    "train_recipe": "lrkit.api",
}


turn_off()


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'lrkit' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
