"""Makes a checkpoint folder out of a GGUF file with the language model and a Hugging Face folder with all the rest:
config.json, tokenizer, image processor, and the weights that the GGUF file lacks, such as the vision tower's.

    config.json          as it was, with quantization_config: {quant_method: gguf, file: language.gguf}
    language.gguf        the file as it is
    model.safetensors    the weights of the folder that it lacks, as they are

Place in the pipeline: called by hand, as docs/int4.md says; whole_weights.py checks the result before it takes its
place.
"""

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lrkit.checkpoints.checkpoint_folder import CONFIG_FILE, EXTRAS_FILE, HOLD_WEIGHTS, WEIGHTS
from lrkit.checkpoints.quantized.gguf_header import read_gguf_header
from lrkit.checkpoints.quantized.gguf_weights import language_model
from lrkit.checkpoints.quantized.quantization import KEY
from lrkit.checkpoints.tensors.stored import StoredTensor
from lrkit.checkpoints.whole_weights import check_weights, tensors_by_name
from lrkit.errors import CheckpointError, FileError, LrkitError, os_sentence
from lrkit.families.table import read_layout
from lrkit.files import read_json, write_json
from lrkit.folders import staged_folder

GGUF_FILE = "language.gguf"


def write_gguf_folder(target: Path, gguf: Path, folder: Path) -> None:
    """Writes `target`, whole or not at all. `folder` holds everything but the language model; of its weights those that
    the GGUF file has too are left out.

    Raises:
        CheckpointError: the GGUF file cannot be used, is of another model than `folder`, or the two lack a weight.
        FileError: the folder cannot be written.
    """
    layout = read_layout(folder)
    inner = language_model(read_gguf_header(gguf), layout)
    stored = tensors_by_name(folder, layout)
    left = {name: tensor for name, tensor in stored.items() if name not in inner and name not in layout.copies}
    with staged_folder(target) as staging:
        for file in sorted(folder.iterdir()):
            kept = file.suffix not in HOLD_WEIGHTS or file.name == EXTRAS_FILE
            if kept and file.is_file() and file.name not in (CONFIG_FILE, *WEIGHTS):
                shutil.copyfile(file, staging / file.name)
        shutil.copyfile(gguf, staging / GGUF_FILE)
        _write(staging / WEIGHTS[0], left)
        config = read_json(folder / CONFIG_FILE, CheckpointError)
        write_json(staging / CONFIG_FILE, config | {KEY: {"quant_method": "gguf", "file": GGUF_FILE}})
        check_weights(staging)


def _write(path: Path, tensors: Mapping[str, StoredTensor]) -> None:
    """A safetensors file of tensors of others, byte for byte: the package reads bfloat16 into torch alone."""
    header: dict[str, Any] = {}
    place = 0
    for name, tensor in tensors.items():
        end = place + tensor.num_bytes
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [place, end]}
        place = end
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    try:
        with path.open("wb") as file:
            file.write(len(raw).to_bytes(8, "little") + raw)
            for tensor in tensors.values():
                with tensor.file.open("rb") as source:
                    source.seek(tensor.start)
                    file.write(source.read(tensor.num_bytes))
    except OSError as error:
        raise FileError(os_sentence(error, path)) from error


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m lrkit.checkpoints.gguf_folder OUT FILE FOLDER`. An error is one sentence, and exit code 2."""
    parser = argparse.ArgumentParser("gguf_folder", description="A folder with a GGUF file's language model.")
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument("file", type=Path, help="the GGUF file")
    parser.add_argument("folder", type=Path, help="config.json, tokenizer, image processor, and all other weights")
    given = parser.parse_args(arguments)
    try:
        write_gguf_folder(given.out, given.file, given.folder)
    except LrkitError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
