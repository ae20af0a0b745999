"""Every family against transformers' own classes: shapes, defaults, and conversions that must lose nothing."""

import pytest
import torch
from transformers import AutoConfig

from gqa.convert.family import all_families, family_for, head_shape
from gqa.convert.grouping import similar_order
from gqa.convert.layout import all_tensors, read_layer
from gqa.convert.method import Merge, method_for
from gqa.convert.moments import Moments
from gqa.convert.plan import ConvertOptions, plan_conversion
from gqa.convert.rewrite import convert

HEADS = 8
POOLING = ["mean", "first"]  # heads alike stay what they are
REWRITING = ["aligned", "lowrank"]  # heads alike may come out as others that compute the same


@pytest.fixture
def tied(variant, tmp_path):
    """A grouped-query model of transformers' own, and on disk the multi-head model that computes the same."""

    def make(groups):
        small, large = variant.tied(groups)
        large.save_pretrained(tmp_path / "tied")
        return small, large, tmp_path / "tied"

    return make


def test_the_tensors_that_merge_are_those_whose_shape_the_class_changes(variant, tmp_path):
    variant.model().save_pretrained(tmp_path / "ckpt")
    plan = plan_conversion(tmp_path / "ckpt", ConvertOptions(groups=2))
    before, after = variant.shapes(HEADS), variant.shapes(2)
    attention = {name for name in before if ".self_attn." in name}
    changed = {name: after[name] for name in attention if name in after and before[name] != after[name]}
    vanished = attention - after.keys()
    per_head = {name: after[name] for name in attention & after.keys() if ".k_layernorm.norms." in name}
    merged = {tensor.name: tensor.shape for tensors in plan.merged for tensor in tensors}
    assert merged == changed | per_head
    assert vanished.isdisjoint(tensor.name for tensor in plan.tensors)


def test_sizes_left_out_of_a_config_default_as_in_the_class(variant):
    family = family_for({"model_type": variant.model_type})
    heads = 4 * (family.default_kv_heads or 8)
    written = {"hidden_size": 96 * heads, "num_attention_heads": heads, "num_hidden_layers": 2}
    theirs = AutoConfig.for_model(variant.model_type, **written)
    ours = head_shape(family, written)
    assert ours.num_kv_heads == (theirs.num_key_value_heads or theirs.num_attention_heads)
    assert ours.head_dim == (getattr(theirs, "head_dim", None) or 96)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("method", POOLING)
def test_tied_heads_merge_without_loss(variant, tied, method, groups, load, logits_of, tmp_path):
    small, large, source = tied(groups)
    # transformers takes the mean square of a norm in float32, whose rounding depends on how many heads it runs over
    tolerance = 1e-4 if family_for({"model_type": variant.model_type}).k_norm_scope == "full_width" else 1e-12
    torch.testing.assert_close(logits_of(large), logits_of(small), rtol=0, atol=tolerance)  # the oracle is right
    convert(source, tmp_path / "out", ConvertOptions(groups=groups, method=method))
    model = load(tmp_path / "out")
    assert model.config.num_key_value_heads == groups
    torch.testing.assert_close(logits_of(model), logits_of(small), rtol=0, atol=tolerance)
    expected = small.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("method", REWRITING)
def test_tied_heads_merge_without_loss_into_others_that_compute_the_same(
    variant, tied, method, load, logits_of, tmp_path
):
    small, _, source = tied(2)
    convert(source, tmp_path / "out", ConvertOptions(groups=2, method=method))  # finds by itself which heads are tied
    # Weights agree to about 1e-11. Norms are taken in float32, so logits move by its rounding or not at all.
    torch.testing.assert_close(logits_of(load(tmp_path / "out")), logits_of(small), rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", POOLING + REWRITING)
def test_as_many_groups_as_heads_is_the_identity(variant, tmp_path, method):
    variant.model().save_pretrained(tmp_path / "ckpt")
    plan = plan_conversion(tmp_path / "ckpt", ConvertOptions(groups=1, grouping="similar"))
    tensors = {name: entry.load() for name, entry in plan.attention[0].items()}
    weights = read_layer(plan.family, plan.shape, tensors)
    freedom, moments = plan.freedoms[0], Moments.unit(plan.shape.hidden_size)
    assert similar_order(weights, HEADS, freedom, moments) == list(range(HEADS))
    merged = method_for(method)(weights, Merge(groups=HEADS, layer=0, freedom=freedom, moments=moments))
    for name, tensor in all_tensors(plan.family, merged).items():
        assert torch.equal(tensor, tensors[name]), name


def test_generates_after_conversion(variant, load, tmp_path):
    variant.model().float().save_pretrained(tmp_path / "ckpt")
    convert(tmp_path / "ckpt", tmp_path / "out", ConvertOptions(groups=2))
    model = load(tmp_path / "out")
    prompt = torch.tensor([[5, 6, 7]])
    tokens = model.generate(prompt, max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert tokens.shape == (1, 7)


@pytest.mark.parametrize("groups", [1, 2])
def test_grouped_query_checkpoints_reduce_further(variant, load, logits_of, tmp_path, groups):
    small = variant.model(4)
    small.save_pretrained(tmp_path / "gqa4")
    convert(tmp_path / "gqa4", tmp_path / "out", ConvertOptions(groups=groups))
    model = load(tmp_path / "out")
    assert model.config.num_key_value_heads == groups
    assert logits_of(model).isfinite().all()


def test_every_family_is_tested_here(variants):
    others = {name for name, family in all_families().items() if family.multi_query_key or family.own_code}
    assert {variant.model_type for variant in variants} == set(all_families()) - others  # which have their own tests
