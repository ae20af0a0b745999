"""Low rank loses nothing where nothing need be lost: heads that are one another in disguise, wherever they stand."""

import hashlib
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from gqa.convert.attention import AttentionWeights
from gqa.convert.damage import damage
from gqa.convert.freedom import Freedom
from gqa.convert.grouping import similar_order
from gqa.convert.method import Merge, method_for
from gqa.convert.moments import Moments
from gqa.convert.plan import ConvertOptions
from gqa.convert.positions import Rotation
from gqa.convert.rewrite import convert

HEAD_DIM, HIDDEN = 8, 24
NOTHING = 1e-11  # of a layer: maps may be ill-conditioned, and eigenvalues below `CUT` count as zero
ANGLES = 100.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
ROTATIONS = {
    "half": Rotation(angles=ANGLES, order=torch.arange(HEAD_DIM), context=64),
    "interleaved": Rotation(angles=ANGLES, order=torch.arange(HEAD_DIM).view(-1, 2).T.flatten(), context=64),
    "partial": Rotation(angles=ANGLES[:1], order=torch.arange(HEAD_DIM), context=64),
    "none": Rotation.none(HEAD_DIM, 64),
}


@pytest.fixture(params=ROTATIONS)
def rotation(request):
    return ROTATIONS[request.param]


def layer(free_maps, heads, queries=1):
    draw = free_maps.draw
    return AttentionWeights(
        q=draw(heads * queries, HEAD_DIM, HIDDEN),
        k=draw(heads, HEAD_DIM, HIDDEN),
        v=draw(heads, HEAD_DIM, HIDDEN),
        o=draw(heads * queries, HIDDEN, HEAD_DIM),
        q_bias=draw(heads * queries, HEAD_DIM),
        k_bias=draw(heads, HEAD_DIM),
        v_bias=draw(heads, HEAD_DIM),
    )


def disguised(weights, copy_of, free_maps, freedom):
    """Each KV head becomes what head `copy_of[head]` is, seen through maps that are free."""
    return free_maps.everything(weights.map_kv(lambda part: part[copy_of]), freedom)


def dense(free_maps):
    rows = free_maps.draw(100, HIDDEN + 1) * 3 ** free_maps.draw(HIDDEN + 1)
    rows[:, -1] = 1
    return Moments(xx=rows.T @ rows / len(rows), tokens=len(rows))


def scores(weights, rotation, distance):
    """The form [in + 1, in + 1] by which each query head scores two tokens at a distance. [heads, ...]."""
    order, pairs = rotation.order, rotation.pairs
    q, k = (
        torch.cat([part, bias[..., None]], dim=2)[:, order]
        for part, bias in ((weights.q, weights.q_bias), (weights.k, weights.k_bias))
    )
    turn = torch.polar(torch.ones(pairs).double(), rotation.angles * distance)[:, None]
    numbers = torch.complex(q[:, :pairs], q[:, pairs : 2 * pairs]) * turn
    q = torch.cat([numbers.real, numbers.imag, q[:, 2 * pairs :]], dim=1)
    return q.mT @ k.repeat_interleave(weights.num_heads // weights.num_kv_heads, dim=0)


def outputs(weights):
    """What each query head makes of one token. [heads, hidden_size, in + 1]."""
    v = torch.cat([weights.v, weights.v_bias[..., None]], dim=2)
    return weights.o @ v.repeat_interleave(weights.num_heads // weights.num_kv_heads, dim=0)


@pytest.mark.parametrize("known", ["unit", "dense"])
@pytest.mark.parametrize(("heads", "groups", "queries"), [(4, 2, 1), (8, 2, 1), (6, 3, 2), (4, 1, 3), (16, 4, 1)])
def test_heads_in_disguise_are_found_and_merge_without_loss(free_maps, rotation, heads, groups, queries, known):
    freedom = Freedom(rotation=rotation)
    moments = Moments.unit(HIDDEN) if known == "unit" else dense(free_maps)
    copy_of = free_maps.draw(heads).argsort() // (heads // groups)
    weights = disguised(layer(free_maps, heads, queries), copy_of, free_maps, freedom)
    order = similar_order(weights, groups, freedom, moments)
    together = copy_of[order].view(groups, -1)
    assert torch.equal(together, together[:, :1].expand_as(together))
    grouped = weights.reordered(order)
    merged = method_for("lowrank")(grouped, Merge(groups=groups, layer=0, freedom=freedom, moments=moments))
    assert merged.num_kv_heads == groups
    assert damage(grouped, merged, freedom, moments).total < NOTHING
    torch.testing.assert_close(
        outputs(merged), outputs(grouped), rtol=0, atol=1e-8 * float(outputs(grouped).abs().max())
    )
    for distance in (0, 1, 7):
        before = scores(grouped, rotation, distance)
        after = scores(merged, rotation, distance)
        torch.testing.assert_close(after, before, rtol=0, atol=1e-7 * float(before.abs().max()))


def test_turned_heads_that_a_norm_sizes_are_found_and_merge_without_loss(free_maps, rotation):
    """Whatever their sizes, which the norm takes away."""
    freedom, copy_of = Freedom(rotation=rotation, keys="turned"), torch.tensor([0, 1, 1, 0])
    moments = dense(free_maps)
    weights = disguised(layer(free_maps, 4), copy_of, free_maps, freedom)
    sizes = torch.tensor([0.1, 1.0, 30.0, 10.0], dtype=torch.float64).view(-1, 1, 1)
    weights = replace(weights, k=weights.k * sizes, k_bias=weights.k_bias * sizes[..., 0])
    order = similar_order(weights, 2, freedom, moments)
    assert order == [0, 3, 1, 2]
    grouped = weights.reordered(order)
    merged = method_for("lowrank")(grouped, Merge(groups=2, layer=0, freedom=freedom, moments=moments))
    assert damage(grouped, merged, freedom, moments).total < NOTHING


def test_heads_of_very_different_sizes_are_still_found_the_same(free_maps, rotation):
    freedom, moments, copy_of = Freedom(rotation=rotation), Moments.unit(HIDDEN), torch.tensor([0, 1, 1, 0])
    weights = disguised(layer(free_maps, 4), copy_of, free_maps, freedom)
    sizes = torch.tensor([1e-3, 1.0, 1e4, 10.0], dtype=torch.float64).view(-1, 1, 1)
    weights = replace(
        weights,
        k=weights.k * sizes,
        k_bias=weights.k_bias * sizes[..., 0],
        v=weights.v / sizes,
        v_bias=weights.v_bias / sizes[..., 0],
    )
    order = similar_order(weights, 2, freedom, moments)
    assert order == [0, 3, 1, 2]
    grouped = weights.reordered(order)
    merged = method_for("lowrank")(grouped, Merge(groups=2, layer=0, freedom=freedom, moments=moments))
    assert damage(grouped, merged, freedom, moments).total < NOTHING
    for own, others in zip(outputs(grouped), outputs(merged), strict=True):
        torch.testing.assert_close(others, own, rtol=0, atol=1e-6 * float(own.abs().max()))


def test_bfloat16_heads_in_disguise_lose_what_rounding_loses(free_maps, rotation):
    freedom, moments = Freedom(rotation=rotation), Moments.unit(HIDDEN)
    weights = disguised(layer(free_maps, 4), torch.tensor([0, 0, 1, 1]), free_maps, freedom)
    rounded = weights.map_kv(torch.Tensor.bfloat16).map_queries(torch.Tensor.bfloat16)
    merged = method_for("lowrank")(rounded, Merge(groups=2, layer=0, freedom=freedom, moments=moments))
    assert merged.k.dtype == merged.q.dtype == merged.o.dtype == torch.bfloat16
    assert damage(rounded, merged, freedom, moments).total < 1e-3


def test_stock_models_compute_the_same_when_heads_in_disguise_are_merged(
    variant, free_maps, layers_of, load, logits_of, tmp_path
):
    """Eight KV heads that are two, in random places, through every map that the family leaves free."""
    stock = variant.model()
    stock.save_pretrained(tmp_path / "ckpt")
    ours = layers_of(tmp_path / "ckpt")
    ours.put(stock, lambda weights, freedom: disguised(weights, free_maps.draw(8).argsort() // 4, free_maps, freedom))
    stock.save_pretrained(tmp_path / "ckpt")
    convert(tmp_path / "ckpt", tmp_path / "out", ConvertOptions(groups=2, method="lowrank"))
    merged = load(tmp_path / "out")
    assert merged.config.num_key_value_heads == 2
    # Norms are taken in float32; one over all heads hears how many there are.
    torch.testing.assert_close(logits_of(merged), logits_of(stock), rtol=0, atol=1e-4)


def digest(heads, groups):
    """Of everything in a random layer merged by low rank, similar heads together."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    shapes = (heads, HEAD_DIM, HIDDEN), (heads, HEAD_DIM, HIDDEN), (heads, HEAD_DIM, HIDDEN), (heads, HIDDEN, HEAD_DIM)
    q, k, v, o = (draw(*shape) for shape in shapes)
    weights = AttentionWeights(q=q, k=k, v=v, o=o)
    freedom, moments = Freedom(rotation=ROTATIONS["half"]), Moments.unit(HIDDEN)
    grouped = weights.reordered(similar_order(weights, groups, freedom, moments))
    merged = method_for("lowrank")(grouped, Merge(groups=groups, layer=0, freedom=freedom, moments=moments))
    found = hashlib.sha256()
    for part in (merged.q, merged.k, merged.v, merged.o):
        found.update(part.contiguous().numpy().tobytes())
    return found.hexdigest()


def test_the_same_bits_from_the_same_heads():
    """Here, here again, and in another process."""
    found = digest(16, 4)
    assert digest(16, 4) == found
    elsewhere = f"""
import importlib.util, torch
torch.set_num_threads({torch.get_num_threads()})
spec = importlib.util.spec_from_file_location("test_lowrank", {__file__!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(module.digest(16, 4))
"""
    ran = subprocess.run([sys.executable, "-c", elsewhere], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == found
