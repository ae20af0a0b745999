"""Predicted damage: what it says of merges that lose nothing, of layers one by one, and of damaged weights."""

import pytest
import torch

from gqa.convert.calibration import CalibrationOptions, layer_moments, stage
from gqa.convert.errors import UserError
from gqa.convert.forecast import forecast, sampled_layers
from gqa.convert.merging import merge_layer
from gqa.convert.method import method_names
from gqa.convert.plan import ConvertOptions, plan_conversion


def plan_for(checkpoint, groups=4, **options):
    return plan_conversion(checkpoint, ConvertOptions(groups=groups, **options))


@pytest.fixture
def tied(llama, tmp_path):
    """A checkpoint whose eight heads are two, four times each, one after the other."""
    model = llama.model().float()
    for layer in model.model.layers:
        for module in (layer.self_attn.k_proj, layer.self_attn.v_proj):
            heads = module.weight.data.unflatten(0, (8, -1))
            heads.copy_(heads[::4].repeat_interleave(4, dim=0))
    model.save_pretrained(tmp_path / "tied")
    return tmp_path / "tied"


def test_heads_alike_are_predicted_to_merge_without_loss(tied):
    found = forecast(plan_for(tied))
    assert found.groups == (4, 2, 1)
    for method in ("mean", "first", "lowrank"):
        for groups in (4, 2):
            assert found.total(method, groups) == pytest.approx(0, abs=1e-9)
        assert found.total(method, 1) > 0.01
    assert found.total("random", 4) > 1
    assert found.recommended_groups() == 2
    assert found.best_method(2) == "first"  # as good as any, and queries are left alone


def test_a_forecast_says_what_the_conversion_itself_will_say(checkpoint):
    found = forecast(plan_for(checkpoint))
    assert found.layers == (0, 1)
    for method in ("aligned", "lowrank"):
        plan = plan_for(checkpoint, groups=2, method=method)
        said = [merge_layer(plan, layer).damage for layer in range(2)]
        assert list(found.damages[method, 2]) == said


def test_low_rank_loses_least_whatever_the_heads(checkpoint):
    found = forecast(plan_for(checkpoint))
    for groups in found.groups:
        assert found.best_method(groups) == "lowrank"
        assert found.values("lowrank", groups) == min(found.values(method, groups) for method in method_names())
        assert found.keys("lowrank", groups) == min(found.keys(method, groups) for method in method_names())


def test_every_family_has_a_forecast(variant, tmp_path):
    variant.model().float().save_pretrained(tmp_path)
    found = forecast(plan_for(tmp_path, seed=1), layers=[0])
    assert len(found.damages) == 3 * len(method_names())
    for method, groups in found.damages:
        assert 0 < found.total(method, groups) < 20
    assert found.total("lowrank", 4) < found.total("lowrank", 1)


def test_measured_moments_are_used(checkpoint):
    ids = torch.randint(3, 96, (4, 16), generator=torch.Generator().manual_seed(0))
    options = CalibrationOptions(data="", device="cpu", dtype="float32")
    plan = plan_for(checkpoint)
    measured = forecast(plan, layers=[1], moments=layer_moments(stage(checkpoint, options), ids))
    assumed = forecast(plan, layers=[1])
    assert (measured.calibrated, assumed.calibrated) == (True, False)
    _, (_, moments) = layer_moments(stage(checkpoint, options), ids)
    expected = merge_layer(plan_for(checkpoint, method="lowrank"), 1, moments).damage
    assert measured.damages["lowrank", 4] == (expected,) != assumed.damages["lowrank", 4]


def test_grouping_is_the_plans(checkpoint):
    contiguous, similar = (forecast(plan_for(checkpoint, grouping=kind)) for kind in ("contiguous", "similar"))
    assert contiguous.total("lowrank", 2) > similar.total("lowrank", 2)
    assert contiguous.total("mean", 2) != similar.total("mean", 2)
    assert contiguous.total("lowrank", 1) == similar.total("lowrank", 1)


def test_restrictions_are_said_whatever_the_method_of_the_plan(named, tmp_path):
    named("olmo-clip").model().float().save_pretrained(tmp_path)
    (restriction,) = forecast(plan_for(tmp_path), layers=[]).restrictions
    assert "clip_qkv" in restriction


def test_large_models_are_sampled_evenly(llama, tmp_path):
    llama.model(num_hidden_layers=12).save_pretrained(tmp_path)
    plan = plan_for(tmp_path)
    assert sampled_layers(plan) == list(range(12))
    object.__setattr__(plan.shape, "hidden_size", 4096)
    assert sampled_layers(plan) == [2, 6, 10]


def test_progress_counts_merges(checkpoint):
    seen = []
    forecast(plan_for(checkpoint), progress=lambda _, done, total: seen.append((done, total)))
    assert seen == [(done, 6) for done in range(6)]


def test_damaged_weights_are_refused(llama, tmp_path):
    model = llama.model().float()
    model.model.layers[1].self_attn.q_proj.weight.data[3, 3] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="q of model"):
        forecast(plan_for(tmp_path))
