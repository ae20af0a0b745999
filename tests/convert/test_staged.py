"""A model run layer by layer against the same model run whole by transformers, for every family."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from gqa.convert.errors import UserError
from gqa.convert.layout import layer_prefix
from gqa.convert.plan import ConvertOptions
from gqa.convert.rewrite import convert
from gqa.convert.staged import StagedModel

IDS = torch.randint(3, 96, (3, 12), generator=torch.Generator().manual_seed(7))


def staged(path: Path, dtype: torch.dtype = torch.float64, groups: int | None = None) -> StagedModel:
    return StagedModel(path, dtype=dtype, device=torch.device("cpu"), groups=groups)


@torch.no_grad()
def last_hidden(model: StagedModel, ids: torch.Tensor = IDS) -> torch.Tensor:
    hidden = model.embed(ids)
    for index in range(model.num_layers):
        with model.layer(index) as run:
            hidden = run(hidden)
    return hidden


def staged_logits(model: StagedModel, ids: torch.Tensor = IDS) -> torch.Tensor:
    return model.head(last_hidden(model, ids))


@pytest.fixture
def saved(variant, tmp_path: Path) -> Path:
    variant.model().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def small(llama, tmp_path: Path) -> Path:
    llama.model().save_pretrained(tmp_path / "small")
    return tmp_path / "small"


def change_tensors(path: Path, change) -> None:
    tensors = load_file(path / "model.safetensors")
    save_file(change(tensors), path / "model.safetensors", {"format": "pt"})


def storage_bytes(model: StagedModel) -> int:
    return sum(tensor.nbytes for tensor in model._model.state_dict().values() if tensor.device.type != "meta")


def test_logits_are_those_of_the_stock_model_to_the_last_bit(saved, load):
    with torch.no_grad():
        expected = load(saved)(input_ids=IDS).logits
    assert torch.equal(staged_logits(staged(saved)), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_cast_as_transformers_casts_them(saved, dtype):
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(saved, dtype=dtype)(input_ids=IDS).logits
    logits = staged_logits(staged(saved, dtype))
    assert logits.dtype == dtype
    torch.testing.assert_close(logits, expected, rtol=0, atol=0)


def test_a_converted_layer_runs_from_the_tensors_that_replace_the_old(saved, tmp_path, load, state_of):
    convert(saved, tmp_path / "converted", ConvertOptions(groups=2))
    with torch.no_grad():
        expected = load(tmp_path / "converted")(input_ids=IDS).logits
    assert torch.equal(staged_logits(staged(tmp_path / "converted")), expected)
    converted, model = state_of(tmp_path / "converted"), staged(saved, groups=2)
    hidden = model.embed(IDS)
    for index in range(model.num_layers):
        prefix = layer_prefix(model.family, set(converted), index)
        tensors = {name.removeprefix(prefix): t for name, t in converted.items() if name.startswith(prefix)}
        with model.layer(index, replace=tensors) as run, torch.no_grad():
            hidden = run(hidden)
    assert torch.equal(model.head(hidden), expected)


def test_fewer_groups_without_their_tensors_are_an_error(small):
    with (
        pytest.raises(UserError, match=r"wrong shape: model.layers.0.self_attn.k_proj.weight, .*v_proj.weight;"),
        staged(small, groups=2).layer(0),
    ):
        pass


def test_a_layer_has_storage_only_while_it_is_held(small, llama):
    model, whole = staged(small), llama.model()
    one = sum(parameter.nbytes for parameter in whole.model.layers[0].parameters())
    assert storage_bytes(model) == 0
    for index in range(2):
        with model.layer(index) as run:
            assert storage_bytes(model) == one == sum(parameter.nbytes for parameter in run.module.parameters())
        assert storage_bytes(model) == 0
    model.head(model.embed(IDS))
    assert storage_bytes(model) == 0


def test_storage_is_freed_when_the_work_fails(small):
    model = staged(small)
    with pytest.raises(ZeroDivisionError), model.layer(0):
        raise ZeroDivisionError
    assert storage_bytes(model) == 0


def test_nll_is_the_cross_entropy_of_the_stock_model(saved, load, monkeypatch):
    monkeypatch.setattr("gqa.convert.staged._LOGITS_AT_ONCE", 96 * 5)  # five tokens at a time
    with torch.no_grad():
        logits = load(saved)(input_ids=IDS).logits
    expected = cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten(), reduction="none").view(3, 11)
    model = staged(saved)
    torch.testing.assert_close(model.nll(last_hidden(model), IDS), expected, rtol=0, atol=1e-12)


def test_sequences_of_several_lengths(named, tmp_path, load):
    named("gemma3_text").model().save_pretrained(tmp_path)
    model, stock = staged(tmp_path), load(tmp_path)
    for ids in (IDS, IDS[:1, :3], IDS.flatten()[None]):
        with torch.no_grad():
            expected = stock(input_ids=ids).logits
        torch.testing.assert_close(staged_logits(model, ids), expected, rtol=0, atol=1e-12)


def test_gradients_reach_a_layers_own_weights(small, llama):
    model, stock = staged(small), llama.model()
    hidden = model.embed(IDS)
    with model.layer(0) as run:
        assert not any(parameter.requires_grad for parameter in run.module.parameters())
        weight = run.projection.get_parameter("weight").requires_grad_(True)
        run(hidden).square().sum().backward()
        gradient = weight.grad
    output = stock(input_ids=IDS, output_hidden_states=True).hidden_states[1]
    output.square().sum().backward()
    torch.testing.assert_close(gradient, stock.model.layers[0].self_attn.q_proj.weight.grad)


def test_what_replaces_is_copied(small, state_of):
    name = "q_proj.weight"
    given = state_of(small)[f"model.layers.0.self_attn.{name}"]
    before = given.clone()
    with staged(small).layer(0, replace={name: given}) as run:
        run.projection.get_parameter("weight").zero_()
    assert torch.equal(given, before)


@pytest.mark.parametrize("name", ["llama-tied", "mixtral", "olmoe"])
def test_every_source_format(name, named, tmp_path, load, state_of):
    model = named(name).model()
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    for kind in ("pickled", "bare"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "config.json").write_text((tmp_path / "one" / "config.json").read_text())
    torch.save(state_of(tmp_path / "one"), tmp_path / "pickled" / "pytorch_model.bin")
    bare = {name.removeprefix("model."): tensor for name, tensor in state_of(tmp_path / "one").items()}
    save_file(bare, tmp_path / "bare" / "model.safetensors", {"format": "pt"})
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    with torch.no_grad():
        expected = load(tmp_path / "one")(input_ids=IDS).logits
    for kind in ("one", "shards", "pickled", "bare"):
        assert torch.equal(staged_logits(staged(tmp_path / kind)), expected), kind


def test_buffers_that_old_checkpoints_hold_are_passed_over(small):
    expected = staged_logits(staged(small))
    change_tensors(small, lambda t: t | {"model.layers.1.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    assert torch.equal(staged_logits(staged(small)), expected)


def test_a_missing_tensor_is_an_error(small):
    gone = "model.layers.1.mlp.up_proj.weight"
    change_tensors(small, lambda tensors: {name: tensor for name, tensor in tensors.items() if name != gone})
    model = staged(small)
    with model.layer(0):
        pass
    with pytest.raises(UserError, match=f"lacks tensors: {gone};"), model.layer(1):
        pass


def test_the_head_is_read_only_where_it_is_used(small):
    change_tensors(small, lambda tensors: {name: t for name, t in tensors.items() if name != "lm_head.weight"})
    hidden = last_hidden(model := staged(small))
    with pytest.raises(UserError, match=r"lacks tensors: lm_head\.weight;"):
        model.head(hidden)


@pytest.mark.parametrize("name", ["model.layers.0.mlp.odd.weight", "odd.weight"])
def test_a_tensor_too_many_is_an_error(small, name):
    change_tensors(small, lambda tensors: tensors | {name: torch.ones(2)})
    with pytest.raises(UserError, match=f"its model class doesn't know: {name};"):
        staged_logits(staged(small))


def test_a_missing_expert_is_an_error(named, tmp_path):
    named("mixtral").model().save_pretrained(tmp_path)
    change_tensors(
        tmp_path, lambda tensors: {n: t for n, t in tensors.items() if "layers.0" not in n or ".3.w1" not in n}
    )
    with pytest.raises(UserError, match=r"has tensors of the wrong shape: model\.layers\.0\.\S*gate_up_proj;"):
        staged_logits(staged(tmp_path))


def test_a_config_of_another_width_is_an_error(small):
    path = small / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"intermediate_size": 30}))
    with pytest.raises(UserError, match=r"wrong shape: model.layers.0.mlp.down_proj.weight, \S*gate_proj.weight, "):
        staged_logits(staged(small))


def test_a_family_that_is_not_supported_is_an_error(small):
    path = small / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "biogpt"}))
    with pytest.raises(UserError, match="biogpt can't be converted"):
        staged(small)
