"""Predicted damage against the real thing: every score and every output of a population of tokens, before and after."""

from dataclasses import replace

import pytest
import torch

from gqa.convert.attention import AttentionWeights
from gqa.convert.damage import damage
from gqa.convert.freedom import Freedom
from gqa.convert.method import Merge, method_for, method_names
from gqa.convert.moments import Moments
from gqa.convert.positions import Rotation

HEADS, QUERIES, HEAD_DIM, HIDDEN, CONTEXT, TOKENS = 4, 2, 4, 10, 9, 40
ANGLES = torch.tensor([1.1, 0.2], dtype=torch.float64)
ROTATIONS = {
    "half": Rotation(angles=ANGLES, order=torch.arange(HEAD_DIM), context=CONTEXT),
    "interleaved": Rotation(angles=ANGLES, order=torch.tensor([0, 2, 1, 3]), context=CONTEXT),
    "none": Rotation.none(HEAD_DIM, CONTEXT),
}


@pytest.fixture(params=ROTATIONS)
def rotation(request):
    return ROTATIONS[request.param]


def layer(seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return AttentionWeights(
        q=draw(HEADS * QUERIES, HEAD_DIM, HIDDEN),
        k=draw(HEADS, HEAD_DIM, HIDDEN) * torch.tensor([0.5, 1.0, 2.0, 1.0]).double().view(-1, 1, 1),
        v=draw(HEADS, HEAD_DIM, HIDDEN),
        o=draw(HEADS * QUERIES, HIDDEN, HEAD_DIM),
        q_bias=draw(HEADS * QUERIES, HEAD_DIM),
        k_bias=draw(HEADS, HEAD_DIM),
        v_bias=draw(HEADS, HEAD_DIM),
    )


def tokens(seed=5):
    """What enters the layer. [tokens, hidden_size]."""
    x = torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x * torch.linspace(0.2, 2, HIDDEN).double() + 0.3


def moments_of(x):
    rows = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], dim=1)
    return Moments(xx=rows.T @ rows / len(rows), tokens=len(rows))


def scores(weights, x, rotation):
    """Of all tokens with all, at all distances. [heads, distances, tokens, tokens]."""
    size = weights.num_heads // weights.num_kv_heads
    queries = torch.einsum("hdi,ni->hnd", weights.q, x) + weights.q_bias[:, None]
    keys = torch.einsum("hdi,ni->hnd", weights.k, x) + weights.k_bias[:, None]
    keys = keys.repeat_interleave(size, dim=0)
    found = []
    for distance in range(CONTEXT):
        turned = queries[..., rotation.order].clone()  # the query stands behind the key by that much
        pairs = rotation.pairs
        if pairs:
            numbers = torch.complex(turned[..., :pairs], turned[..., pairs : 2 * pairs])
            numbers = numbers * torch.polar(torch.ones(pairs).double(), rotation.angles * distance)
            turned = torch.cat([numbers.real, numbers.imag, turned[..., 2 * pairs :]], dim=-1)
        found.append(turned @ keys[..., rotation.order].mT)
    return torch.stack(found, dim=1)


def outputs(weights, x):
    """What every token adds to the output where a head looks at it alone. [heads, tokens, hidden_size]."""
    size = weights.num_heads // weights.num_kv_heads
    values = torch.einsum("hdi,ni->hnd", weights.v, x) + weights.v_bias[:, None]
    return values.repeat_interleave(size, dim=0) @ weights.o.mT


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("method", method_names())
def test_damage_is_the_mean_square_by_which_scores_and_outputs_move(rotation, method, groups):
    weights, x, freedom = layer(), tokens(), Freedom(rotation=rotation)
    moments = moments_of(x)
    merged = method_for(method)(weights, Merge(groups=groups, layer=0, freedom=freedom, moments=moments))
    distances = 1 / (1 + torch.arange(CONTEXT, dtype=torch.float64))
    importance = outputs(weights, x).square().sum(2).mean(1).sqrt()  # of each head

    def squares(of):
        by_head = torch.einsum("t,htij->h", distances / distances.sum(), of.square()) / TOKENS**2
        return (by_head * importance).view(groups, -1).sum(1)

    before = scores(weights, x, rotation)
    keys = squares(scores(merged, x, rotation) - before) / squares(before).sum()
    before = outputs(weights, x)
    values = (outputs(merged, x) - before).square().sum((1, 2)).view(groups, -1).sum(1) / before.square().sum()
    found = damage(weights, merged, freedom, moments)
    torch.testing.assert_close(torch.tensor(found.keys, dtype=torch.float64), keys, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(torch.tensor(found.values, dtype=torch.float64), values, rtol=1e-9, atol=1e-12)
    assert found.total == pytest.approx(float(keys.sum() + values.sum()))


def test_no_change_is_no_damage_and_leaving_heads_out_is_all(rotation):
    weights, freedom, moments = layer(), Freedom(rotation=rotation), Moments.unit(HIDDEN)
    assert damage(weights, weights, freedom, moments).total == pytest.approx(0, abs=1e-15)
    nothing = replace(weights, k=weights.k * 0, k_bias=None, o=weights.o * 0)
    found = damage(replace(weights, k_bias=None), nothing, freedom, moments)
    assert sum(found.keys) == pytest.approx(1)
    assert sum(found.values) == pytest.approx(1)


def test_a_layer_of_zeros_has_nothing_to_lose(rotation):
    weights = layer().map_kv(torch.zeros_like).map_queries(torch.zeros_like)
    for method in method_names():
        freedom, moments = Freedom(rotation=rotation), Moments.unit(HIDDEN)
        merged = method_for(method)(weights, Merge(groups=2, layer=0, freedom=freedom, moments=moments))
        assert damage(weights, merged, freedom, moments).total == 0


def test_damage_does_not_depend_on_scale(rotation):
    weights, freedom, moments = layer(), Freedom(rotation=rotation), Moments.unit(HIDDEN)
    merged = method_for("mean")(weights, Merge(groups=2, layer=0))
    expected = damage(weights, merged, freedom, moments)
    for scale in (1e-30, 1e30):
        before, after = (
            part.map_kv(lambda part, by=scale: part * by).map_queries(lambda part, by=scale: part * by)
            for part in (weights, merged)
        )
        found = damage(before, after, freedom, moments)
        assert found.keys == pytest.approx(expected.keys)
        assert found.values == pytest.approx(expected.values)
