"""Kernels of attention by name (lrkit/contract/attention.py): every way to write them, and one sentence for each thing
that is in the way, before any weight is read."""

import re
from pathlib import Path
from typing import Any

import pytest

from lrkit.config import load_config
from lrkit.contract.attention import NEEDS, Attention, check_attention, packages_of, problems, read_attention
from lrkit.contract.settings import ReasonerSettings
from lrkit.errors import ConfigError, UserError
from lrkit.gpus import Gpu, Gpus
from lrkit.model.open_backbone import use_attention
from lrkit.profile.measure.cases import ModelChoice, open_model
from lrkit.profile.measure.shape_model import open_shape
from lrkit.profile.pages.markdown import how_it_runs
from lrkit.runtime.engines.torch.row import TorchOptions
from lrkit.runtime.sdk import Reasoner
from lrkit.train.recipe import as_written, load_recipe
from tests.commands import lrkit
from tests.flash_reference import stand_in
from tests.lab import rich_reasoner, settings

FLASH = "flash_attention_2"


@pytest.mark.parametrize(
    ("written", "vision", "text"),
    [
        (None, "sdpa", "sdpa"), ("sdpa", "sdpa", "sdpa"), (FLASH, FLASH, FLASH), (f"vision={FLASH}", FLASH, "sdpa"),
        (f" text = flash_attention_4 , vision={FLASH}", FLASH, "flash_attention_4"), ({"text": FLASH}, "sdpa", FLASH),
        (Attention(text="flash_attention_3"), "sdpa", "flash_attention_3"),
    ],
)  # fmt: skip
def test_one_name_or_one_for_each_part(written: object, vision: str, text: str) -> None:
    found = read_attention(written)
    assert (found.vision, found.text) == (vision, text) and read_attention(str(found)) == found


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("eager", "attention is 'eager'; eager keeps every attention map in memory"),
        ("flash_atention_2", "did you mean 'flash_attention_2'"), ("text=flex_attention", "attention.text is 'flex"),
        ("decoder=sdpa", "parts are vision and text"), (["sdpa"], "attention is \\['sdpa'\\]"), ("", "attention is ''"),
        ({"vision": None}, "attention.vision is None"), ({"text": 3}, "attention.text is 3"),
    ],
)  # fmt: skip
def test_other_names_are_refused(written: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        read_attention(written)
    with pytest.raises(UserError, match=says):
        Reasoner.from_checkpoint("tiny", attention=written)


def test_recipes_take_the_same() -> None:
    one = load_recipe("smoke", [f"attention={FLASH}"])
    parts = load_recipe("smoke", [f"attention.vision={FLASH}"])
    assert (str(one.attention), str(parts.attention)) == (FLASH, f"vision={FLASH},text=sdpa")
    for recipe in (one, parts):
        assert load_recipe(as_written(recipe)).attention == recipe.attention
    assert load_recipe("smoke").attention == Attention()
    with pytest.raises(ConfigError, match="computes in bfloat16, and precision is float32"):
        load_recipe("smoke", [f"attention={FLASH}", "precision=float32"])
    with pytest.raises(ConfigError, match="attention is 'eager'"):
        load_recipe("smoke", ["attention=eager"])
    assert load_config(TorchOptions, {"attention": FLASH}).attention == one.attention


GPU = Gpus((Gpu(0, "A100", "sm80"), Gpu(1, "V100", "sm70")))


@pytest.mark.parametrize(
    ("kernels", "where", "says"),
    [
        (FLASH, ("cpu", None), "attention is flash_attention_2, which runs on NVIDIA GPUs, and the device is cpu"),
        (f"text={FLASH}", ("cuda", "float32"), "attention.text is flash_attention_2, which computes in float16 and"),
        (f"vision={FLASH}", ("cuda:1", None), "needs compute capability 8.0, and V100 has 7.0"),
        ("flash_attention_4", ("cuda", None), "needs compute capability 9.0, and A100 has 8.0"),
        (f"text={FLASH}", ("cuda", "bfloat16", True), "a CUDA graph cannot"),
        ("flash_attention_2", ("cuda", None), "needs the package flash-attn, .*pip install flash-attn"),
        ("flash_attention_3", ("cuda", None), "needs the package flash-attn-3, .*build it from hopper/"),
        ("vision=flash_attention_4", ("cuda", None), "pip install flash-attn-4"),
    ],
)
def test_each_thing_in_the_way_is_a_sentence(
    kernels: str, where: tuple[Any, ...], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lrkit.contract.attention.find_gpus", lambda: GPU)
    found = list(problems(read_attention(kernels), *where))
    (line,) = [line for line in found if re.search(says, line)]
    assert "\n" not in line and "sdpa" in line
    with pytest.raises(UserError):
        check_attention(read_attention(kernels), *where)


def test_where_all_is_there_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrkit.contract.attention.find_gpus", lambda: GPU)
    monkeypatch.setattr("lrkit.contract.attention.installed_version", lambda name: "2.8")
    check_attention(read_attention(FLASH), "cuda", "bfloat16")
    check_attention(read_attention(f"vision={FLASH}"), "cuda:0", "float16", cuda_graphs=True)
    check_attention(Attention(), "cpu", "float32")
    assert packages_of(read_attention(FLASH)) == {"flash-attn": "2.8"} and packages_of(Attention()) == {}
    assert all(needs.package for needs in NEEDS.values())


@pytest.mark.parametrize(
    "words",
    [
        ("ask", "tiny", "Where?"), ("eval", "tiny", "--samples", "1"), ("profile", "tiny"),
        ("profile", "random:qwen2-vl-2b"), ("sweep", "tiny", "replay_tokens=1,2"),
    ],
)  # fmt: skip
def test_verbs_refuse_on_a_cpu_before_they_load(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert lrkit(*words, "--attention", FLASH) == 2
    assert "error: attention is flash_attention_2, which runs on NVIDIA GPUs" in capsys.readouterr().err


@pytest.mark.parametrize("dry", [True, False])
def test_a_run_refuses_before_it_begins(dry: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("train", "smoke", f"attention.text={FLASH}", "-o", tmp_path / "run")
    assert lrkit(*asked, *(["--dry-run"] if dry else [])) == 2
    assert "attention.text is flash_attention_2, which runs on NVIDIA GPUs" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_reports_say_what_was_used() -> None:
    assert Reasoner.from_checkpoint("tiny", attention="sdpa").engine.attention == "sdpa"
    assert open_model(ModelChoice("tiny", attention=Attention()), "tiny").reasoner.engine.attention == "sdpa"
    with pytest.raises(UserError, match="runs on NVIDIA GPUs"):
        open_shape("qwen2-vl-2b", ReasonerSettings(), ModelChoice("qwen2-vl-2b", attention=Attention(text=FLASH)))
    model = {"engine": "torch", "precision": "bfloat16", "device": "cuda", "attention": f"vision=sdpa,text={FLASH}"}
    assert how_it_runs(model) == f"torch, bfloat16, cuda, attention vision=sdpa,text={FLASH}"
    assert how_it_runs({**model, "attention": "sdpa"}) == "torch, bfloat16, cuda"


def test_what_transformers_refuses_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here because no flash package is installed: the checks before are passed over."""
    backbone = rich_reasoner(settings()).backbone
    with pytest.raises(UserError, match=f"^attention vision={FLASH},text=sdpa cannot be used with this model"):
        use_attention(backbone, Attention(vision=FLASH))
    stand_in(monkeypatch)
    use_attention(backbone, Attention(vision=FLASH))
    model: Any = backbone.model
    assert model.config.vision_config._attn_implementation == FLASH
