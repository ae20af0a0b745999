"""Latents for engines: stock deepseek_v3, whose norm stays and whose projections have no biases."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from edits import edit_tensors
from torch import Tensor
from typer.testing import CliRunner

from gqa.convert.calibration import CalibrationOptions
from gqa.convert.cli import app
from gqa.convert.latent.normed import spare_channels, under_norm
from gqa.convert.latent.plan import LatentOptions
from gqa.convert.latent.rewrite import convert_latent
from gqa.convert.latent.target import side_by_side
from gqa.convert.latent.weights import LatentWeights
from gqa.convert.layerfit import FitOptions
from gqa.convert.moments import Moments
from gqa.convert.plan import ConvertOptions
from gqa.convert.provenance import read_stages
from gqa.eval.cache import cache_size

HIDDEN, HEADS, STILL, ROPE = 24, 3, 8, 4


def calibrated(text: Path, **more: object) -> ConvertOptions:
    calibration = CalibrationOptions(data=str(text), tokens=384, held_out_tokens=128, sequence_length=16, device="cpu")
    return replace(ConvertOptions(groups=1, method="lowrank", calibration=calibration), **more)


@pytest.fixture(params=["llama", "helium", "ernie4_5"])  # rotary components in halves, and side by side
def one_key(request, make_checkpoint) -> Path:
    """With two KV heads of the same key, so that one rotary key is enough."""
    checkpoint = make_checkpoint(model_type=request.param, num_attention_heads=4, num_key_value_heads=2, head_dim=8)
    edit_tensors(
        checkpoint, lambda state: [state[name][8:].copy_(state[name][:8]) for name in state if "k_proj" in name]
    )
    return checkpoint


@torch.no_grad()
def test_with_as_many_channels_as_the_hidden_state_has_nothing_is_lost(one_key, calibration_text, tmp_path, load):
    """Then the norm of the latent is that of the hidden state, which is the same for every token."""
    sizes = LatentOptions(kv_rank=32, rope_dim=8, model_type="deepseek_v3")
    convert_latent(one_key, tmp_path / "out", sizes, calibrated(calibration_text))
    model, converted = load(one_key), load(tmp_path / "out")
    assert converted.config.model_type == "deepseek_v3"
    ids = torch.randint(0, 300, (2, 60), generator=torch.Generator().manual_seed(5))
    wanted, found = (one(ids).logits for one in (model, converted))
    assert wanted.abs().max() > 1
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()
    cache = converted(ids, use_cache=True).past_key_values
    assert [tuple(layer.keys.shape[1:]) for layer in cache.layers] == [(1, 60, 32)] * 2
    assert [tuple(layer.values.shape[1:]) for layer in cache.layers] == [(1, 60, 8)] * 2
    assert cache_size(converted, converted.config, 12).bytes_per_token == 4 * 2 * (32 + 8)


def random_layer(rank: int, seed: int = 0) -> LatentWeights:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return LatentWeights(
        q_still=draw(HEADS, STILL, HIDDEN),
        q_rope=draw(HEADS, ROPE, HIDDEN),
        rope_key=draw(1, ROPE, HIDDEN + 1),
        latent=draw(1, rank, HIDDEN + 1),
        key_up=draw(HEADS, STILL, rank + 1),
        value_up=draw(HEADS, STILL, rank + 1),
        o=draw(HEADS, HIDDEN, STILL),
    )


def hidden_states(norm: Tensor, tokens: int = 400) -> Tensor:
    """Uneven ones, behind an RMS norm of this weight. [tokens, hidden]."""
    generator = torch.Generator().manual_seed(1)
    uneven = torch.linspace(4, 0.2, HIDDEN).double().diag()[torch.randperm(HIDDEN, generator=generator)]
    rows = torch.randn(tokens, HIDDEN, generator=generator, dtype=torch.float64) @ uneven + 1
    return rows / rows.square().mean(1, keepdim=True).sqrt() * norm


def moments_of(states: Tensor) -> Moments:
    ones = torch.cat([states, torch.ones(len(states), 1, dtype=torch.float64)], dim=1)
    return Moments(xx=ones.T @ ones / len(states), tokens=len(states))


@pytest.mark.parametrize("spare", [0, 2, 6])
def test_values_are_as_before_but_for_how_far_the_latents_length_varies(spare: int):
    rank = 10
    norm = torch.linspace(0.2, 3, HIDDEN).double()
    before, states = random_layer(rank), hidden_states(norm)
    after = under_norm(before, norm, moments_of(states), rank + spare)
    assert after.latent.shape == (1, rank + spare, HIDDEN)
    latents = states @ after.latent[0].T
    lengths = latents.square().mean(1).sqrt()
    assert lengths.square().mean() == pytest.approx(1)
    for name in ("key_up", "value_up"):
        wanted = getattr(before, name)[..., :-1] @ before.latent[0, :, :-1] @ states.T
        found = getattr(after, name) @ (latents / lengths[:, None]).T
        torch.testing.assert_close(found * lengths, wanted)
    rows = after.latent[0] * norm
    torch.testing.assert_close(rows @ rows.T / rows[0].square().sum(), torch.eye(rank + spare, dtype=torch.float64))


def test_spare_channels_steady_the_length():
    norm = torch.ones(HIDDEN).double()
    states = hidden_states(norm)
    varies = []
    for rank in (8, 10, 16, 23, 24):
        latents = states @ under_norm(random_layer(8), norm, moments_of(states), rank).latent[0].T
        lengths = latents.square().mean(1).sqrt()
        varies.append(float(lengths.std() / lengths.mean()))
    assert varies == sorted(varies, reverse=True)
    assert varies[0] > 0.1
    assert varies[-1] < 1e-12
    assert [spare_channels(rank) for rank in (8, 32, 96, 512)] == [0, 2, 6, 8]


def test_a_weight_of_zero_in_the_norm_and_rows_that_are_none_do_no_harm():
    norm = torch.ones(HIDDEN).double()
    norm[3] = 0
    before, states = random_layer(10), hidden_states(norm)
    before.latent[0, 4:] = 0
    after = under_norm(before, norm, moments_of(states), 12)
    assert after.latent.isfinite().all()
    latents = states @ after.latent[0].T
    found = after.value_up @ latents.T
    torch.testing.assert_close(found, before.value_up[..., :-1] @ before.latent[0, :, :-1] @ states.T)


def test_pairs_lie_side_by_side():
    rows = torch.arange(6.0)[None, :, None]
    assert side_by_side(rows).flatten().tolist() == [0, 3, 1, 4, 2, 5]


@pytest.fixture
def small(make_checkpoint) -> Path:
    return make_checkpoint(num_attention_heads=4, num_key_value_heads=4, head_dim=8)


def test_config_json_is_what_engines_read_and_the_fit_helps(small, calibration_text, tmp_path, state_of):
    options = calibrated(calibration_text, fit=FitOptions(steps=12, step_tokens=96))
    convert_latent(small, tmp_path / "out", LatentOptions(kv_budget=0.5, model_type="deepseek_v3"), options)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["DeepseekV3ForCausalLM"]
    assert (config["kv_lora_rank"], config["qk_rope_head_dim"], config["q_lora_rank"]) == (24, 8, None)
    assert (config["first_k_dense_replace"], config["num_nextn_predict_layers"]) == (2, 0)
    assert (config["attention_bias"], config["rope_interleave"]) == (False, True)
    assert not any(name.endswith(".bias") for name in state_of(tmp_path / "out"))
    (stage,) = read_stages(tmp_path / "out")
    assert stage["model_type"] == "deepseek_v3"
    for layer in stage["layers"]:
        assert layer["fit"]["held_out_after"] < layer["fit"]["held_out_before"]


@torch.no_grad()
def test_embeddings_that_are_the_outputs_weights_too_are_written_twice(
    make_checkpoint, calibration_text, tmp_path, load
):
    """Not all engines know that they are the same."""
    tied = make_checkpoint(num_attention_heads=4, num_key_value_heads=4, head_dim=8, tie_word_embeddings=True)
    sizes = LatentOptions(kv_rank=16, rope_dim=8, model_type="deepseek_v3")
    plan = convert_latent(tied, tmp_path / "out", sizes, calibrated(calibration_text))
    model = load(tmp_path / "out")
    assert not model.config.tie_word_embeddings
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    assert plan.total_bytes == sum(tensor.nbytes for tensor in model.state_dict().values())


@pytest.mark.parametrize("rope_dim", [8, 4])
def test_a_narrower_key_turns_as_every_other_pair_of_a_head_does(rope_dim, small, calibration_text, tmp_path, load):
    sizes = LatentOptions(kv_rank=16, rope_dim=rope_dim, model_type="deepseek_v3")
    plan = convert_latent(small, tmp_path / "out", sizes, calibrated(calibration_text))
    every = 8 // rope_dim
    assert plan.factors.pairs == tuple(range(0, 4, every))
    wanted = load(small).model.rotary_emb.inv_freq[::every]
    torch.testing.assert_close(load(tmp_path / "out").model.rotary_emb.inv_freq, wanted)


@pytest.mark.parametrize(("share", "division"), [(0.5, (24, 8)), (0.25, (8, 8)), (0.125, (4, 4))])
def test_a_share_leaves_the_key_as_wide_as_a_head_while_that_is_at_most_half(share, division):
    assert LatentOptions(kv_budget=share, model_type="deepseek_v3").divisions(64, 8) == [division]


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 64}
ENGINES = ["--to", "mla", "--model-type", "deepseek_v3"]


@pytest.mark.parametrize(
    ("config", "arguments", "says"),
    [
        ({}, [*ENGINES, "--kv-rank", "8", "--no-text"], "a deepseek_v3 needs --calibration"),
        ({}, [*ENGINES, "--kv-rank", "34"], "kv_rank is 34, more than the 32 of hidden_size"),
        ({}, [*ENGINES, "--kv-rank", "8", "--rope-dim", "6"], "take 8, or half as many"),
        ({}, [*ENGINES[:-1], "deepseek_v2", "--kv-rank", "8"], "unknown model_type 'deepseek_v2' of a latent (did you"),
        ({}, ["--model-type", "deepseek_v3", "-g", "2"], "--model-type are for --to mla"),
        ({"attention_bias": True}, [*ENGINES, "--kv-rank", "8"], "its projections have biases"),
        ({"rope_parameters": YARN}, [*ENGINES, "--kv-rank", "8"], "rotary settings of type yarn"),
        ({"model_type": "phi"}, [*ENGINES, "--kv-rank", "8"], "it has other norms"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_can_not_be_had_is_one_sentence(config, arguments, says, make_checkpoint, calibration_text, tmp_path):
    checkpoint = make_checkpoint(**({"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8} | config))
    text = [] if "--no-text" in arguments else ["--calibration", str(calibration_text)]
    given = [word for word in arguments if word != "--no-text"]
    result = CliRunner().invoke(app, [*given, *text, str(checkpoint), "-o", str(tmp_path / "out")])
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1
    assert says in result.stderr
    assert not (tmp_path / "out").exists()
