"""Golden vectors of the method's released implementation (arXiv 2604.10500), where its formulas and ours agree.

`tests/parity/golden_vectors.py` says what is kept of them in `tests/parity/golden/`, and how the whole set is used.

Ours differs from the release on purpose, so these tests
- give the release's order to replayed tokens (it inserts them in an arbitrary top-k order, we in prompt order);
- give plain 0, 1, 2, ... positions to the prompt (it discards the backbone's M-RoPE), and no rescaling to latents;
- take `block2_*` and `not_official_aligned_out` of its dynamic layer: its own `hidden_out` pairs tokens with results of
  other tokens. Its update h + p * y is ours with step encodings of 1 and a softmax gate;
- leave out its left-padded routing (padding takes part in its softmax and is routed), its fourth and fifth replay of an
  exhausted image (zero rows, NaN), its gradients through latents (zero), and its teacher's gradient (ours has none);
- allow for its crops being cut down to 8 bits, which ours are not.
"""

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import DynamicCache, Qwen2VLConfig, Qwen2VLForConditionalGeneration

import lrkit.model.distill as distill_module
import lrkit.model.replay as replay_module
from lrkit.contract.settings import RoutingSettings
from lrkit.families.qwen2_vl.backbone import Qwen2VLBackbone
from lrkit.model.build import build_reasoner
from lrkit.model.distill import Teacher, TokenSR, Window, choose_window, crop_and_enlarge, distillation_loss
from lrkit.model.keys import Keys
from lrkit.model.replay import Replay, select, weigh
from lrkit.model.routing import RefinementState, RoutedLayer
from tests.lab import run_steps, settings
from tests.parity.golden_vectors import (
    HERE,
    HIDDEN_SEED,
    KEPT,
    MEAN,
    STD,
    WHOLE,
    as_json,
    document,
    drawn,
    hidden_in,
    image,
    kept,
    kept_document,
    kept_scores,
    pixel_values,
    selection_steps,
    tensors,
    thin,
    tokensr_weights,
)
from tests.tiny import Batch

GRID = (1, 20, 20)
WINDOW = 4


def of(name: str, prefix: str) -> dict[str, Tensor]:
    """The tensors of one run, without its name in front."""
    return {n.removeprefix(f"{prefix}."): t for n, t in tensors(name).items() if n.startswith(f"{prefix}.")}


def same(part: str, got: Tensor, golden: Tensor, atol: float, rtol: float = 0) -> None:
    """Compares what is kept of the golden tensor."""
    torch.testing.assert_close(thin(part, got), golden, rtol=rtol, atol=atol)


class PlainPositions(Qwen2VLBackbone):
    """Positions 0, 1, 2, ... in all sections, as the release gives them."""

    def prompt_positions(self, ids, grids):  # type: ignore[no-untyped-def]
        return torch.arange(len(ids))[None].expand(3, -1)


def golden_model(layers: int = 3) -> Qwen2VLForConditionalGeneration:
    return Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(
            text_config={
                "vocab_size": 200, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": layers,
                "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024,
                "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": 1,
                "pad_token_id": 0,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
            },
            vision_config={
                "depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 4, "mlp_ratio": 4, "patch_size": 14,
                "spatial_merge_size": 2, "temporal_patch_size": 2, "hidden_act": "quick_gelu",
            },
            image_token_id=4, video_token_id=5, vision_start_token_id=2, vision_end_token_id=3,
            tie_word_embeddings=False,
        )
    ).eval()  # fmt: skip


def golden_backbone() -> Qwen2VLBackbone:
    """With the release's weights; it names them as transformers did then."""
    model = golden_model()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            then = name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")
            weight.copy_(drawn(then, *weight.shape))
    return PlainPositions(model)


# ---- what is kept here -----------------------------------------------------------------------------------------------


def test_what_is_kept_is_small_and_all_there() -> None:
    assert sum(file.stat().st_size for file in HERE.iterdir()) <= 300_000
    for name, runs in KEPT.items():
        assert set(tensors(name)) >= {f"{run}.{part}" for run, parts in runs.items() for part in parts}


def test_weights_and_inputs_are_drawn_as_the_release_drew_them() -> None:
    """The first numbers, which are part of no output; and all of them, where LRKIT_GOLDEN names the whole set."""
    first = {"lm_head.weight": (200, 64, -0.197881386), "model.layers.1.mlp.down_proj.weight": (64, 128, -0.042202108)}
    for name, (rows, columns, value) in first.items():
        assert float(drawn(name, rows, columns)[0, 0]) == pytest.approx(value, abs=1e-6), (
            "torch draws other numbers now"
        )
    assert int(image().sum(dtype=torch.long)) == 29146014
    if WHOLE:
        compare_with_the_whole_set()


def compare_with_the_whole_set() -> None:
    for name in KEPT:
        ours, whole = load_file(HERE / f"{name}.safetensors"), kept(name, tensors(name))
        assert set(ours) == set(whole) and all(torch.equal(ours[key], whole[key]) for key in whole)
    torch.testing.assert_close(load_file(HERE / "selection.safetensors"), kept_scores(document("selection")))
    for name in ("full", "selection", "tokensr"):
        assert (HERE / f"{name}.json").read_text() == as_json(kept_document(name, document(name)))
    for prefix, names in (("", of("full", "weights")), ("model.layers.1.", of("layer", "weights"))):
        for name, weight in names.items():
            torch.testing.assert_close(drawn(prefix + name, *weight.shape), weight, rtol=0, atol=1e-6)
    torch.testing.assert_close(tokensr_weights(), of("tokensr", "weights"), rtol=0, atol=1e-6)
    for variant in HIDDEN_SEED:
        torch.testing.assert_close(hidden_in(variant), tensors("layer")[f"{variant}.hidden_in"], rtol=0, atol=1e-6)
        assert torch.equal(layer_positions(variant), tensors("layer")[f"{variant}.position_ids"])
    assert torch.equal(image(), tensors("full")["two.ori_image"][0])
    torch.testing.assert_close(pixel_values(), tensors("full")["two.pixel_values"][:400], rtol=0, atol=1e-6)


# ---- selection -------------------------------------------------------------------------------------------------------


def test_selection_weights_windows_and_boxes_of_28_score_maps() -> None:
    unique = tied = 0
    for step in selection_steps():
        left = int(step["free"].sum())
        index, valid = select(step["score"][None], step["free"][None], step["k"])
        chosen = index[valid].tolist()
        assert len(chosen) == min(left, step["k"]) and chosen == sorted(chosen)
        if left >= step["k"]:
            assert set(step["must"]) <= set(chosen) <= set(step["must"]) | set(step["tied"])
            weight = weigh(step["score"][None, step["chosen"]], torch.ones(1, step["k"]) > 0, "softmax")
            torch.testing.assert_close(weight[0], numbers(step["softmax_weights"]), rtol=0, atol=1e-7)
        unique += step["unique"]
        tied += not step["unique"]
        if step["unique"]:
            assert chosen == sorted(step["chosen"])
        check_window(step)
    assert (unique, tied) == (155, 36)


def numbers(values: list[Any]) -> Tensor:
    return torch.tensor([float(value) for value in values])


def check_window(step: dict[str, Any]) -> None:
    selected = torch.zeros(100, dtype=torch.bool)
    selected[step["chosen"]] = True
    window = choose_window([selected.view(10, 10)], WINDOW)
    assert window is not None and [window.top, window.left] == step["window_top_left_rc"]
    inside = selected.view(10, 10)[window.top : window.bottom, window.left : window.right]
    assert int(inside.sum()) == step["window_count"]
    assert list(window.pixel_box(28, 28)) == step["crop_box_x1y1x2y2"]


# ---- pictures --------------------------------------------------------------------------------------------------------


def test_a_picture_is_cut_as_the_release_cuts_it() -> None:
    backbone = golden_backbone()
    same("pixel_values", pixel_values(), tensors("full")["two.pixel_values"][:400], 1e-6)
    torch.testing.assert_close(
        backbone.patch((image() / 255 - MEAN[:, None, None]) / STD[:, None, None]), pixel_values()
    )


@torch.no_grad()
def test_crops_equal_up_to_their_rounding_to_8_bits() -> None:
    golden, backbone = tensors("full"), golden_backbone()
    picture = backbone.unpatch(pixel_values(), GRID)
    torch.testing.assert_close(picture * STD[:, None, None] + MEAN[:, None, None], image() / 255, rtol=0, atol=1e-6)
    for step, _, top, left, *_ in document("full")["cases"]["all_16"]["window_[pass,row,r,c,count,x1,y1,x2,y2]"]:
        crop = crop_and_enlarge(picture, Window(0, top, left, top + WINDOW, left + WINDOW).pixel_box(28, 28))
        mine = (crop * STD[:, None, None] + MEAN[:, None, None]).permute(1, 2, 0) * 255
        cut = thin("crops_u8_hwc", mine[None])[0] - golden["all_16.crops_u8_hwc"][step]
        assert float(cut.min()) > -1e-3 and float(cut.max()) < 1 + 1e-3


def test_patches_of_a_crop_come_in_the_processors_order() -> None:
    """The crop is ours, cut to 8 bits like the release's: one value in a hundred falls on a step, the next level."""
    golden, backbone = tensors("full"), golden_backbone()
    _, _, top, left, *_ = document("full")["cases"]["all_16"]["window_[pass,row,r,c,count,x1,y1,x2,y2]"][0]
    box = Window(0, top, left, top + WINDOW, left + WINDOW).pixel_box(28, 28)
    patches = backbone.patch(cut_to_8_bits(backbone.unpatch(pixel_values(), GRID), box))[:16]
    name = "crop_step0_pixel_values_first_16_rows"
    apart = (thin(name, patches) - golden[f"all_16.{name}"]).abs()
    assert float((apart > 1e-6).float().mean()) < 0.01 and float(apart.max()) < 1.01 / 255 / float(STD.min())


# ---- token super-resolution ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", range(6))
def test_token_super_resolution_loss_and_gradients(case: int) -> None:
    golden = tensors("tokensr")
    head = TokenSR("mlp", 64)
    head.load_state_dict({f"map.{name}": weight for name, weight in tokensr_weights().items()})
    pool = golden[f"case{case}.pool"].clone().requires_grad_()
    one = torch.ones(1, 1, dtype=torch.bool)
    replayed = Replay(pool[:, None], one, torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1), one)
    loss, has = distillation_loss(head, replayed, golden[f"case{case}.reference"], torch.tensor([0]))
    torch.testing.assert_close(head(pool), golden[f"case{case}.pred"], rtol=1e-5, atol=1e-5)
    assert has.tolist() == [True]
    assert loss[0].item() == pytest.approx(document("tokensr")["cases"][case]["mse"], abs=1e-5)
    loss.sum().backward()
    torch.testing.assert_close(pool.grad, golden[f"case{case}.grad_pool"], rtol=1e-4, atol=1e-6)
    for name, parameter in head.map.named_parameters():
        assert parameter.grad is not None
        same(f"grad.{name}", parameter.grad, golden[f"case{case}.grad.{name}"], 1e-6, rtol=1e-4)


# ---- the routed layer ----------------------------------------------------------------------------------------------


def golden_layer() -> tuple[Qwen2VLBackbone, RoutedLayer]:
    """Layer 1 of a backbone with the golden weights, and its router with step encodings of 1."""
    backbone = golden_backbone()
    routed = RoutedLayer(RoutingSettings(depth=1, alpha=32, gate="softmax"), 1, 2, 64)
    with torch.no_grad():
        routed.router.weight.copy_(drawn("model.layers.1.router.router.weight", 1, 64))
        routed.router.bias.copy_(drawn("model.layers.1.router.router.bias", 1))
        routed.step_encoding_RD.fill_(1.0)
    return backbone, routed


def layer_positions(variant: str) -> Tensor:
    """[3, rows, tokens]: plain ones, but in `b2s48`, whose rows hold a picture of 5 x 6 tokens after 6 and 7 words."""
    _, rows, tokens = HIDDEN_SEED[variant]
    positions = torch.arange(tokens).expand(3, rows, -1).clone()
    if variant == "b2s48":
        for row, start in enumerate((6, 7)):
            grid = torch.cartesian_prod(torch.tensor([0]), torch.arange(5), torch.arange(6)).T
            positions[:, row, start : start + 30] = start + grid
            positions[:, row, start + 30 :] = start + 6 + torch.arange(tokens - start - 30)
    return positions


@torch.no_grad()
@pytest.mark.parametrize("variant", ["b2s48", "b1s40", "b1s32"])
def test_routed_layer_and_its_repeated_block(variant: str) -> None:
    golden, hidden = of("layer", variant), hidden_in(variant)
    backbone, routed = golden_layer()
    rotary = backbone.rotary(layer_positions(variant), hidden)
    once = backbone.run_layer(1, hidden, None, rotary, DynamicCache())
    torch.testing.assert_close(once, golden["block1_out"], rtol=0, atol=2e-5)
    seen: dict[str, Tensor] = {}

    def run(tokens: Tensor, mask: Tensor | None, at: tuple[Tensor, Tensor], keys: Keys) -> Tensor:
        out = backbone.run_layer(1, tokens, mask, at, keys.cache)
        seen.update(tokens=tokens, out=out)
        return out

    refined = RefinementState(lambda at: backbone.rotary(at.expand(backbone.axes, -1, -1), once))
    valid = torch.ones(once.shape[:2], dtype=torch.bool)
    got = routed(golden["block1_out"], valid, rotary, refined, 0, run)
    assert torch.equal(refined.log[0].index_BA, golden["topk_indices_sorted"])
    torch.testing.assert_close(routed.gate(routed.score(golden["block1_out"]), valid), golden["router_probs"])
    rows = golden["topk_indices_sorted"][..., None].expand(-1, -1, 64)
    assert torch.equal(seen["tokens"], golden["block1_out"].gather(1, rows)), "the release's block2_in"
    same("block2_out", seen["out"], golden["block2_out"], 2e-5)
    same("not_official_aligned_out", got, golden["not_official_aligned_out"], 2e-5)
    if variant != "b1s32":  # there the two pairings differ too, but every token is routed
        assert float((thin("hidden_out", got) - golden["hidden_out"]).abs().max()) > 0.1


@torch.no_grad()
def test_plain_layer_with_left_padding() -> None:
    """Only the ordinary pass of the real tokens: the release routes padding."""
    golden, hidden = of("layer", "b2s48_leftpad"), hidden_in("b2s48_leftpad")
    backbone, _ = golden_layer()
    rotary = backbone.rotary(layer_positions("b2s48_leftpad"), hidden)
    real = golden["attention_mask_2d"].bool()
    seen = torch.ones(48, 48, dtype=torch.bool).tril() & real[:, None, None] | torch.eye(48, dtype=torch.bool)
    once = backbone.run_layer(1, hidden, seen, rotary, DynamicCache())
    assert not bool(real.all())
    torch.testing.assert_close(once[real], golden["block1_out"][real], rtol=0, atol=2e-5)


# ---- latent passes -------------------------------------------------------------------------------------------------


def golden_batch(inputs: str, num_latents: int) -> Batch:
    """The release's row holds the prompt, the latent slots and the answer one after the other."""
    golden = tensors("full")
    ids = golden[f"{inputs}.input_ids"]
    start = ids[0].tolist().index(8)
    prompt, speech = ids[:, :start], ids[:, start + num_latents :]
    return Batch(
        prompt, torch.ones_like(prompt, dtype=torch.bool), pixel_values(),
        torch.tensor([GRID]), (1,), torch.tensor([num_latents]), torch.tensor([True]), speech,
        torch.ones_like(speech, dtype=torch.bool), torch.ones_like(speech, dtype=torch.float32),
    )  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize(
    ("case", "inputs", "k", "num_latents"), [("plain_16", "one", 16, 4), ("plain_32_3lat", "one3", 32, 3)]
)
def test_latent_passes_of_plain_layers(
    case: str, inputs: str, k: int, num_latents: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cached run equals the release's recompute of the whole sequence at every latent."""
    golden = of("full", case)
    chosen = settings(
        think={"max_latent_steps": 4, "halting": "fixed", "latent_scale": "none"},
        replay={"num_tokens": k, "weighting": "softmax"},
    )
    reasoner = build_reasoner(golden_backbone(), chosen, latent_id=8).eval()
    orders = iter(golden["selected_order"])

    def in_official_order(score: Tensor, free: Tensor, number: int, slots: int | None) -> tuple[Tensor, Tensor]:
        index, valid = select(score, free, number)
        order = next(orders)
        assert torch.equal(index, order.sort(dim=1).values) and bool(valid.all())
        return order, valid

    monkeypatch.setattr(replay_module, "select", in_official_order)
    batch = golden_batch(inputs, num_latents)
    steps = run_steps(reasoner, batch)
    for step in range(num_latents):
        torch.testing.assert_close(steps.sources[step], golden["latent_embeddings"][:, step], rtol=0, atol=2e-5)
        replayed, saliency = steps.replays[step], steps.saliency[step]
        assert replayed is not None and saliency is not None
        new = golden["rel_scores"][step].isfinite()
        torch.testing.assert_close(saliency[new], golden["rel_scores"][step][new], rtol=0, atol=1e-6)
        torch.testing.assert_close(replayed.weight_BK, golden["weights_softmax"][step], rtol=0, atol=1e-6)
        same("picked", replayed.tokens_BRE, golden["picked"][step], 2e-5)
    torch.testing.assert_close(steps.speech_BSW[0], golden["answer_logits"], rtol=0, atol=5e-5)
    loss = torch.nn.functional.cross_entropy(steps.speech_BSW[0], batch.speech_ids[0])
    assert float(loss) == pytest.approx(document("full")["cases"][case]["ce"], abs=1e-5)


def cut_to_8_bits(image: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    """Our crop, with the rounding of the release's: down to whole 255ths (1e-3 covers what falls on a step)."""
    std, mean = STD[:, None, None], MEAN[:, None, None]
    levels = ((crop_and_enlarge(image, box) * std + mean) * 255 + 1e-3).floor().clamp(0, 255)
    return (levels / 255 - mean) / std


@torch.no_grad()
def test_teacher_features_of_every_latent_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the rounding to 8 bits ours differ by up to 0.012, of values that reach 1.3."""
    golden, backbone = tensors("full"), golden_backbone()
    for rounding, tolerance in ((crop_and_enlarge, 0.02), (cut_to_8_bits, 1e-3)):
        monkeypatch.setattr(distill_module, "crop_and_enlarge", rounding)
        for case, count in (("plain_16", 4), ("plain_32_3lat", 3)):
            teacher = Teacher(backbone, pixel_values(), torch.tensor([GRID]), (1,), WINDOW)
            for step in range(count):
                selected = torch.zeros(1, 100, dtype=torch.bool)
                selected[0, golden[f"{case}.selected_sorted"][step, 0]] = True
                reference, _ = teacher.features(selected)
                torch.testing.assert_close(reference, golden[f"{case}.sr_target"][step], rtol=0, atol=tolerance)
