"""The exported program against the torch model, batch 1: every number and every choice, over the method's options."""

import numpy as np
import pytest
import torch

from lrkit.contract.settings import ReasonerSettings
from lrkit.export.graph.tower_pieces import folded, row_and_column_angles
from lrkit.export.graph.writer import PIXEL_CENTRE, PIXEL_UNIT
from lrkit.export.targets.target import Target
from lrkit.export.weights.source import read_source
from tests.programs import Runner, assert_equal, build, teach_to_stop_after
from tests.tiny import EOS, GEOMETRY, VOCABULARY, prompt, tiny_reasoner

PROMPTS = {
    "one image": prompt(1),
    "no image": prompt(2, grids=()),
    "two images": prompt(3, grids=((1, 4, 4), (1, 2, 6))),
}

REPLAYS = {
    "no replay": {"num_tokens": 0},
    "one token": {"num_tokens": 1},
    "a few": {"num_tokens": 3, "weighting": "softmax"},
    "runs out": {"num_tokens": 4},
    "all": {"num_tokens": 24, "weighting": "none"},
    "soft mix": {"num_tokens": 4, "formation": "soft_mix"},
    "shared positions": {"num_tokens": 4, "positions": "shared"},
    "one token, shared position": {"num_tokens": 1, "positions": "shared"},
}

ROUTINGS = {
    "R 1": {"depth": 1, "alpha": 4},
    "R 1, all tokens": {"depth": 1, "alpha": 40},
    "R 1, threshold": {"depth": 1, "alpha": 5, "threshold": 0.5},
    "R 2": {"depth": 2, "alpha": 3, "router": "mlp"},
    "R 2, threshold": {"depth": 2, "alpha": 6, "threshold": 0.45, "layers": "all"},
    "R 2, softmax": {"depth": 2, "alpha": 5, "gate": "softmax", "threshold": 0.1},
    "rearranged": {"depth": 2, "alpha": 8, "alpha_end": 2, "positions": "rearrange", "threshold": 0.5},
}


def settings(replay: dict, routing: dict, **think) -> ReasonerSettings:
    return ReasonerSettings(think={"max_latent_steps": 3, **think}, replay=replay, routing=routing)


def check_all_prompts(reasoner, runner: Runner) -> None:
    for one in PROMPTS.values():
        assert_equal(reasoner, runner, one, fixed=True)


@pytest.mark.parametrize("name", REPLAYS)
def test_replay(name):
    reasoner = tiny_reasoner(settings(REPLAYS[name], {}))
    check_all_prompts(reasoner, Runner(build(reasoner)))


@pytest.mark.parametrize("name", ROUTINGS)
def test_routing(name):
    reasoner = tiny_reasoner(settings({"num_tokens": 4}, ROUTINGS[name]))
    check_all_prompts(reasoner, Runner(build(reasoner)))


def test_thresholds_stop_some_tokens_and_not_others():
    """Without this the threshold cases above could pass by stopping nothing, or everything."""
    reasoner = tiny_reasoner(settings({"num_tokens": 4}, ROUTINGS["R 2, threshold"]))
    out = Runner(build(reasoner))(PROMPTS["one image"], fixed=True)
    assert 0 < out["routed_depths"].sum() < 4 * (6 * 2 + 3 * 5 * 2)


@pytest.mark.parametrize("dialect", ["ort", pytest.param("standard", marks=pytest.mark.slow)])
def test_halting_is_exact(dialect):
    """Zero latent steps, some, the maximum, a lower limit, a fixed number, masked latents; counts are carried, not
    inferred."""
    for steps in range(4):
        reasoner = tiny_reasoner(settings({"num_tokens": 3}, {"depth": 1, "alpha": 4}))
        one = PROMPTS["one image"]
        teach_to_stop_after(reasoner, one, steps)
        runner = Runner(build(reasoner, Target(dialect=dialect)))
        answer = assert_equal(reasoner, runner, one)
        assert (answer.latent_steps, answer.halting) == (steps, "decided")
        for limit in range(3):
            answer = assert_equal(reasoner, runner, one, latents=limit)
            assert (answer.latent_steps, answer.halting) == (min(steps, limit), "limit" if steps > limit else "decided")
            assert assert_equal(reasoner, runner, one, latents=limit, fixed=True).latent_steps == limit
        assert assert_equal(reasoner, runner, one, think=False).halting == "off"
        for tokens in (1, 2):
            assert_equal(reasoner, runner, one, tokens=tokens)


def test_an_answer_that_ends_at_once():
    reasoner = tiny_reasoner(settings({"num_tokens": 3}, {}))
    one = PROMPTS["one image"]
    first = assert_equal(reasoner, Runner(build(reasoner)), one, fixed=True).token_ids[0]
    out = Runner(build(reasoner, ends=[first]))(one, fixed=True)
    assert (int(out["num_tokens"]), int(out["spoken_steps"]), int(out["ar_steps"])) == (0, 0, 3)
    assert bool(out["finished"]) and (out["token_ids"] == -1).all()


def test_an_answer_that_ends_in_the_middle():
    reasoner = tiny_reasoner(settings({"num_tokens": 3}, {}), seed=0)
    one, runner = PROMPTS["no image"], Runner(build(reasoner))
    spoken = assert_equal(reasoner, runner, one, fixed=True).token_ids
    end = next(token for token in spoken if token != spoken[0])
    out = Runner(build(reasoner, ends=[end]))(one, fixed=True)
    assert out["token_ids"][: int(out["num_tokens"])].tolist() == spoken[: spoken.index(end)]
    assert bool(out["finished"]) and int(out["spoken_steps"]) == spoken.index(end)


@pytest.mark.parametrize("dialect", ["ort", "standard"])
def test_an_answer_ends_at_any_of_several_end_tokens(dialect):
    reasoner = tiny_reasoner(settings({"num_tokens": 3}, {}), seed=0)
    one, target = PROMPTS["no image"], Target(dialect=dialect)
    spoken = assert_equal(reasoner, Runner(build(reasoner)), one, fixed=True).token_ids
    end = next(token for token in spoken if token != spoken[0])
    out = Runner(build(reasoner, target, ends=[EOS, end, VOCABULARY - 2]))(one, fixed=True)
    assert out["token_ids"][: int(out["num_tokens"])].tolist() == spoken[: spoken.index(end)]
    assert bool(out["finished"]) and int(out["spoken_steps"]) == spoken.index(end)


def test_capacity_of_a_baseline_without_latents():
    reasoner = tiny_reasoner(settings({"num_tokens": 3}, {"depth": 1, "alpha": 4}))
    runner = Runner(build(reasoner, max_latent_steps=0))
    assert "replayed" not in [spec.name for spec in runner.program.spec.outputs]
    for one in PROMPTS.values():
        assert_equal(reasoner, runner, one, think=False, latents=0)


def test_untied_matrices_and_lora():
    reasoner = tiny_reasoner(settings({"num_tokens": 3}, {"depth": 1, "alpha": 4}), trainable="lora", tied=False)
    teach_to_stop_after(reasoner, PROMPTS["one image"], 2)
    assert_equal(reasoner, Runner(build(reasoner, fresh_tower=True)), PROMPTS["one image"])


@pytest.mark.parametrize("scale", ["none", "learned"])
def test_latent_scales(scale):
    reasoner = tiny_reasoner(settings({"num_tokens": 3}, {}, latent_scale=scale))
    assert_equal(reasoner, Runner(build(reasoner)), PROMPTS["one image"], fixed=True)


def test_the_portable_dialect_says_the_same():
    routing = {"depth": 2, "alpha": 6, "threshold": 0.45, "positions": "rearrange", "router": "mlp"}
    reasoner = tiny_reasoner(settings({"num_tokens": 4}, routing))
    program = build(reasoner, Target(dialect="standard"))
    domains = {node.domain for node in program.model.graph.all_nodes()}
    assert domains == {""}, "standard operators only"
    check_all_prompts(reasoner, Runner(program))


def test_a_prompt_shorter_than_the_replay():
    """Five prompt tokens, 24 slots: TopK must still find enough candidates."""
    reasoner = tiny_reasoner(settings({"num_tokens": 24}, {"depth": 1, "alpha": 32}))
    runner = Runner(build(reasoner))
    assert_equal(reasoner, runner, prompt(5, grids=(), length=2), fixed=True)
    assert_equal(reasoner, runner, prompt(6, grids=((1, 2, 2),), length=2), fixed=True)


@pytest.mark.parametrize("positions", ["consecutive", "shared"])
@pytest.mark.parametrize("dialect", ["ort", "standard"])
def test_more_latent_steps_than_visual_tokens(dialect, positions):
    """After the only visual token a step's slot is empty: it takes no position, and no latent sees it."""
    reasoner = tiny_reasoner(settings({"num_tokens": 1, "positions": positions}, {}))
    answer = assert_equal(
        reasoner, Runner(build(reasoner, Target(dialect=dialect))), prompt(6, grids=((1, 2, 2),)), fixed=True
    )
    assert [len(step) for step in answer.replayed] == [1, 0, 0]


def test_a_single_latent_step():
    """The smallest table of rotations: fewer latent slots than a token has heads."""
    reasoner = tiny_reasoner(settings({"num_tokens": 0}, {}, max_latent_steps=1))
    assert_equal(reasoner, Runner(build(reasoner)), prompt(2, grids=(), length=1), fixed=True, latents=1)


def test_the_tower_turns_by_its_own_angles():
    """Every angle once instead of twice, and both axes at once, but bit for bit those of the tower's own module."""
    tower = read_source(tiny_reasoner(settings({}, {}))).tower
    positions = torch.tensor([[0, 0], [3, 1], [2, 17]])
    cos, sin = tower.rotary_pos_emb(torch.zeros(1), positions)
    angles = row_and_column_angles(tower.rotary_pos_emb.inv_freq, positions)
    assert torch.equal(torch.cat((angles.cos(),) * 2, -1), cos) and torch.equal(torch.cat((angles.sin(),) * 2, -1), sin)


@pytest.mark.parametrize("frames", [1, 2])
def test_the_towers_first_matrix_reads_bytes(frames):
    """Folding in the normalisation and the frames gives what the tower makes of transformers' pixel values."""
    means, stds = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    geometry = GEOMETRY.model_copy(
        update={"temporal_patch_size": frames, "image_mean": means, "image_std": stds, "rescale_factor": 1 / 200}
    )
    torch.manual_seed(0)
    proj = torch.nn.Conv3d(3, 8, (frames, 4, 4), (frames, 4, 4))
    kernel, bias = folded(proj, geometry)
    patches = torch.randint(256, (5, geometry.patch_bytes), dtype=torch.uint8)
    numbers = (patches.float() - PIXEL_CENTRE) * PIXEL_UNIT
    values = torch.from_numpy(geometry.pixel_values(patches.numpy()))
    expected = proj(values.reshape(-1, 3, frames, 4, 4)).flatten(1)
    torch.testing.assert_close(numbers @ kernel.T + bias, expected, rtol=1e-5, atol=1e-5)


def test_weights_are_stored_once():
    """Prompt, latent loop, refinement and speech use the same initializers."""
    reasoner = tiny_reasoner(settings({"num_tokens": 3}, {"depth": 2, "alpha": 4}))
    program = build(reasoner)
    stored = sum(value.const_value.nbytes for value in program.model.graph.initializers.values())
    weights = sum(p.numel() * 4 for p in {id(p): p for p in reasoner.parameters()}.values())
    assert stored < weights + 40_000
    names = list(program.model.graph.initializers)
    assert len([name for name in names if name.startswith("0.qkv")]) == 2


@pytest.mark.parametrize(
    ("dialect", "precision", "changes"),
    [
        ("ort", "int4", {"vision": "int4"}),
        ("ort", "int4", {"head": "int8", "embedding": "float"}),
        ("ort", "int4", {"head": "float"}),
        ("ort", "int4", {"embedding": "int4"}),
        ("ort", "int8", {"vision": "int8"}),
        ("standard", "int4", {"vision": "int4"}),
        ("standard", "int8", {"head": "int4"}),
        ("ort", "int4-offsets", {"method": "search"}),
        ("standard", "int4-offsets", {"head": "int8"}),
        ("standard", "fp8", {"vision": "fp8"}),
    ],
)
def test_integers_compute_what_they_stand_for(dialect, precision, changes):
    """Level 0 against torch with the rounded weights put back: the rounding is all that integers change."""
    from tests.programs import with_rounded_weights

    reasoner = tiny_reasoner(settings({"num_tokens": 3}, {"depth": 1, "alpha": 4}))
    target = Target(precision=precision, dialect=dialect, int4={"block": 32, "accuracy_level": 0, **changes})
    program = build(reasoner, target)
    assert len(program.errors) >= 4 * 4
    # ONNX Runtime would turn DequantizeLinear back into its own int4 nodes, with int8 activations.
    session = {"session.disable_quant_qdq": "1"} if dialect == "standard" else {}
    rounded = with_rounded_weights(reasoner, target)
    answer = assert_equal(rounded, Runner(program, **session), PROMPTS["one image"], fixed=True)
    assert answer.latent_steps == 3


def test_an_embedding_of_four_bits_and_its_head_are_stored_once():
    reasoner = tiny_reasoner(settings({"num_tokens": 3}, {"depth": 0}))
    apart, one = (
        build(reasoner, Target(precision="int4", int4={"block": 32, "embedding": kind})) for kind in ("int8", "int4")
    )
    rows, width = reasoner.backbone.embedding_rows().shape
    scales = rows * width // 32 * 4
    assert apart.part_bytes["head"] == rows * width // 2 + scales and one.part_bytes["head"] == scales
    assert one.part_bytes["embedding"] == rows * width // 2 + scales


def test_fp16_is_close():
    reasoner = tiny_reasoner(settings({"num_tokens": 3}, {"depth": 1, "alpha": 4}))
    exact, half = Runner(build(reasoner)), Runner(build(reasoner, Target(precision="fp16")))
    one = PROMPTS["one image"]
    a, b = exact(one, fixed=True), half(one, fixed=True)
    np.testing.assert_allclose(a["prefill_logits"], b["prefill_logits"], atol=0.05)
    assert half.program.part_bytes["layers"] * 2 == exact.program.part_bytes["layers"]
