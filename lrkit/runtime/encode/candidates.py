"""Choices as token ids: each as it is spoken behind the answer's marker, and as training speaks it. Torch-free.

Place in the pipeline: `Reasoner.ask(choices=)` -> `encode_candidates` -> `AskOptions.candidates`.
"""

from lrkit.contract.choosing import Candidates, Choices
from lrkit.errors import DataError, shown
from lrkit.runtime.encode.processor import Processor


def encode_candidates(processor: Processor, choices: Choices) -> Candidates:
    """The choices as an engine scores them.

    Raises:
        DataError: one holds a control token or an unknown word, or two are one text to the tokenizer.
    """
    seen: dict[tuple[int, ...], str] = {}
    for said in choices.said:
        ids = tuple(processor.encode_answer(said, "choice"))
        if ids in seen:
            raise DataError(
                f"this model's tokenizer reads the choices {shown(seen[ids], 40)} and {shown(said, 40)} as the same; "
                "give others"
            )
        seen[ids] = said
    marker, separator = processor.answer_prefix_ids, processor.separator_ids
    return Candidates(choices, tuple(seen), processor.end_ids, tuple(marker), tuple(separator))
