"""Classes that have either one KV head or as many as query heads, against transformers: GPT-BigCode and Falcon."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

from gqa.convert.calibration import CalibrationOptions
from gqa.convert.cli import app
from gqa.convert.errors import UserError
from gqa.convert.family import all_families
from gqa.convert.forecast import forecast
from gqa.convert.layerfit import FitOptions
from gqa.convert.plan import ConvertOptions, plan_conversion
from gqa.convert.provenance import read_stages
from gqa.convert.rewrite import convert
from gqa.convert.staged import StagedModel

HEADS, HEAD_DIM = 4, 12
IDS = torch.randint(3, 96, (3, 12), generator=torch.Generator().manual_seed(7))
TOKENS = {"vocab_size": 320, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

_FALCON = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": HEADS, "ffn_hidden_size": 40}
SHAPES = {
    "gpt_bigcode": ("gpt_bigcode", {"n_embd": 48, "n_layer": 2, "n_head": HEADS, "n_inner": 40, "n_positions": 64}),
    "falcon-rw": ("falcon", {**_FALCON, "alibi": True, "parallel_attn": False, "bias": True}),
    "falcon-parallel": ("falcon", {**_FALCON, "alibi": False, "parallel_attn": True, "bias": False}),
}


@pytest.fixture(params=SHAPES)
def shape(request):
    return SHAPES[request.param]


@torch.no_grad()
def build(shape, *, multi_query, seed=0, dtype=torch.float64):
    """The class with one KV head or as many as query heads, every parameter random."""
    model_type, extra = shape
    config = AutoConfig.for_model(model_type, **extra, **TOKENS, multi_query=multi_query)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + 0.7 * (parameter.ndim == 1))
    return model.eval()


def spread(small):
    """The state of the multi-head model whose heads all have the one K and V of `small`."""
    large = {}
    for name, tensor in small.state_dict().items():
        large[name] = tensor
        if "c_attn" in name or "query_key_value" in name:
            queries, key, value = tensor.unflatten(0, (HEADS + 2, HEAD_DIM)).split([HEADS, 1, 1])
            every = [queries, key.expand_as(queries), value.expand_as(queries)]
            large[name] = torch.stack(every, dim=1).flatten(0, 2)  # q, k, v of one head after another
    return large


@pytest.fixture
def tied(shape, tmp_path):
    """A multi-query model, and on disk the multi-head model that computes the same."""
    small, large = build(shape, multi_query=True), build(shape, multi_query=False)
    large.load_state_dict(spread(small))
    large.save_pretrained(tmp_path / "tied")
    return small, large, tmp_path / "tied"


@torch.no_grad()
def logits(model, **inputs):
    return model(input_ids=IDS, **inputs).logits


@pytest.mark.parametrize("method", ["mean", "first"])
def test_tied_heads_merge_into_the_model_that_they_came_from(tied, method, tmp_path, load):
    small, large, source = tied
    torch.testing.assert_close(logits(large), logits(small), rtol=0, atol=1e-12)  # the oracle is right
    convert(source, tmp_path / "out", ConvertOptions(groups=1, method=method))
    model = load(tmp_path / "out")
    assert model.config.multi_query
    expected = small.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("method", ["aligned", "lowrank"])
def test_tied_heads_merge_without_loss_into_others_that_compute_the_same(tied, method, tmp_path, load):
    small, _, source = tied
    convert(source, tmp_path / "out", ConvertOptions(groups=1, method=method))
    torch.testing.assert_close(logits(load(tmp_path / "out")), logits(small), rtol=0, atol=1e-5)


def test_padding_and_the_cache(tied, tmp_path, load):
    small, _, source = tied
    convert(source, tmp_path / "out", ConvertOptions(groups=1))
    mask = torch.ones_like(IDS)
    mask[0, :5] = 0
    models = (small, load(tmp_path / "out"))
    sequences = [
        model.generate(IDS, attention_mask=mask, max_new_tokens=6, do_sample=False, eos_token_id=None)
        for model in models
    ]
    assert torch.equal(*sequences)
    cache = models[1](input_ids=IDS, use_cache=True).past_key_values
    assert {layer.keys.shape for layer in cache.layers} == {(3, 1, 12, HEAD_DIM)}


def test_one_layer_at_a_time(shape, tmp_path, load):
    build(shape, multi_query=False).save_pretrained(tmp_path)
    staged = StagedModel(tmp_path, dtype=torch.float64, device=torch.device("cpu"))
    with torch.no_grad():
        hidden = staged.embed(IDS)
        for index in range(staged.num_layers):
            with staged.layer(index) as run:
                hidden = run(hidden)
        torch.testing.assert_close(staged.head(hidden), logits(load(tmp_path)), rtol=0, atol=1e-12)


def test_fitting(shape, tmp_path, calibration_text, make_tokenizer, load):
    build(shape, multi_query=False, dtype=torch.float32).save_pretrained(tmp_path / "ckpt")
    make_tokenizer().save_pretrained(tmp_path / "ckpt")
    calibration = CalibrationOptions(data=str(calibration_text), tokens=256, held_out_tokens=128, sequence_length=32)
    options = ConvertOptions(groups=1, method="lowrank", calibration=calibration, fit=FitOptions(steps=20))
    convert(tmp_path / "ckpt", tmp_path / "out", options)
    fits = [layer["fit"] for layer in read_stages(tmp_path / "out")[-1]["layers"]]
    assert all(fit["held_out_after"] < fit["held_out_before"] for fit in fits)
    assert logits(load(tmp_path / "out")).isfinite().all()


def test_nothing_between_one_head_and_all(shape, tmp_path):
    build(shape, multi_query=False).save_pretrained(tmp_path / "many")
    build(shape, multi_query=True).save_pretrained(tmp_path / "one")
    with pytest.raises(UserError, match=r"has either one KV head or as many as query heads; choose one of 1$"):
        plan_conversion(tmp_path / "many", ConvertOptions(groups=2))
    with pytest.raises(UserError, match="already has 1 KV heads, so there is nothing to do; it can't be reduced"):
        plan_conversion(tmp_path / "one", ConvertOptions(groups=1))


def test_heads_stay_where_positions_bias_each_in_its_own_way(tmp_path):
    build(SHAPES["falcon-rw"], multi_query=False).save_pretrained(tmp_path / "ckpt")
    plan = plan_conversion(tmp_path / "ckpt", ConvertOptions(groups=1, method="lowrank"))
    assert not any(freedom.heads_move for freedom in plan.freedoms)
    assert all(freedom.rotation.pairs == 0 for freedom in plan.freedoms)
    staying = "positions bias every head in its own way, so heads stay where they are"
    assert staying in plan.restrictions
    assert plan.grouping == plan.to_json()["grouping"] == "contiguous"
    by_mean = plan_conversion(tmp_path / "ckpt", ConvertOptions(groups=1))
    assert staying in forecast(by_mean, layers=[]).restrictions
    result = CliRunner().invoke(app, ["-g", "1", "--method", "lowrank", str(tmp_path / "ckpt")])
    assert f"Restricted: {staying}." in result.stdout
    assert read_stages(tmp_path / "ckpt-mqa")[-1]["grouping"] == "contiguous"


def test_falcons_new_architecture_is_refused(tmp_path):
    config = AutoConfig.for_model("falcon", **_FALCON, **TOKENS, new_decoder_architecture=True, num_kv_heads=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="falcon with new_decoder_architecture can't be converted: its class caches"):
        plan_conversion(tmp_path, ConvertOptions(groups=1))


def test_every_such_class_is_tested_here():
    assert {model_type for model_type, _ in SHAPES.values()} == {
        name for name, family in all_families().items() if family.multi_query_key
    }
