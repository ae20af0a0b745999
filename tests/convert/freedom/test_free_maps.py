"""What a layer's freedom says may be changed is changed at random, and stock transformers must not see a difference.

This is the oracle of positions, freedoms and layouts: whatever they get wrong about a family moves its logits.
"""

import pytest
import torch

from gqa.convert.layout import all_tensors
from gqa.convert.moments import Moments
from gqa.convert.wide import narrowed, widened

KV_HEADS = 4
NOTHING_TO_SEE = 1e-5  # norms are taken in float32, and cohere turns keys in it
CLEARLY = 1e-3  # what a map that isn't free moves logits by, at least


@pytest.fixture
def ours(variant, layers_of, tmp_path):
    """The layers of a grouped-query model of transformers' own."""
    variant.model(KV_HEADS).save_pretrained(tmp_path / "ckpt")
    return layers_of(tmp_path / "ckpt")


@pytest.fixture
def moved(ours, tmp_path, load, logits_of):
    """By how much logits move when a function changes every layer."""

    def measure(change):
        stock = load(tmp_path / "ckpt")
        before = logits_of(stock)
        ours.put(stock, change)
        return float((logits_of(stock) - before).abs().max())

    return measure


def test_free_values(moved, free_maps):
    def change(weights, freedom):
        maps = free_maps.draw(KV_HEADS, weights.head_dim, weights.head_dim)
        return free_maps.values(weights, maps) if freedom.values == "free" else weights

    assert moved(change) < NOTHING_TO_SEE


def test_free_keys(moved, free_maps):
    def change(weights, freedom):
        maps = free_maps.of_keys(freedom.rotation, KV_HEADS, turned=freedom.keys == "turned")
        return free_maps.keys(weights, maps) if freedom.keys in ("free", "turned") else weights

    assert moved(change) < NOTHING_TO_SEE


def test_heads_that_change_places(moved):
    def change(weights, freedom):
        return weights.reordered([2, 0, 3, 1]) if freedom.heads_move else weights

    assert moved(change) < NOTHING_TO_SEE


def test_what_is_said_not_to_be_free_is_not(ours, moved, free_maps):
    """Otherwise methods would be kept from something without need, or the tests above would see nothing."""
    freedom, head_dim = ours.freedoms[0], ours.plan.shape.head_dim
    assert freedom.heads_move
    if freedom.keys != "free":
        assert (
            moved(lambda weights, _: free_maps.keys(weights, free_maps.of_keys(freedom.rotation, KV_HEADS))) > CLEARLY
        )
    if freedom.values != "free":
        assert (
            moved(lambda weights, _: free_maps.values(weights, free_maps.draw(KV_HEADS, head_dim, head_dim))) > CLEARLY
        )
    if freedom.keys == "free":  # every component with every other, whatever rotates with it
        assert moved(lambda weights, _: free_maps.keys(weights, free_maps.draw(KV_HEADS, head_dim, head_dim))) > CLEARLY


def test_wide_and_back_is_the_layer(ours, free_maps):
    width = ours.plan.shape.hidden_size
    rows = free_maps.draw(200, width + 1)
    rows[:, -1] = 1
    for moments in (Moments.unit(width), Moments(xx=rows.T @ rows / len(rows), tokens=len(rows))):
        for weights, freedom in zip(ours.weights, ours.freedoms, strict=True):
            back = narrowed(widened(weights, freedom, moments), weights, freedom, moments)
            before, after = (all_tensors(ours.plan.family, layer) for layer in (weights, back))
            for name, tensor in before.items():
                torch.testing.assert_close(after[name], tensor, rtol=1e-13, atol=1e-14, msg=name)


def test_what_is_free_changes_nothing_and_what_is_not_does(kin, layers_of, free_maps, load, logits_of, tmp_path):
    kin.model(4).save_pretrained(tmp_path)
    ours, stock = layers_of(tmp_path), load(tmp_path)
    expected = logits_of(stock)

    def moved(change):
        ours.put(stock, change)
        return float((logits_of(stock) - expected).abs().max())

    def everything(weights, freedom):
        return free_maps.everything(weights, freedom).reordered([2, 0, 3, 1])

    def any_keys(weights, freedom):
        maps = free_maps.of_keys(freedom.rotation, 4) if freedom.keys != "free" else free_maps.draw(4, 8, 8)
        return free_maps.keys(weights, maps)

    assert moved(everything) < NOTHING_TO_SEE
    assert moved(any_keys) > CLEARLY
    if any(freedom.values != "free" for freedom in ours.freedoms):
        assert moved(lambda weights, _: free_maps.values(weights, free_maps.draw(4, 8, 8))) > CLEARLY
