"""`lrkit/analyze`: gradients and norms against autograd computed by itself, groups, rows and reports."""

import json

import numpy as np
import pytest
import torch

from lrkit.analyze.analysis_set import split, undisturbed
from lrkit.analyze.analysis_summary import summarize_rows
from lrkit.analyze.observed import KINDS, observed
from lrkit.analyze.rows import Row, read_lines, write_lines, write_rows
from lrkit.analyze.sample_figures import Matrix, attention_matrices, measure_sample, nuclear_norms
from lrkit.contract.settings import ReasonerSettings
from lrkit.errors import DataError
from tests.tiny import Prompt, batch, prompt, tiny_reasoner

PLAIN = {"replay": {"num_tokens": 2}, "lora": {"rank": 3, "alpha": 3.0, "dropout": 0.0}}
ROUTED = {**PLAIN, "routing": {"depth": 2, "alpha": 4}}
PRUNED = {**PLAIN, "prune": {"after_layer": 1, "keep": 0.5}}


def one_sample(seed: int = 3, latents: int = 2, length: int = 7) -> object:
    return batch([prompt(seed, length=length)], num_latents=[latents], speech=[[9, 10, 11, 1]])


def figures_of(settings: dict, trainable: str = "lora", **sample: int):
    reasoner = tiny_reasoner(ReasonerSettings.model_validate(settings), trainable=trainable).eval()
    found = measure_sample(reasoner, one_sample(**sample), attention_matrices(reasoner), torch.enable_grad)
    return reasoner, found, {(layer, kind, name): value for layer, kind, name, value in found.figures}


@pytest.mark.parametrize("settings", [PLAIN, ROUTED], ids=["plain", "routed"])
def test_gradients_are_those_of_autograd_by_hooks_on_the_layers(settings) -> None:
    """Another way to the same numbers: hooks of torch on what transformers' layers are given, with `backward`."""
    reasoner, _, figures = figures_of(settings)
    states: dict[int, list[torch.Tensor]] = {}
    main = set[int]()

    def keep(layer: int):
        def hook(module, args, kwargs) -> None:
            # A routed pass is of as many tokens as are routed, and comes right behind the layer's main pass.
            if layer not in main:
                args[0].requires_grad and args[0].retain_grad()
                states.setdefault(layer, []).append(args[0])
                main.clear()
                main.add(layer)

        return hook

    layers = reasoner.backbone.decoder.layers
    handles = [one.register_forward_pre_hook(keep(i), with_kwargs=True) for i, one in enumerate(layers)]
    sample = one_sample()
    reasoner(sample).total.backward()
    for handle in handles:
        handle.remove()
    is_visual = sample.input_ids[0] == reasoner.backbone.image_token_id
    for layer in range(1, 4):
        prompt_norms = states[layer][0].grad[0].norm(dim=-1)
        for kind, own in (("visual", prompt_norms[is_visual]), ("text", prompt_norms[~is_visual])):
            assert figures[layer, kind, "gradient_mean"] == pytest.approx(float(own.mean()), rel=1e-4)
            assert figures[layer, kind, "gradient_total"] == pytest.approx(float(own.norm()), rel=1e-4)
        # Two latent steps, each with its replayed tokens in front of the latent; then speech.
        latents = torch.stack([states[layer][step].grad[0, -1] for step in (1, 2)]).norm(dim=-1)
        replayed = torch.cat([states[layer][step].grad[0, :-1] for step in (1, 2)]).norm(dim=-1)
        spoken = states[layer][3].grad[0].norm(dim=-1)
        for kind, own in (("latent", latents), ("replayed", replayed), ("spoken", spoken)):
            assert figures[layer, kind, "gradient_mean"] == pytest.approx(float(own.mean()), rel=1e-4)
    for matrix in attention_matrices(reasoner):
        expected = torch.linalg.matrix_norm(matrix.weight.grad, "nuc")
        assert figures[matrix.layer, matrix.kind, f"nuclear_{matrix.part}"] == pytest.approx(float(expected), rel=1e-4)


def test_a_first_state_of_a_frozen_backbone_has_its_gradient_too() -> None:
    """Nothing in front of it is trained, so autograd had no reason to keep one. By finite differences."""
    reasoner, found, figures = figures_of(PLAIN)
    sample, image = one_sample(), 4
    with observed(reasoner) as watched:
        total = reasoner(sample).total
    (gradient,) = torch.autograd.grad(total, [watched.chunks[0].hidden[0]])
    own = gradient[0, sample.input_ids[0] == reasoner.backbone.image_token_id].norm(dim=-1)
    assert figures[0, "visual", "gradient_mean"] == pytest.approx(float(own.mean()), rel=1e-5)
    assert found.loss == pytest.approx(float(total.detach()), rel=1e-6)
    column = int((sample.input_ids[0] == image).nonzero()[0])
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0))
    run, losses = reasoner.backbone.run_layer, []
    for size in (1e-2, -1e-2):

        def moved(layer, hidden, *rest, size=size, **named):
            if layer == 0 and hidden.shape[1] == sample.input_ids.shape[1]:
                hidden = hidden.clone()
                hidden[0, column] += size * direction
            return run(layer, hidden, *rest, **named)

        reasoner.backbone.run_layer = moved
        losses.append(float(reasoner(sample).total.detach()))
    del reasoner.backbone.run_layer
    assert (losses[0] - losses[1]) / 2e-2 == pytest.approx(float(gradient[0, column] @ direction), rel=0.03)


def test_pruned_tokens_leave_and_the_others_keep_their_kinds() -> None:
    reasoner = tiny_reasoner(ReasonerSettings.model_validate(PRUNED), trainable="lora").eval()
    sample = one_sample()
    with observed(reasoner) as watched:
        reasoner(sample)
    from lrkit.analyze.observed import VISUAL, name_tokens

    name_tokens(watched.chunks, sample, reasoner)
    counts = [int((kinds == VISUAL).sum()) for kinds in watched.chunks[0].kinds]
    texts = [int((kinds != VISUAL).sum()) for kinds in watched.chunks[0].kinds]
    assert counts == [6, 6, 3, 3, 3] and len(set(texts)) == 1
    figures = figures_of(PRUNED)[2]
    assert (3, "visual", "gradient_mean") in figures and (1, "visual", "contribution") not in figures
    assert (1, "latent", "contribution") in figures


@pytest.mark.parametrize(
    "think",
    [
        {"latents": "parallel", "halting": "fixed"},
        {"latents": "parallel", "halting": "fixed", "passes": 2},
        {"latents": "pause"},
        {"gradient": "cut"},
    ],
    ids=["parallel", "two passes", "pause", "cut"],
)
def test_baselines_of_latents_are_measured_as_latents_are(think) -> None:
    reasoner, found, figures = figures_of({**PLAIN, "think": think})
    sample = one_sample()
    with observed(reasoner) as watched:
        reasoner(sample)
    from lrkit.analyze.observed import LATENT, REPLAYED, name_tokens

    name_tokens(watched.chunks, sample, reasoner)
    named = [
        (int((kinds == REPLAYED).sum()), int((kinds == LATENT).sum()))
        for kinds in (chunk.kinds[0] for chunk in watched.chunks[1:-1])
    ]
    passes = think.get("passes", 1)
    assert named == ([(2, 2)] * passes if "passes" in think or think.get("halting") else [(2, 1), (2, 1)])
    assert figures[2, "latent", "gradient_mean"] > 0 and (None, "latent", "settled_depth") in figures
    assert len(found.embeddings["latent"]) == sum(latents for _, latents in named)


@pytest.mark.parametrize("trainable", ["lora", "full"])
def test_nuclear_norms_are_of_what_is_trained(trainable) -> None:
    figures = figures_of(PLAIN, trainable)[2]
    parts = {name for _, kind, name in figures if kind == "q" and name.startswith("nuclear")}
    assert parts == ({"nuclear_A", "nuclear_B"} if trainable == "lora" else {"nuclear_weight"})
    assert {kind for _, kind, name in figures if name.startswith("nuclear")} == set("qkvo")


def test_a_nuclear_norm_is_right_on_either_side_and_of_low_rank() -> None:
    generator = torch.Generator().manual_seed(1)
    tall, wide = torch.randn(9, 4, generator=generator), torch.randn(4, 9, generator=generator)
    low = torch.randn(9, 1, generator=generator) @ torch.randn(1, 4, generator=generator)
    matrices = [Matrix(i, "q", "weight", torch.nn.Parameter(m)) for i, m in enumerate((tall, wide, low, tall))]
    values = [value for *_, value in nuclear_norms(matrices, [tall, wide, low, None])]
    expected = [float(torch.linalg.matrix_norm(m, "nuc")) for m in (tall, wide, low)]
    assert values == pytest.approx([*expected, 0.0], rel=1e-5)
    assert np.isnan(nuclear_norms(matrices[:1], [tall * torch.nan])[0][-1])


def test_a_depth_that_does_nothing_is_settled_at_once() -> None:
    """Layers that add nothing: the head says its last word in front of the first."""
    reasoner = tiny_reasoner(ReasonerSettings.model_validate(PLAIN), trainable="lora").eval()
    with torch.no_grad():
        for name, parameter in reasoner.named_parameters():
            if "lora_B" in name or ("language_model.layers" in name and ("o_proj" in name or "down_proj" in name)):
                parameter.zero_()
    found = measure_sample(reasoner, one_sample(), attention_matrices(reasoner), torch.enable_grad)
    figures = {(layer, kind, name): value for layer, kind, name, value in found.figures}
    for kind in ("latent", "spoken"):
        assert figures[None, kind, "settled_depth"] == 0
        assert all(figures[layer, kind, "agreement"] == 1 for layer in range(5))
    assert figures[2, "visual", "contribution"] == 0 and figures[2, "text", "cosine"] == pytest.approx(1, abs=1e-5)
    # Where layers do something, the last state agrees with itself, and not all the others do.
    busy = figures_of(PLAIN)[2]
    assert busy[4, "spoken", "agreement"] == 1 and 0 < busy[None, "spoken", "settled_depth"] <= 4


def test_watching_leaves_nothing_behind() -> None:
    reasoner = tiny_reasoner(ReasonerSettings.model_validate(ROUTED), trainable="lora").train()
    reasoner(one_sample()).total.backward()
    before = {name: p.grad.clone() for name, p in reasoner.named_parameters() if p.grad is not None}
    own, drawn = reasoner.backbone, torch.get_rng_state()
    with undisturbed(reasoner):
        torch.rand(3)
        assert not reasoner.training
        measure_sample(reasoner, one_sample(), attention_matrices(reasoner), torch.enable_grad)
    assert reasoner.backbone is own and reasoner.training
    assert torch.equal(torch.get_rng_state(), drawn)
    after = {name: p.grad for name, p in reasoner.named_parameters() if p.grad is not None}
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_samples_without_pictures_or_latents_have_no_such_rows() -> None:
    reasoner = tiny_reasoner(ReasonerSettings.model_validate(PLAIN), trainable="lora").eval()
    words = Prompt((), (9, 12, 14, 20), None)
    found = measure_sample(
        reasoner, batch([words], num_latents=[0], speech=[[9, 1]]), attention_matrices(reasoner), torch.enable_grad
    )
    kinds = {kind for layer, kind, name, _ in found.figures if name == "gradient_mean"}
    assert kinds == {"text", "spoken"} and set(found.embeddings) == kinds


def test_fewer_steps_are_easier_and_less_loss_decides_among_equals() -> None:
    assert split([1, 3, 2, 3], [9.0, 0.1, 9.0, 0.2]) == ["easy", "hard", "easy", "hard"]
    assert split([2, 2, 2], [0.3, 0.1, 0.2]) == ["hard", "easy", "hard"]


def some_rows(ratio: float, samples: int = 6, updates: tuple[int, ...] = (0, 10, 20)) -> list[Row]:
    """Visual gradients of `ratio` times those of text, from every sample."""
    rows = []
    for at in updates:
        for sample in range(samples):
            group = "easy" if sample % 2 else "hard"

            def row(layer, kind, measure, value, at=at, sample=sample, group=group):
                rows.append(Row(at, "think", sample, group, layer, kind, measure, value))

            size = 1.0 + 0.1 * sample + 0.01 * at
            row(None, "model", "loss", size)
            for layer in range(3):
                for name in ("gradient_mean", "gradient_median", "gradient_total", "gradient_scaled"):
                    row(layer, "visual", name, ratio * size if layer < 2 else 0.0)
                    row(layer, "text", name, size)
            for layer in range(2):
                row(layer, "text", "contribution", 0.5)
                row(layer, "q", "nuclear_A", size * (2.0 if group == "hard" else 1.0))
            row(None, "spoken", "settled_depth", 1.5)
            row(2, "spoken", "agreement", 1.0)
    return rows


@pytest.mark.parametrize(("ratio", "word"), [(0.4, "smaller, as version 4"), (3.0, "larger, as versions 1 to 3")])
def test_a_report_says_which_is_larger(ratio, word) -> None:
    report = summarize_rows(some_rows(ratio))
    last = report["points"][-1]
    assert last["visual_over_text"]["gradient_mean"]["value"] == pytest.approx(ratio)
    assert word in report["headlines"][0] and report["layers"] == 2
    assert last["nuclear"]["q"]["hard_over_easy"]["value"] == pytest.approx(2.0, rel=0.15)
    again = json.loads(json.dumps(report, allow_nan=False))
    assert again["volatility"]["visual_over_text"]["value"] == pytest.approx(1)


def test_two_samples_that_disagree_decide_nothing() -> None:
    rows = some_rows(0.5, samples=2) + [row for row in some_rows(2.0, samples=2) if row.sample == 1]
    assert "no difference" in summarize_rows(rows)["headlines"][0]


def test_rows_come_back_as_they_were(tmp_path) -> None:
    rows = [*some_rows(0.5)[:20], Row(0, "think", 1, "easy", 0, "latent", "pc1", 0.25, 3)]
    rows.append(Row(0, "think", None, "", 0, "model", "pc1_share", None))
    write_lines(rows, tmp_path / "rows.jsonl")
    assert read_lines(tmp_path / "rows.jsonl") == rows
    file = write_rows(rows, tmp_path)
    if file.suffix == ".parquet":
        import pyarrow.parquet

        assert [Row(**row) for row in pyarrow.parquet.read_table(file).to_pylist()] == rows


@pytest.mark.parametrize(
    "line",
    ['{"updates": 1}', '{"updates": -1, "stage": "a"}', "[]", '{"updates": 1, "stage": 3}', "{"],
)
def test_a_line_that_is_no_row_is_one_sentence(tmp_path, line) -> None:
    (tmp_path / "rows.jsonl").write_text(line + "\n")
    with pytest.raises(DataError) as caught:
        read_lines(tmp_path / "rows.jsonl")
    assert "rows.jsonl" in str(caught.value) and "\n" not in str(caught.value)


def test_kinds_are_told_apart() -> None:
    assert KINDS == ("visual", "text", "replayed", "latent", "spoken")
