"""The families whose attention has the traits of another that `test_families.py` takes apart: each against
transformers' own class, briefly.
"""

from functools import partial

import pytest
import torch
from transformers import AutoConfig

from gqa.convert.family import family_for, head_shape
from gqa.convert.layout import all_tensors, read_layer
from gqa.convert.plan import ConvertOptions, plan_conversion
from gqa.convert.residual import Residual
from gqa.convert.rewrite import convert
from gqa.convert.staged import StagedModel

HEADS, GROUPS = 8, 2
NOTHING_TO_SEE = 1e-5  # norms are taken in float32, and some families turn keys in it


@pytest.fixture
def multi_head(kin, tmp_path):
    """The checkpoint of a multi-head model whose heads are tied, and the grouped-query model that computes the same."""
    small, large = kin.tied(GROUPS)
    large.save_pretrained(tmp_path / "ckpt")
    return tmp_path / "ckpt", small


def test_the_tensors_that_merge_are_those_whose_shape_the_class_changes(multi_head, state_of, tmp_path):
    path, small = multi_head
    small.save_pretrained(tmp_path / "small")
    plan = plan_conversion(path, ConvertOptions(groups=GROUPS))
    before, after = (
        {name: tuple(tensor.shape) for name, tensor in state_of(at).items()} for at in (path, tmp_path / "small")
    )
    merged = {tensor.name: tensor.shape for tensors in plan.merged for tensor in tensors}
    assert merged == {name: shape for name, shape in after.items() if shape != before[name]}
    over_all_heads = any("k_norm" in name for name in merged)
    assert over_all_heads == (plan.family.k_norm_scope == "full_width")


def test_sizes_left_out_of_a_config_default_as_in_the_class(kin):
    family = family_for({"model_type": kin.model_type})
    heads = 4 * (family.default_kv_heads or 8)
    written = {"hidden_size": 96 * heads, "num_attention_heads": heads, "num_hidden_layers": 2}
    theirs, ours = AutoConfig.for_model(kin.model_type, **written), head_shape(family, written)
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert ours.head_dim == (getattr(theirs, "head_dim", None) or 96)


def test_tied_heads_merge_without_loss(multi_head, load, logits_of, tmp_path):
    path, small = multi_head
    convert(path, tmp_path / "mean", ConvertOptions(groups=GROUPS))
    model, expected = load(tmp_path / "mean"), small.state_dict()
    assert model.config.to_dict()["rope_parameters"] == small.config.to_dict()["rope_parameters"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    tokens = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert tokens.shape == (1, 7)
    convert(path, tmp_path / "lowrank", ConvertOptions(groups=GROUPS, method="lowrank"))
    torch.testing.assert_close(logits_of(load(tmp_path / "lowrank")), logits_of(small), rtol=0, atol=NOTHING_TO_SEE)


@torch.no_grad()
def test_layers_run_alone_as_in_the_stock_model(kin, load, tmp_path):
    kin.model(4).save_pretrained(tmp_path)
    ids = torch.randint(3, 96, (2, 12), generator=torch.Generator().manual_seed(7))
    staged = StagedModel(tmp_path, dtype=torch.float64, device=torch.device("cpu"))
    hidden = staged.embed(ids)
    for index in range(staged.num_layers):
        with staged.layer(index) as run:
            hidden = run(hidden)
    assert torch.equal(staged.head(hidden), load(tmp_path)(input_ids=ids).logits)


@torch.no_grad()
def test_the_residual_is_the_layer_with_nothing_from_its_feed_forward_part(kin, tmp_path):
    kin.model(4).float().save_pretrained(tmp_path)
    staged = StagedModel(tmp_path, dtype=torch.float32, device=torch.device("cpu"))
    hidden = torch.randn(2, 12, staged.shape.hidden_size, generator=torch.Generator().manual_seed(7))
    for index in range(staged.num_layers):
        with staged.layer(index) as run:
            found = Residual(run, partial(all_tensors, staged.family.of_class))(hidden)
            for child in run.module.children():
                if child is not run.attention and any(parameter.ndim > 1 for parameter in child.parameters()):
                    for parameter in child.parameters():
                        parameter.zero_()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported()):
                assert torch.equal(run(hidden), found)


@torch.no_grad()
def test_other_weights_in_memory_do_what_they_would_do_on_disk(kin, tmp_path):
    kin.model(4).float().save_pretrained(tmp_path)
    plan = plan_conversion(tmp_path, ConvertOptions(groups=1))
    staged = StagedModel(tmp_path, dtype=torch.float32, device=torch.device("cpu"))
    hidden = torch.randn(2, 12, staged.shape.hidden_size, generator=torch.Generator().manual_seed(7))
    for index, tensors in enumerate(plan.attention):
        own = read_layer(plan.family, plan.shape, {name: entry.load() for name, entry in tensors.items()})
        other = own.map_kv(torch.neg).map_queries(lambda part: 2 * part)
        with staged.layer(index) as run:
            residual = Residual(run, partial(all_tensors, staged.family.of_class))
            found = residual(hidden, other)
            assert not torch.equal(found, residual(hidden))
        with staged.layer(index, replace=all_tensors(plan.family, other)) as run:
            assert torch.equal(Residual(run, partial(all_tensors, staged.family.of_class))(hidden), found)
