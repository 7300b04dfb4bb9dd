"""The prompt of a case about a sample: whole, or behind a look at its pictures (a run with `scene`).

Place in the pipeline: rounds.py and differences.py -> `PromptMaker` -> `Engine.generate`.
"""

import time
from dataclasses import dataclass, field, replace

from lrkit.contract.sample import Sample
from lrkit.profile.measure.cases import Case
from lrkit.runtime.encode.processor import EncodedPrompt


@dataclass
class PromptMaker:
    """Encodes a sample for a case. With `scene` the pictures are looked at first, as `Reasoner.look` does: what is
    timed is the question alone, and the look stands beside it."""

    case: Case
    sample: Sample
    look_seconds: float | None = None
    """Of cutting the pictures and reading them; None for a whole prompt."""
    _pictures: EncodedPrompt | None = field(default=None, repr=False)

    def look(self) -> None:
        """Looks, where the run is asked of a scene. Raises as `Reasoner.look`."""
        if not self.case.settings.scene:
            return
        began = time.perf_counter()
        pictures = self.case.reasoner.processor.encode_pictures(self.sample.images, None)
        self._pictures = replace(pictures, looked=self.case.engine.look(pictures))
        self.look_seconds = time.perf_counter() - began

    def encode(self) -> EncodedPrompt:
        """The prompt. Raises as `Processor.encode_prompt`."""
        processor, question = self.case.reasoner.processor, self.sample.question
        if self._pictures is None:
            return processor.encode_prompt(self.sample.images, question)
        return processor.encode_behind(self._pictures, question)
