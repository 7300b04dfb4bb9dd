"""Routing depth scaling (method section 5), on a layer given as a function."""

import pytest
import torch
from torch import Tensor

from lrkit.contract.settings import RoutingSettings
from lrkit.model.routing import RefinementState, RoutedLayer

WIDTH = 4


def layer(**chosen: object) -> RoutedLayer:
    made = RoutedLayer(RoutingSettings.model_validate({"depth": 1, **chosen}), 1, 4, WIDTH).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return made


def hidden(batch: int = 1, size: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(batch, size, WIDTH, generator=torch.Generator().manual_seed(seed))


def rotary(batch: int, size: int) -> tuple[Tensor, Tensor]:
    """The position of each token in place of its cosines."""
    table = torch.arange(size).float().view(1, size, 1).expand(batch, size, 2)
    return table, table


def state() -> RefinementState:
    return RefinementState(lambda at: (at[:, :, None].float(), at[:, :, None].float()))


def double(tokens: Tensor, mask: Tensor | None, at: tuple[Tensor, Tensor], cache: object) -> Tensor:
    return 2 * tokens


def test_refined_tokens_land_where_they_came_from() -> None:
    """The release computes in position order and writes back in rank order."""
    routed, x = layer(alpha=3), hidden()
    kept = state()
    out = routed(x, torch.ones(1, 8, dtype=torch.bool), rotary(1, 8), kept, 0, double)
    chosen = kept.log[0].index_BA[0].tolist()
    score = routed.score(x)[0]
    assert chosen == sorted(score.argsort(descending=True)[:3].tolist())
    want = x.clone()
    for token in chosen:
        want[0, token] += routed.step_encoding_RD[0] * score[token].sigmoid() * 2 * x[0, token]
    torch.testing.assert_close(out, want)
    others = [i for i in range(8) if i not in chosen]
    assert torch.equal(out[0, others], x[0, others])


def test_routed_tokens_keep_their_positions() -> None:
    seen: list[Tensor] = []
    routed, kept = layer(alpha=3), state()

    def run(tokens: Tensor, mask: Tensor | None, at: tuple[Tensor, Tensor], cache: object) -> Tensor:
        seen.append(at[0][0, :, 0])
        return tokens

    routed(hidden(), torch.ones(1, 8, dtype=torch.bool), rotary(1, 8), kept, 0, run)
    assert seen[0].tolist() == kept.log[0].index_BA[0].tolist()


def test_rearranged_positions_count_on_over_chunks_stopped_tokens_too() -> None:
    """With a threshold, positions once counted only the tokens that had passed it, so that chunks overlapped."""
    seen: list[list[float]] = []

    def run(tokens: Tensor, mask: Tensor | None, at: tuple[Tensor, Tensor], cache: object) -> Tensor:
        seen.append(at[0][0, :, 0].tolist())
        return tokens

    routed, kept = layer(alpha=3, positions="rearrange", threshold=0.8), state()
    for chunk in range(2):
        routed(hidden(seed=2 * chunk), torch.ones(1, 8, dtype=torch.bool), rotary(1, 8), kept, chunk, run)
    assert 0 < int(kept.log[0].depth_BA.sum()) < 3
    assert seen == [[0, 1, 2], [3, 4, 5]]


def test_padding_is_never_routed() -> None:
    routed, kept = layer(alpha=4), state()
    valid = torch.tensor([[False] * 3 + [True] * 5, [True] * 2 + [False] * 6, [False] * 8])
    x = hidden(3)
    with torch.no_grad():
        x[~valid] = 100 * routed.router.weight[0]  # padding that every router would want most
    out = routed(x, valid, rotary(3, 8), kept, 0, double)
    index = kept.log[0].index_BA
    assert [int((row >= 0).sum()) for row in index] == [4, 2, 0]
    assert all(bool(valid[row, i]) for row in range(3) for i in index[row].tolist() if i >= 0)
    assert torch.equal(out[~valid], x[~valid])
    assert bool((kept.log[0].depth_BA[index < 0] == 0).all())


def test_chunk_shorter_than_alpha_routes_every_token() -> None:
    """The release fails when a chunk has fewer than 32 tokens."""
    kept = state()
    layer(alpha=32)(hidden(size=5), torch.ones(1, 5, dtype=torch.bool), rotary(1, 5), kept, 0, double)
    assert kept.log[0].index_BA.tolist() == [[0, 1, 2, 3, 4]]


def test_zero_step_encodings_change_nothing() -> None:
    routed, x = layer(alpha=3, depth=2), hidden()
    fresh = RoutedLayer(RoutingSettings(depth=2), 1, 4, WIDTH)
    assert bool((fresh.step_encoding_RD == 0).all())
    with torch.no_grad():
        routed.step_encoding_RD.zero_()
    assert torch.equal(routed(x, torch.ones(1, 8, dtype=torch.bool), rotary(1, 8), state(), 0, double), x)


def test_softmax_gate_is_over_the_real_tokens_of_the_chunk() -> None:
    routed = layer(gate="softmax")
    score, valid = torch.tensor([[1.0, 2.0, 3.0, 50.0]]), torch.tensor([[True, True, True, False]])
    torch.testing.assert_close(routed.gate(score, valid)[:, :3], score[:, :3].softmax(1))


def test_sigmoid_gate_does_not_shrink_with_the_chunk() -> None:
    """The release's softmax over all tokens leaves a gate of about 1 / S."""
    routed = layer(alpha=2)
    long, valid = torch.zeros(1, 400), torch.ones(1, 400, dtype=torch.bool)
    assert routed.gate(long, valid)[0, 0] == 0.5
    assert layer(gate="softmax").gate(long, valid)[0, 0] < 0.01


def test_threshold_stops_tokens_and_counts_their_depth() -> None:
    routed, kept = layer(alpha=6, depth=3, threshold=0.7), state()
    x = hidden(seed=1)
    routed(x, torch.ones(1, 8, dtype=torch.bool), rotary(1, 8), kept, 0, double)
    log = kept.log[0]
    for token, depth in zip(log.index_BA[0].tolist(), log.depth_BA[0].tolist(), strict=True):
        u, want = x[0, token], 0
        while want < 3 and (gate := routed.score(u).sigmoid()) >= 0.7:
            u, want = gate * 2 * u, want + 1
        assert depth == want
    assert len(set(log.depth_BA[0].tolist())) > 1


def test_loop_ends_when_no_token_is_left() -> None:
    calls: list[int] = []

    def run(tokens: Tensor, mask: Tensor | None, at: tuple[Tensor, Tensor], cache: object) -> Tensor:
        calls.append(1)
        return tokens

    routed = layer(alpha=3, depth=4, threshold=0.999)
    routed(hidden(), torch.ones(1, 8, dtype=torch.bool), rotary(1, 8), state(), 0, run)
    assert not calls


def test_a_stopped_token_leaks_nothing_even_when_its_value_is_infinite() -> None:
    def run(tokens: Tensor, mask: Tensor | None, at: tuple[Tensor, Tensor], cache: object) -> Tensor:
        return tokens / 0.0

    valid = torch.tensor([[True, False]])
    routed = layer(alpha=2)
    out = routed(hidden(size=2), valid, rotary(1, 2), state(), 0, run)
    assert bool(out[0, 1].isfinite().all())


def test_routing_of_a_chunk_does_not_depend_on_later_chunks() -> None:
    routed, kept = layer(alpha=3), state()
    first = routed(hidden(), torch.ones(1, 8, dtype=torch.bool), rotary(1, 8), kept, 0, double)
    alone = first.clone()
    routed(hidden(size=2, seed=9), torch.ones(1, 2, dtype=torch.bool), rotary(1, 2), kept, 1, double)
    assert torch.equal(first, alone) and [entry.chunk for entry in kept.log] == [0, 1]


@pytest.mark.parametrize("gate", ["sigmoid", "softmax"])
@pytest.mark.parametrize("router", ["linear", "mlp"])
def test_gradient_reaches_router_and_step_encodings(router: str, gate: str) -> None:
    routed = layer(alpha=3, depth=2, router=router, gate=gate)
    out = routed(hidden(), torch.ones(1, 8, dtype=torch.bool), rotary(1, 8), state(), 0, double)
    (out * torch.randn(out.shape)).sum().backward()
    for name, parameter in routed.named_parameters():
        shifts_all = gate == "softmax" and name in ("router.bias", "router.2.bias")  # a softmax ignores a shift
        assert shifts_all or (parameter.grad is not None and bool(parameter.grad.any())), name


def test_alpha_follows_the_cosine() -> None:
    chosen = RoutingSettings(depth=1, alpha=64, alpha_end=16)
    assert [chosen.alpha_of(i, 5) for i in range(5)] == [64, 57, 40, 23, 16]
    assert chosen.alpha_of(0, 1) == 64 and RoutingSettings(depth=1).alpha_of(3, 5) == 32


def test_layers_that_route() -> None:
    assert RoutingSettings(depth=1).chosen_layers(5) == (1, 3)
    assert RoutingSettings(depth=1, layers="all").chosen_layers(3) == (0, 1, 2)
    assert RoutingSettings(depth=1, layers=(2, 0)).chosen_layers(3) == (0, 2)
    assert RoutingSettings(depth=0, layers="all").chosen_layers(3) == ()
