"""The samples of an export as each reasoner of the bundle sees them. One whose replay is fine reads small pictures and
windows of the full ones; its baselines may read full pictures.

Place in the pipeline: bundle.py asks it for the processor and the samples of each program.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field

from lrkit.contract.bundle.manifest import Limits
from lrkit.contract.sample import Sample
from lrkit.contract.settings import ReplaySettings
from lrkit.export.check import CheckSample
from lrkit.runtime.encode.processor import Processor


@dataclass
class SeenSamples:
    """`processor` is the bundle's, `limits` are what it is made for."""

    processor: Processor
    samples: Sequence[Sample]
    limits: Limits
    _processors: dict[int, Processor] = field(default_factory=dict[int, Processor])
    _encoded: dict[int, list[CheckSample]] = field(default_factory=dict[int, list[CheckSample]])

    def processor_of(self, replay: ReplaySettings) -> Processor:
        """That of a reasoner with this replay. Raises as `Processor.see_for`."""
        if replay.fine_zoom not in self._processors:
            made = copy(self.processor).see_for(replay)
            made.limits = self.limits
            self._processors[replay.fine_zoom] = made
        return self._processors[replay.fine_zoom]

    def encoded(self, replay: ReplaySettings) -> list[CheckSample]:
        """The samples as it reads them. Raises as `Processor.encode_prompt`."""
        if replay.fine_zoom not in self._encoded:
            processor = self.processor_of(replay)
            self._encoded[replay.fine_zoom] = [
                CheckSample(processor.encode_prompt(one.images, one.question), one.answer or None)
                for one in self.samples
            ]
        return self._encoded[replay.fine_zoom]
