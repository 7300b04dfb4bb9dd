"""Checkpoints that are quantized already: every published layout is read exactly, and what cannot be read is refused in
one sentence.
"""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrkit.checkpoints.gguf_folder import write_gguf_folder
from lrkit.checkpoints.quantized.gguf_blocks import DECODE
from lrkit.checkpoints.quantized.packed_weight import PackedWeight
from lrkit.checkpoints.tensors.stored import StoredTensor, first_not_finite
from lrkit.checkpoints.whole_weights import check_backbone, check_weights
from lrkit.errors import CheckpointError
from lrkit.export.weights.stored_integers import symmetric
from lrkit.export.weights.streaming import stream_source
from lrkit.families.table import read_layout
from lrkit.model.open_backbone import load_backbone
from lrkit.resources import resolve_checkpoint
from lrkit.runtime.checks.checkpoint_files import check_checkpoint
from tests.quantized import Array, Base, Folder, awq, compressed, gptq, write_gguf, write_quantized

Config = dict[str, Any]
TINY = resolve_checkpoint("tiny/base")
GPTQ: Config = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False}
ROUND: Config = {"quant_method": "auto-round", "bits": 4, "group_size": 32, "sym": False, "data_type": "int"}
AWQ: Config = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"}


def of_compressed(bits: int, symmetric: bool, size: int | None) -> Config:
    weights = {
        "num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "group" if size else "channel",
        "group_size": size, "dynamic": False, "actorder": None,
    }  # fmt: skip
    group = {"weights": weights, "input_activations": None, "output_activations": None, "targets": ["Linear"]}
    return {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head", "re:.*visual.*"],
        "config_groups": {"group_0": group}, "quantization_status": "compressed",
    }  # fmt: skip


PUBLISHED: dict[str, tuple[Config, Callable[..., dict[str, Array]], int, int, bool]] = {
    "gptq": (GPTQ, gptq, 32, 4, True),
    "gptq, a scale for a row": (GPTQ | {"group_size": -1}, gptq, -1, 4, True),
    "gptq with zeros": (GPTQ | {"sym": False}, gptq, 32, 4, False),
    "gptq of 8 bits": (GPTQ | {"bits": 8, "sym": False, "group_size": 64}, gptq, 64, 8, False),
    "gptq_v2": (GPTQ | {"checkpoint_format": "gptq_v2"}, lambda one: gptq(one, less=0), 32, 4, False),
    "auto-round": (ROUND | {"packing_format": "auto_round:auto_gptq"}, gptq, 32, 4, False),
    "auto-round, own zeros": (
        ROUND | {"packing_format": "auto_round:gptqmodel"}, lambda one: gptq(one, less=0), 32, 4, False
    ),
    "auto-round as awq": (ROUND | {"packing_format": "auto_round:auto_awq"}, awq, 32, 4, False),
    "awq": (AWQ, awq, 64, 4, False),
    "compressed": (of_compressed(4, True, 32), lambda one: compressed(one, True), 32, 4, True),
    "compressed with zeros": (of_compressed(4, False, 64), lambda one: compressed(one, False), 64, 4, False),
    "compressed, 8 bits by row": (of_compressed(8, False, None), lambda one: compressed(one, False), -1, 8, False),
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return Base.of(TINY, tmp_path_factory.mktemp("base"))


@pytest.fixture
def gptq_folder(base: Base, tmp_path: Path) -> Folder:
    return write_quantized(base, tmp_path / "gptq", GPTQ, gptq, 32)


@pytest.fixture(scope="module")
def gguf_folder(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Read only."""
    return write_gguf(base, tmp_path_factory.mktemp("gguf") / "q4_1", "Q4_1")


def hold(folder: Folder) -> None:
    """Integers and values are those that were packed, as each tensor and as a program's matrix."""
    found = check_backbone(folder.path, read_layout(folder.path))
    for name, drawn in folder.matrices.items():
        weight = found[name]
        assert isinstance(weight, PackedWeight)
        made = weight.integers()
        assert np.array_equal(
            made.integers.reshape(made.shape).astype(int) + (1 << (drawn.bits - 1)), drawn.unsigned
        ), name
        np.testing.assert_allclose(weight.read(), drawn.values, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(weight.read_row(3), weight.read()[3])
    floats = {name for name, weight in found.items() if isinstance(weight, StoredTensor)}
    assert floats == found.keys() - folder.matrices.keys()
    source = stream_source(folder.path)
    for role in ("0.qkv", "1.out", "0.gate_up", "1.down"):
        made = source.stored(role)
        assert made is not None and made.block >= 16, role
        np.testing.assert_allclose(made.dequantize(), source.weight(role), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(symmetric(made).dequantize(), source.weight(role), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", PUBLISHED)
def test_a_published_layout_is_read_exactly(layout: str, base: Base, tmp_path: Path) -> None:
    config, pack, group, bits, same = PUBLISHED[layout]
    hold(write_quantized(base, tmp_path / "q", config, pack, group, bits, same, newer="compressed" in layout))


@pytest.mark.parametrize(
    ("kind", "architecture", "embedding"),
    [("Q4_0", "llama", ""), ("Q4_1", "qwen2vl", ""), ("Q8_0", "llama", "Q8_0")],
)
def test_a_gguf_file_is_read_exactly(kind: str, architecture: str, embedding: str, base: Base, tmp_path: Path) -> None:
    """Rows of queries and keys of a Llama come back in their order."""
    folder = write_gguf(base, tmp_path / "g", kind, architecture, embedding)
    hold(folder)
    if embedding:
        made = stream_source(folder.path).stored("head")
        assert made is not None and made.bits == 8 and made.block == 32


def test_a_zero_of_16_is_a_constant(base: Base, tmp_path: Path) -> None:
    """GPTQ stores one less in four bits: 15 means 16, which no operator's zero point can be."""

    def pack(one: Any) -> dict[str, Array]:
        one.zeros[::2] = 16
        return gptq(one)

    folder = write_quantized(base, tmp_path / "q", GPTQ | {"sym": False}, pack, 32, symmetric=False)
    hold(folder)
    made = stream_source(folder.path).stored("0.out")
    assert made is not None and made.zeros is None and made.constants is not None


def test_torch_holds_what_the_integers_stand_for(gguf_folder: Folder) -> None:
    model: Any = load_backbone(str(gguf_folder.path)).model
    for name, drawn in gguf_folder.matrices.items():
        ours = model.get_parameter(name).detach().numpy()
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, drawn.values, rtol=1e-5, atol=1e-6)
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"quant_method": "bitsandbytes"}, "lrkit reads gptq"), ({"quant_method": "gptg"}, "did you mean 'gptq'"),
        ({"quant_method": None}, "quant_method"), ({"bits": 3}, "bits"), ({"bits": 2}, "bits"),
        ({"bits": 8}, "takes 4 bits"), ({"group_size": 64}, "which does not divide"), ({"group_size": 0}, "is 0"),
        ({"checkpoint_format": "marlin"}, "checkpoint_format"), ({"quant_method": "awq"}, "takes 32 bits"),
        ({"quant_method": "awq", "version": "gemv"}, "packed for gemm"),
        ({"quant_method": "auto-round", "packing_format": "auto_round:fp8"}, "packing_format"),
        ({"quant_method": "compressed-tensors", "format": "int-quantized"}, "pack-quantized"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "config_groups"),
        ({"quant_method": "gguf", "file": "../x.gguf"}, "in the folder itself"),
        ({"quant_method": "gguf", "file": "language.gguf"}, "is not there"),
    ],
)  # fmt: skip
def test_another_quantization_is_refused(changes: Config, said: str, gptq_folder: Folder) -> None:
    gptq_folder.change_config(**changes)
    refused(gptq_folder.path, said)


def refused(path: Path, said: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        check_backbone(path, read_layout(path))
    assert said in str(caught.value) and "\n" not in str(caught.value), str(caught.value)


NAME = "model.layers.1.mlp.down_proj"


def _reordered(tensors: dict[str, Array]) -> None:
    tensors[f"{NAME}.g_idx"] = np.random.default_rng(0).permutation(tensors[f"{NAME}.g_idx"])


def _lacks(tensors: dict[str, Array]) -> None:
    del tensors[f"{NAME}.scales"]


def _narrow(tensors: dict[str, Array]) -> None:
    tensors[f"{NAME}.qzeros"] = tensors[f"{NAME}.qzeros"][:, :-1]


def _floats(tensors: dict[str, Array]) -> None:
    tensors[f"{NAME}.qweight"] = tensors[f"{NAME}.qweight"].astype(np.float32)


def _elsewhere(tensors: dict[str, Array]) -> None:
    tensors["model.layers.7.mlp.down_proj.qweight"] = tensors[f"{NAME}.qweight"]


def _twice(tensors: dict[str, Array]) -> None:
    tensors[f"{NAME}.weight"] = np.zeros((128, 384), np.float32)


def _flat(tensors: dict[str, Array]) -> None:
    tensors[f"{NAME}.scales"] = tensors[f"{NAME}.scales"].reshape(-1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_reordered, "another order"), (_lacks, "lacks scales"), (_narrow, "has shape"), (_floats, "is of type F32"),
        (_elsewhere, "no matrix for"), (_twice, "twice"), (_flat, "does not divide"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_refused(
    change: Callable[[dict[str, Array]], None], said: str, gptq_folder: Folder
) -> None:
    gptq_folder.change(change)
    refused(gptq_folder.path, said)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_scale_that_is_no_number_is_found(value: float, gptq_folder: Folder) -> None:
    def change(tensors: dict[str, Array]) -> None:
        tensors[f"{NAME}.scales"] = tensors[f"{NAME}.scales"].copy()
        tensors[f"{NAME}.scales"][1, 2] = value

    gptq_folder.change(change)
    (problem,) = check_checkpoint(gptq_folder.path).problems
    assert "down_proj.weight holds " + ("NaN" if np.isnan(value) else "infinity") in problem
    with pytest.raises(CheckpointError, match=r"down_proj.weight holds"):
        stream_source(gptq_folder.path)


def _copy_with(folder: Folder, place: Path, raw: bytes) -> Path:
    place.mkdir()
    for file in folder.path.iterdir():
        if file.suffix != ".gguf":
            (place / file.name).symlink_to(file.resolve())
    (place / "language.gguf").write_bytes(raw)
    return place


def test_a_damaged_gguf_file_is_refused_in_one_sentence(gguf_folder: Folder, tmp_path: Path) -> None:
    """Cut anywhere, and with any byte of the header replaced: refused, or read as what it then says."""
    raw = (gguf_folder.path / "language.gguf").read_bytes()
    header = raw.index(b"blk.1.self") if b"blk.1.self" in raw else 1400
    layout = read_layout(gguf_folder.path)
    place = _copy_with(gguf_folder, tmp_path / "cut", raw)
    for end in [*range(0, header, 61), len(raw) // 2, len(raw) - 1]:
        (place / "language.gguf").write_bytes(raw[:end])
        refused(place, "GGUF" if end < 4 else "")
    rng, refusals = np.random.default_rng(0), 0
    for at in range(0, header, 17):
        changed = bytearray(raw)
        changed[at] = int(rng.choice([0, 1, 127, 128, 255]))
        (place / "language.gguf").write_bytes(changed)
        try:
            check_backbone(place, layout)
        except CheckpointError as error:
            refusals += 1
            assert "\n" not in str(error) and str(error).isprintable()
    assert refusals > 20
    values = bytearray(raw)
    start = len(raw) - 64 * 4 * 20
    values[start : start + 2] = struct.pack("<e", float("nan"))
    (place / "language.gguf").write_bytes(values)
    assert "holds NaN" in (first_not_finite(check_weights(place).stored) or "")


def test_a_gguf_file_of_another_model_is_refused(gguf_folder: Folder, tmp_path: Path) -> None:
    raw = (gguf_folder.path / "language.gguf").read_bytes()
    four = struct.pack("<II", 4, 4)
    changes = {
        "architecture is 'gemmA'": raw.replace(b"llama", b"gemmA"),
        "no place for": raw.replace(b"blk.1.ffn_up", b"blk.1.ffn_xx"),
        "head_count is": raw.replace(b"head_count" + four, b"head_count" + struct.pack("<II", 4, 2)),
        "type number": raw.replace(struct.pack("<QQI", 384, 128, 3), struct.pack("<QQI", 384, 128, 99), 1),
        "lrkit reads Q4_0": raw.replace(struct.pack("<QQI", 128, 64, 3), struct.pack("<QQI", 128, 64, 6), 1),
    }  # fmt: skip
    for number, (said, changed) in enumerate(changes.items()):
        assert changed != raw, said
        refused(_copy_with(gguf_folder, tmp_path / str(number), changed), said if "reads" not in said else "")


def test_a_folder_is_made_of_a_gguf_file_and_the_rest(gguf_folder: Folder, tmp_path: Path) -> None:
    layout = read_layout(TINY)
    stored = check_backbone(TINY, layout)
    made = tmp_path / "made"
    write_gguf_folder(made, gguf_folder.path / "language.gguf", TINY)
    assert check_checkpoint(made).problems == []
    config = json.loads((made / "config.json").read_text())
    assert config["quantization_config"] == {"quant_method": "gguf", "file": "language.gguf"}
    left = check_backbone(made, layout)
    for name, weight in stored.items():
        if name not in gguf_folder.matrices:
            assert np.array_equal(left[name].read(), weight.read()), name
    with pytest.raises(CheckpointError, match="ends within"):
        cut = tmp_path / "cut.gguf"
        cut.write_bytes((gguf_folder.path / "language.gguf").read_bytes()[:-100])
        write_gguf_folder(tmp_path / "other", cut, TINY)
    assert not (tmp_path / "other").exists()


def test_types_of_llama_cpp_that_are_more_than_one_scale() -> None:
    """Q4_K and Q6_K, weight by weight from the text of ggml-quants.c."""
    rng = np.random.default_rng(3)
    raw = rng.integers(0, 256, (2, 3, 144), dtype=np.uint8)
    raw[..., :4] = rng.normal(0, 1, (2, 3, 2)).astype("<f2").view(np.uint8).reshape(2, 3, 4)
    want = np.array([_q4_k(block) for block in raw.reshape(-1, 144)]).reshape(2, -1)
    np.testing.assert_allclose(DECODE["Q4_K"](raw).dequantize(), want, rtol=1e-4, atol=1e-3)
    raw = rng.integers(0, 256, (2, 3, 210), dtype=np.uint8)
    raw[..., 208:] = rng.normal(0, 1, (2, 3, 1)).astype("<f2").view(np.uint8).reshape(2, 3, 2)
    want = np.array([_q6_k(block) for block in raw.reshape(-1, 210)]).reshape(2, -1)
    np.testing.assert_allclose(DECODE["Q6_K"](raw).dequantize(), want, rtol=1e-5)


def _q4_k(block: Array) -> list[float]:
    d, least = (float(one) for one in block[:4].view("<f2"))
    packed, made = block[4:16].astype(int), list[float]()
    for part in range(8):
        if part < 4:
            scale, step = packed[part] & 63, packed[part + 4] & 63
        else:
            scale = (packed[part + 4] & 15) | (packed[part - 4] >> 6) << 4
            step = (packed[part + 4] >> 4) | (packed[part] >> 6) << 4
        data = block[16 + 32 * (part // 2) :][:32].astype(int)
        made += [d * scale * (one >> 4 if part % 2 else one & 15) - least * step for one in data]
    return made


def _q6_k(block: Array) -> list[float]:
    low, high, scales = block[:128].astype(int), block[128:192].astype(int), block[192:208].view(np.int8)
    d, made = float(block[208:].view("<f2")[0]), [0.0] * 256
    for half in range(2):
        for at in range(32):
            for part in range(4):
                four = low[64 * half + 32 * (part % 2) + at] >> 4 * (part // 2) & 15
                two = high[32 * half + at] >> 2 * part & 3
                scale = float(scales[8 * half + 2 * part + at // 16])
                made[128 * half + 32 * part + at] = d * scale * ((four | two << 4) - 32)
    return made


def test_the_command_that_makes_a_folder_says_what_is_wrong(
    base: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lrkit.checkpoints.gguf_folder import main

    with pytest.raises(SystemExit) as left:
        main([str(tmp_path / "out"), str(tmp_path / "no.gguf"), str(base.floats)])
    assert left.value.code == 2 and "no.gguf: no such file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
