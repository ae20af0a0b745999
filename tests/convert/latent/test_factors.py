"""The factorisation against other ways to the same numbers: singular values, sums, and the class's own angles."""

from dataclasses import replace

import pytest
import torch
from transformers import YoutuConfig
from transformers.models.youtu.modeling_youtu import YoutuRotaryEmbedding

from gqa.convert.algebra import root_and_inverse
from gqa.convert.keys import head_weights
from gqa.convert.latent.factors import Factors, _damage, _latent, _several, _still, factored
from gqa.convert.latent.frequencies import chosen_pairs, gains_of_pairs, rope_settings
from gqa.convert.moments import Moments
from gqa.convert.positions import Rotation
from gqa.convert.scores import commuting, mean_turn
from gqa.convert.wide import WideLayer

HEADS, QUERIES, DIM, WIDTH = 3, 2, 8, 20
ROTATION = Rotation(angles=torch.tensor([1.0, 0.2, 0.03, 0.001]).double(), order=torch.arange(DIM), context=64)
ALL = tuple(range(4))


def layer(seed: int = 0) -> WideLayer:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return WideLayer(
        q=draw(HEADS, QUERIES, DIM, WIDTH + 1),
        k=draw(HEADS, DIM, WIDTH + 1),
        v=draw(HEADS, DIM, WIDTH + 1),
        o=draw(HEADS, QUERIES, 12, DIM),
    )


def measured(seed: int = 1, tokens: int = 200) -> tuple[Moments, torch.Tensor]:
    """Moments of rows that have a mean and are no noise, and the rows with a one."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64)
    rows = torch.randn(tokens, WIDTH, generator=generator, dtype=torch.float64) @ mixed + 2
    rows = torch.cat([rows, torch.ones(tokens, 1, dtype=torch.float64)], dim=1)
    return Moments(xx=rows.T @ rows / tokens, tokens=tokens), rows


def asked(rank: int) -> Factors:
    return Factors(pairs=ALL, rank=rank, scale=DIM**-0.5, centred=True)


@pytest.mark.parametrize("rank", [1, 5, 17])
def test_the_latent_loses_what_the_smallest_singular_values_hold(rank):
    """Eckart and Young: no latent of that rank is better, in what keys and values weigh."""
    wide, (moments, rows) = layer(), measured()
    latent, (key_up, value_up) = _latent(wide, moments, asked(rank))
    both = torch.cat([wide.k, wide.v])
    centred = both @ (rows - rows.mean(0)).T
    sizes = head_weights(wide, moments).square()[..., None, None]
    keys = ((wide.q @ rows.T @ rows @ wide.q.mT) / len(rows) * sizes).sum(1) / DIM
    metric = torch.cat([keys, (wide.o.mT @ wide.o).sum(1)])
    whitened = (root_and_inverse(metric)[0] @ centred).flatten(0, 1) / len(rows) ** 0.5
    least = torch.linalg.svdvals(whitened)[rank:].square().sum()
    ones = torch.ones(1, len(rows), dtype=torch.float64)
    off = both @ rows.T - torch.cat([key_up, value_up]) @ torch.cat([latent @ rows.T, ones])
    off = off - off.mean(-1, keepdim=True)
    lost = (metric * (off @ off.mT)).sum() / len(rows)
    assert lost == pytest.approx(least.item(), rel=1e-8)


def test_means_cost_nothing():
    wide, (moments, rows) = layer(), measured()
    latent, (_, value_up) = _latent(wide, moments, asked(2))
    made = value_up @ torch.cat([latent @ rows.T, torch.ones(1, len(rows), dtype=torch.float64)])
    assert torch.allclose(made.mean(-1), (wide.v @ rows.T).mean(-1))
    assert torch.allclose((latent @ rows.T).mean(-1), torch.zeros(2, dtype=torch.float64), atol=1e-9)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_several_keys_of_one_frequency_are_the_principal_components_of_complex_keys(count):
    wide, (moments, rows) = layer(), measured()
    part = WideLayer(q=wide.q[:, :, [0, 4]], k=wide.k[:, [0, 4]], v=wide.v, o=wide.o)
    found = _several(part, moments, count)
    keys = torch.complex(*((part.k[:, row] @ rows.T) for row in (0, 1))) / len(rows) ** 0.5
    energy = (part.q @ rows.T).square().mean(-1).sum(-1)
    energy = (energy * head_weights(part, moments)).sum(1)
    least = torch.linalg.svdvals(energy.sqrt()[:, None] * keys)[count:].square().sum()
    off = (part.k - found.maps @ found.w) @ rows.T
    lost = (energy[:, None, None] * off.square()).sum() / len(rows)
    assert lost.item() == pytest.approx(least.item(), rel=1e-8, abs=1e-12)
    real, imaginary = found.maps.chunk(2, dim=1)
    assert torch.allclose(real[..., :count], imaginary[..., count:])
    assert torch.allclose(real[..., count:], -imaginary[..., :count])


def test_still_queries_are_those_that_turn_on_the_average_of_distances():
    query = torch.randn(DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    distances = torch.arange(ROTATION.context)
    weights = 1 / (1 + distances.double())
    turned = torch.stack([commuting(torch.exp(1j * ROTATION.angles * t)) @ query for t in distances])
    assert torch.allclose(_still(ROTATION) @ query, (weights[:, None] * turned).sum(0) / weights.sum())


def test_damage_falls_with_the_rank_to_what_still_keys_can_not_do(layers_of, checkpoint):
    layers = layers_of(checkpoint)
    weights, freedom = layers.weights[0], layers.freedoms[0]
    moments = Moments.unit(48)
    lost = [factored(weights, freedom, moments, asked(rank))[1] for rank in (1, 8, 32, 128)]
    values, keys = ([getattr(damage, part)[0] for damage in lost] for part in ("values", "keys"))
    assert values == sorted(values, reverse=True)
    assert values[-1] == pytest.approx(0, abs=1e-9)
    assert keys == sorted(keys, reverse=True)
    assert keys[-1] > 1e-3


@pytest.mark.parametrize("centred", [True, False])
def test_damage_to_scores_is_how_they_vary_over_tokens_and_distances(centred):
    """Less what they are on the average of both, which softmax does not see; here all of a key goes to the latent."""
    wide, (moments, rows) = layer(), measured()
    still = replace(wide, q=_still(ROTATION) @ wide.q)
    latent, up = _latent(still, moments, replace(asked(5), centred=centred))
    ones = torch.ones(1, len(rows), dtype=torch.float64)
    made = up[0] @ torch.cat([latent @ rows.T, ones])  # [heads, dim, tokens]
    distances = torch.arange(ROTATION.context)
    turns = torch.stack([commuting(torch.exp(1j * ROTATION.angles * t)) for t in distances])
    share = 1 / (1 + distances.double())
    share = share[:, None] / share.sum() / len(rows)  # of a distance and a token
    lost, total = 0.0, 0.0
    for head, queries in enumerate(head_weights(wide, moments)):
        for query, weight in enumerate(queries):
            asks = wide.q[head, query] @ rows.T  # [dim, tokens]
            scores = torch.einsum("tde,en,dm->ntm", turns, asks, wide.k[head] @ rows.T)
            off = scores - ((_still(ROTATION) @ asks).T @ made[head])[:, None]
            varies = (share * off.square()).sum((1, 2)) - (share * off).sum((1, 2)).square()
            lost += (weight * varies.mean()).item()
            total += (weight * (share * scores.square()).sum((1, 2)).mean()).item()
    assert _damage(wide, still, latent, up, moments, ROTATION).keys[0] == pytest.approx(lost / total, rel=1e-6)


def test_pairs_go_where_nothing_else_can_stand_in():
    still = Rotation(angles=torch.tensor([1.0, 0.2, 0.0, 0.0]).double(), order=torch.arange(DIM), context=64)
    assert chosen_pairs(gains_of_pairs([layer()], still), 8) in {(0, 0, 1, 1), (0, 0, 0, 1), (0, 1, 1, 1)}
    assert mean_turn(still).abs()[2:].tolist() == pytest.approx([1, 1])
    assert chosen_pairs(gains_of_pairs([layer()], ROTATION), 2 * 4 * HEADS) == tuple(sorted(ALL * HEADS))


@pytest.mark.parametrize("pairs", [(0, 0, 1, 3), (1,), ALL])
def test_the_class_turns_the_key_as_was_asked(llama, pairs):
    config = llama.config(rope_parameters={"rope_type": "default", "rope_theta": 300.0})
    rotation = Rotation(angles=300.0 ** -(torch.arange(4).double() / 4), order=torch.arange(8), context=128)
    settings = rope_settings(config, rotation, pairs)
    target = YoutuConfig(qk_rope_head_dim=2 * len(pairs), max_position_embeddings=128, rope_parameters=settings)
    positions = torch.arange(1000)[None]
    cos, sin = YoutuRotaryEmbedding(target)(torch.zeros(1), positions)
    angles = positions[0, :, None].double() * rotation.angles[list(pairs)]
    assert torch.allclose(cos[0, :, : len(pairs)].double(), angles.cos(), atol=2e-4)
    assert torch.allclose(sin[0, :, : len(pairs)].double(), angles.sin(), atol=2e-4)
