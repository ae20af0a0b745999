"""The metric of the scores against explicit rotations, and against the rotary embedding of transformers itself."""

import importlib

import pytest
import torch

from gqa.convert.checkpoint import open_checkpoint
from gqa.convert.plan import ConvertOptions, plan_conversion
from gqa.convert.scores import FARTHEST, commuting, over_distances
from gqa.convert.skeleton import empty_model

ANGLES = torch.tensor([1.0, 0.3, 0.01, 0.0], dtype=torch.float64)


def turned(angle):
    """One rotation by `angle` in rotary order. [2 * pairs, 2 * pairs]."""
    return commuting(torch.polar(torch.ones_like(angle), angle))


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("context", [1, 2, 7, 100, FARTHEST + 500])
def test_over_distances_is_the_mean_over_explicit_rotations(context):
    moments = draw(3, 8, 8)  # not symmetric: products of two layers' queries aren't
    distances = range(min(context, FARTHEST))
    weights = torch.tensor([1 / (1 + t) for t in distances], dtype=torch.float64)
    rotations = torch.stack([turned(ANGLES * t) for t in distances])
    expected = torch.einsum("t,tij,hjk,tlk->hil", weights / weights.sum(), rotations, moments, rotations)
    torch.testing.assert_close(over_distances(moments, ANGLES, context), expected, rtol=0, atol=1e-12)


def test_pairs_that_stand_still_keep_what_they_have():
    moments = draw(8, 8)
    torch.testing.assert_close(over_distances(moments, torch.zeros(4, dtype=torch.float64), 64), moments)


def test_layers_without_rotation_have_no_metric():
    nothing = torch.empty(0, dtype=torch.float64)
    assert over_distances(torch.zeros(2, 0, 0, dtype=torch.float64), nothing, 9).shape == (2, 0, 0)


def test_commuting_maps_multiply_every_pair_by_its_number():
    factors = torch.complex(draw(2, 3), draw(2, 3, seed=1))
    z = torch.complex(draw(3, seed=2), draw(3, seed=3))
    product = commuting(factors) @ torch.cat([z.real, z.imag])
    expected = factors * z
    torch.testing.assert_close(product, torch.cat([expected.real, expected.imag], dim=-1))
    rotation = turned(ANGLES[:3])
    torch.testing.assert_close(commuting(factors) @ rotation, rotation @ commuting(factors))


@pytest.mark.parametrize("name", ["llama", "phi", "cohere"])
def test_errors_in_keys_weigh_what_they_move_real_scores_by(named, name, tmp_path):
    """Scores through transformers' own rotary embedding, at every distance of a context."""
    named(name).model().float().save_pretrained(tmp_path)
    plan = plan_conversion(tmp_path, ConvertOptions(groups=1, method="lowrank"))
    rotation, head_dim = plan.freedoms[0].rotation, plan.shape.head_dim
    module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    opened = open_checkpoint(tmp_path)
    model = empty_model(opened, dtype=torch.float32, device=torch.device("cpu"), num_kv_heads=8)
    positions = torch.arange(rotation.context)[None]
    cos, sin = (part.double() for part in model.model.rotary_emb(torch.zeros(1, dtype=torch.float64), positions))
    turning = 2 * rotation.pairs
    queries, error = draw(50, head_dim), draw(head_dim, seed=1)
    rows = [part[:turning].expand(1, 1, rotation.context, turning) for part in (*queries, error)]
    *at, key = (module.apply_rotary_pos_emb(row, row, cos, sin)[0][0, 0].double() for row in rows)
    distances = torch.arange(rotation.context)
    weights = 1 / (1 + distances.double())
    expected = 0.0
    for query in at:  # the query stands at the end and looks back
        moved = key.flip(0) @ query[-1]
        expected += float((weights / weights.sum() * moved.square()).sum()) / len(at)
    order = rotation.order[:turning]
    moments = queries[:, order].T @ queries[:, order] / len(queries)
    found = error[order] @ over_distances(moments, rotation.angles, rotation.context) @ error[order]
    assert float(found) == pytest.approx(expected, rel=1e-4)  # transformers computes its tables in float32
