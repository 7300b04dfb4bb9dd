"""Answers of a written program to the first samples, with their pictures, for `lrkit validate`.

Place in the pipeline: bundle.py records each program once it was compared with torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lrkit.contract.bundle.manifest import RecordedSample, Role
from lrkit.contract.sample import Sample
from lrkit.export.check import CheckSample, ProgramRun
from lrkit.families.protocols import Geometry, Size
from lrkit.pictures.input import ImageSource
from lrkit.pictures.load import load_image

NUM_RECORDED = 2
"""Samples per program that `lrkit validate` runs again."""


@dataclass
class Recorder:
    """Of one export."""

    folder: Path
    """The bundle that is being written."""
    geometry: Geometry
    samples: Sequence[Sample]
    recorded: list[RecordedSample] = field(default_factory=list[RecordedSample])

    def record(self, role: Role, run: ProgramRun, encoded: Sequence[CheckSample]) -> None:
        """Asks the program `role` and keeps what it says; `encoded` are the samples as the comparison read them."""
        for number, sample in enumerate(self.samples[:NUM_RECORDED]):
            used = {one.image: one.used for one in encoded[number].prompt.resized}
            images = [self._picture(number, place, image, used) for place, image in enumerate(sample.images)]
            # The stored picture is what will be asked about: the answer is recorded from it.
            prompt = run.processor.encode_prompt([self.folder / name for name in images], sample.question)
            seen = run.trace(prompt)
            self.recorded.append(
                RecordedSample(
                    images=tuple(images), question=sample.question, answer=sample.answer, role=role,
                    token_ids=tuple(seen.token_ids), latent_steps=seen.latent_steps,
                )
            )  # fmt: skip

    def _picture(self, number: int, place: int, image: ImageSource, used: dict[int, Size]) -> str:
        name = f"samples/{number}-{place}.png"
        if not (self.folder / name).is_file():
            (self.folder / "samples").mkdir(exist_ok=True)
            # A photo is kept as the program sees it: as a PNG of its own size it would have tens of megabytes.
            picture = load_image(image)
            if place in used:
                picture = picture.resize(used[place], self.geometry.resample)
            picture.save(self.folder / name)
        return name
