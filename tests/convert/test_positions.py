"""Which components rotate together, and how fast: against transformers' own rotary functions."""

import importlib

import pytest
import torch

from gqa.convert.checkpoint import open_checkpoint
from gqa.convert.plan import ConvertOptions, plan_conversion
from gqa.convert.positions import Rotation
from gqa.convert.skeleton import empty_model


@pytest.fixture
def rotations_of(tmp_path):
    """Every layer's rotation, and the stock model without weights."""

    def make(variant, **config):
        variant.model(**config).float().save_pretrained(tmp_path)
        plan = plan_conversion(tmp_path, ConvertOptions(groups=1, method="lowrank"))
        cpu = torch.device("cpu")
        model = empty_model(
            open_checkpoint(tmp_path), dtype=torch.float32, device=cpu, num_kv_heads=plan.shape.num_kv_heads
        )
        return [freedom.rotation for freedom in plan.freedoms], model

    return make


def turned_by_hand(rotation, rows, position):
    """Rows of a head [n, head_dim] at a position."""
    first, second = rotation.order[: rotation.pairs], rotation.order[rotation.pairs : 2 * rotation.pairs]
    cos, sin = (rotation.angles * position).cos(), (rotation.angles * position).sin()
    turned = rows.clone()
    turned[:, first] = rows[:, first] * cos - rows[:, second] * sin
    turned[:, second] = rows[:, second] * cos + rows[:, first] * sin
    return turned


def test_every_layer_turns_as_in_the_stock_model(variant, rotations_of):
    rotations, model = rotations_of(variant)
    apply = importlib.import_module(type(model).__module__).apply_rotary_pos_emb
    head_dim = len(rotations[0].order)
    rows = torch.randn(5, head_dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for index, (rotation, layer) in enumerate(zip(rotations, model.model.layers, strict=True)):
        assert sorted(rotation.order.tolist()) == list(range(head_dim))
        assert rotation.context == model.config.max_position_embeddings
        attention = layer.self_attn
        if not getattr(attention, "use_rope", getattr(attention, "is_local_attention", True)):  # smollm3, afmoe
            assert rotation.pairs == 0
            continue
        kind = [model.config.layer_types[index]] if hasattr(model.model.rotary_emb, "layer_types") else []
        cos, sin = model.model.rotary_emb(rows[None], torch.tensor([[13]]), *kind)
        turning = 2 * rotation.pairs
        assert cos.shape[-1] == (turning // 2 if variant.name == "gpt_oss" else turning)
        expected = rows.clone()
        expected[:, :turning] = apply(rows[None, :, None, :turning], rows[None, :, None, :turning], cos, sin)[0][
            0, :, 0
        ]
        torch.testing.assert_close(turned_by_hand(rotation, rows, 13), expected, rtol=0, atol=1e-5)


def test_global_and_local_layers_turn_at_their_own_speeds(named, rotations_of):
    rope = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    }
    layer_types = ["sliding_attention", "full_attention"]
    rotations, _ = rotations_of(named("gemma3_text"), layer_types=layer_types, rope_parameters=rope)
    exponents = -torch.arange(4, dtype=torch.float64) / 4
    torch.testing.assert_close(rotations[0].angles, 100.0**exponents, rtol=1e-6, atol=0)
    torch.testing.assert_close(rotations[1].angles, 1e6**exponents / 8, rtol=1e-6, atol=0)


def test_layers_turn_at_the_speed_of_their_own_base(named, rotations_of):
    rotations, _ = rotations_of(named("granite_swa"), layer_rope_theta=[100.0, 1e6])
    exponents = -torch.arange(4, dtype=torch.float64) / 4
    torch.testing.assert_close(rotations[0].angles, 100.0**exponents, rtol=1e-6, atol=0)
    torch.testing.assert_close(rotations[1].angles, 1e6**exponents, rtol=1e-6, atol=0)


def test_layers_without_positions_stand_still(named, rotations_of):
    rotations, _ = rotations_of(named("smollm3"))
    assert [rotation.pairs for rotation in rotations] == [4, 0]


@pytest.mark.parametrize("name", ["afmoe", "beam", "cohere2", "exaone4", "flint", "granite_swa", "llama4_text"])
def test_which_layers_stand_still(named, rotations_of, name):
    rotations, _ = rotations_of(named(name))
    assert [rotation.pairs > 0 for rotation in rotations] == [True, False]


def test_global_layers_turn_where_all_are_global(named, rotations_of):
    rotations, _ = rotations_of(named("exaone4-global"))
    assert all(rotation.pairs for rotation in rotations)


def test_scaling_is_the_classes_own(llama, rotations_of):
    """Llama 3's: slow frequencies by the factor, fast ones not at all."""
    rope = {
        "rope_type": "llama3",
        "rope_theta": 50000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    rotations, _ = rotations_of(llama, rope_parameters=rope)
    plain = 50000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    assert rotations[0].angles[0].item() == pytest.approx(plain[0].item())
    assert rotations[0].angles[3].item() == pytest.approx(plain[3].item() / 8)


def test_interleaved_pairs_in_rotary_order(named, rotations_of):
    rotations, _ = rotations_of(named("cohere"))
    assert rotations[0].order.tolist() == [0, 2, 4, 6, 1, 3, 5, 7]


def test_partial_rotation_leaves_the_rest_behind(named, rotations_of):
    rotations, _ = rotations_of(named("stablelm"))  # a quarter of 8
    assert rotations[0].pairs == 1
    assert rotations[0].order.tolist() == list(range(8))


def test_nothing_rotates():
    rotation = Rotation.none(6)
    assert (rotation.pairs, rotation.order.tolist(), rotation.context) == (0, list(range(6)), 1)
