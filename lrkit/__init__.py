"""lrkit: vision-language models that reason in a few latent steps, from training to the device.

The public names, imported on first use so that `import lrkit` stays cheap and silent:

    from lrkit import Reasoner
    answer = Reasoner.load("bundle").ask("rooms.png", "Take 4 hops. Which room are you in? Start in room 3")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lrkit.errors import LrkitError
    from lrkit.runtime.answer.answer import Answer
    from lrkit.runtime.sdk import Reasoner

__version__ = "0.1.0"

__all__ = ["Answer", "LrkitError", "Reasoner", "__version__"]

_LAZY = {
    "Answer": "lrkit.runtime.answer.answer",
    "LrkitError": "lrkit.errors",
    "Reasoner": "lrkit.runtime.sdk",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'lrkit' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
