"""Checks that all files of a checkpoint folder are there, whole, and made for each other. Torch-free.

Place in the pipeline: `lrkit validate CHECKPOINT` -> `check_checkpoint`. It refuses what loading refuses: both hold the
files against each other by lrkit/checkpoints/whole_weights.py and open the same processor.
"""

from dataclasses import dataclass, field
from pathlib import Path

from lrkit.checkpoints.checkpoint_folder import HOLD_WEIGHTS, INFO_FILE, baselines_of, is_plain, read_info
from lrkit.checkpoints.quantized.gguf_header import read_gguf_header
from lrkit.checkpoints.tensors.stored import first_not_finite, read_header
from lrkit.checkpoints.whole_weights import CheckedWeights, check_weights
from lrkit.contract.settings import ReasonerSettings
from lrkit.errors import CheckpointError
from lrkit.families.layout import Layout
from lrkit.runtime.encode.processor import Processor


@dataclass
class CheckpointReport:
    """What a checkpoint folder holds."""

    folder: Path
    problems: list[str] = field(default_factory=list)
    """One sentence each; empty for a good checkpoint."""
    tensors: dict[str, int] = field(default_factory=dict)
    """File -> number of tensors in it."""
    sizes: dict[str, int] = field(default_factory=dict)
    """File -> bytes."""
    base: str | None = None
    """Folder or hub id of the backbone's weights; None where they are in this folder."""
    settings: ReasonerSettings | None = None
    """What the reasoner is set to; of a plain Hugging Face model: no latents."""
    plain: bool = False
    """It is a plain Hugging Face model."""

    def raise_if_bad(self) -> None:
        """Raise all problems at once.

        Raises:
            CheckpointError: with one line per problem.
        """
        if self.problems:
            raise CheckpointError("\n".join(dict.fromkeys(self.problems)))


def check_checkpoint(folder: Path, values: bool = True) -> CheckpointReport:
    """Reads every file; of the weights the values too, unless `values` is False. Baselines are checked the same way,
    and the backbone that several share once."""
    return _check(folder, values, seen=set())


def _check(folder: Path, values: bool, seen: set[Path]) -> CheckpointReport:
    report = CheckpointReport(folder, plain=is_plain(folder))
    _list_files(report)
    checked: CheckedWeights | None = None
    try:
        checked = check_weights(folder)
        report.base, report.settings = checked.info.get("base"), checked.settings
    except CheckpointError as error:
        report.problems += str(error).splitlines()
    _check_processor(report, checked)
    if checked is not None:
        _check_values(report, checked, values, seen)
        _check_baselines(report, checked, values, seen)
    return report


def _list_files(report: CheckpointReport) -> None:
    """Sizes and numbers of tensors; a damaged file is told by `check_weights` where it is needed, here where not."""
    for path in sorted(path for ending in HOLD_WEIGHTS for path in report.folder.glob(f"*{ending}")):
        try:
            report.sizes[path.name] = path.stat().st_size
            gguf = path.suffix == ".gguf"
            report.tensors[path.name] = len(read_gguf_header(path).tensors if gguf else read_header(path))
        except (CheckpointError, OSError):
            continue


def _check_processor(report: CheckpointReport, checked: CheckedWeights | None) -> None:
    try:
        processor = Processor.from_folder(report.folder)
    except CheckpointError as error:
        report.problems += str(error).splitlines()
        return
    if checked is None:
        return
    try:
        check_fit(processor, checked)
    except CheckpointError as error:
        report.problems.append(str(error))


def check_fit(processor: Processor, checked: CheckedWeights) -> None:
    """Checks that the processor's files and the weights belong together.

    Raises:
        CheckpointError: the latent token is another one, or as `check_model`.
    """
    folder, plain = checked.folder, checked.info["latent_id"] is None
    if not plain and checked.latent_id != processor.latent_id:
        raise CheckpointError(
            f"{folder}: {INFO_FILE} says that the latent token is {checked.latent_id}, the tokenizer that it is "
            f"{processor.latent_id}; the files are of two checkpoints, so copy both again"
        )
    check_model(processor, checked.layout, folder, plain)


def check_model(processor: Processor, layout: Layout, folder: Path, plain: bool) -> None:
    """Checks that the processor's files and a backbone belong together. `folder` is where the processor was read; the
    latent token that lrkit adds to the tokenizer of a `plain` model needs no row, as it is never fed to it.

    Raises:
        CheckpointError: the image token is another one, a token has no row in the embedding, or pictures are cut in
            another way than the tower reads them.
    """
    if processor.image_id != layout.image_id:
        raise CheckpointError(
            f"{folder}: config.json says that the image token is {layout.image_id}, the tokenizer that it is "
            f"{processor.image_id}; the files are of two models, so copy both again"
        )
    last = processor.last_id
    if last >= layout.vocabulary and not (plain and last == processor.latent_id):
        raise CheckpointError(
            f"{folder}: the tokenizer has a token {last}, the embedding {layout.vocabulary} rows; the files are of two "
            "models, so copy both again"
        )
    for key, wanted in layout.cut.items():
        if (found := getattr(processor.geometry, key)) != wanted:
            raise CheckpointError(
                f"{folder}: the image processor's {key} is {found}, config.json's vision tower reads {wanted}; the "
                "files are of two models, so copy both again"
            )


def _check_values(report: CheckpointReport, checked: CheckedWeights, values: bool, seen: set[Path]) -> None:
    if not values:
        return
    problem = first_not_finite([stored for stored in checked.stored if stored.file.resolve() not in seen])
    if problem is not None:
        report.problems.append(problem)
    seen |= {stored.file.resolve() for stored in checked.stored}


def _check_baselines(report: CheckpointReport, checked: CheckedWeights, values: bool, seen: set[Path]) -> None:
    try:
        baselines = baselines_of(report.folder, checked.info)
    except CheckpointError as error:
        report.problems.append(str(error))
        return
    for mode, folder in baselines.items():
        if folder in seen or folder == report.folder.resolve():
            continue
        seen.add(folder)
        try:
            read_info(folder)
        except CheckpointError as error:
            report.problems.append(f"{report.folder / INFO_FILE}: the baseline for {mode}: {error}")
            continue
        report.problems += _check(folder, values, seen).problems
