"""Configurations and options that can't be converted: one sentence, exit code 2, nothing left behind or changed."""

import pytest
from edits import edit_config, edit_tensors
from typer.testing import CliRunner

from gqa.convert.cli import app

K_PROJ = "model.layers.1.self_attn.k_proj.weight"


def test_no_such_directory(refuse, tmp_path):
    refuse("-g", 2, tmp_path / "nothing", says=f"no such directory: {tmp_path / 'nothing'}")


def test_a_file(refuse, checkpoint):
    refuse("-g", 2, checkpoint / "model.safetensors", says="is a file; name the checkpoint's directory")


def test_hub_id_that_can_not_be_had(refuse, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refuse("-g", 2, "nobody/nothing-at-all", says="nobody/nothing-at-all is neither a directory here nor to be had")


def test_no_config(refuse, checkpoint):
    (checkpoint / "config.json").unlink()
    refuse("-g", 2, checkpoint, says="has no config.json")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not JSON"),
        ("[]", "holds a list"),
        ("\xff", "is not JSON"),
        ("{}", "no model_type"),
        pytest.param("[" * 200_000, "is not JSON (maximum recursion depth exceeded", id="deep"),
    ],
)
def test_config_of_another_kind(refuse, checkpoint, text, says):
    (checkpoint / "config.json").write_text(text, encoding="latin-1")
    refuse("-g", 2, checkpoint, says=says)


def test_unknown_model_type(refuse, checkpoint):
    edit_config(checkpoint, model_type="lama")
    refuse("-g", 2, checkpoint, says="unsupported model type 'lama' (did you mean 'llama'?); gqa-convert --list-famil")


def test_layers_of_different_query_heads(refuse, checkpoint):
    edit_config(checkpoint, per_layer_config={"1": {"num_attention_heads": 4}})
    refuse("-g", 2, checkpoint, says="layers differ in their heads (per_layer_config in config.json); none is merged")
    edit_config(checkpoint, per_layer_config=None, head_dim=[4, 8])
    refuse("-g", 2, checkpoint, says="layers differ in their heads (head_dim in config.json); none is merged")


@pytest.mark.parametrize("key", ["num_key_value_heads", "num_key_value_heads_per_layer"])
def test_a_list_of_kv_heads_that_the_tensors_do_not_have(refuse, checkpoint, key):
    edit_config(checkpoint, num_key_value_heads=None)
    edit_config(checkpoint, **{key: [4, 8]})
    refuse("-g", 2, checkpoint, says="k_proj.weight has shape [64, 48], but config.json implies [32, 48]")


def test_layers_whose_tensors_differ_in_their_heads(refuse, checkpoint):
    def halved(tensors):
        tensors[K_PROJ] = tensors[K_PROJ][:32].clone()

    edit_tensors(checkpoint, halved)
    refuse("-g", 2, checkpoint, says=f"tensor {K_PROJ} has shape [32, 48], but config.json implies [64, 48]")


def test_refused_model_type(refuse, checkpoint):
    edit_config(checkpoint, model_type="deepseek_v3")
    refuse("-g", 2, checkpoint, says="deepseek_v3 can't be converted: its attention already caches one small latent")


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("hidden_size", None, "config.json has no hidden_size"),
        ("num_attention_heads", "8", "num_attention_heads is '8', not a positive integer"),
        ("num_hidden_layers", 0, "num_hidden_layers is 0, not a positive integer"),
        ("num_key_value_heads", 3, "8 query heads do not divide among 3 KV heads"),
        ("num_hidden_layers", 1, "tensors model.layers.1.self_attn.*, but config.json says num_hidden_layers is 1"),
        ("num_hidden_layers", 3, "tensor model.layers.2.self_attn.k_proj.weight is missing"),
        ("num_key_value_heads", 4, "has shape [64, 48], but config.json implies [32, 48]"),
        ("quantization_config", {"quant_method": "gptq"}, "is quantised (quantization_config in config.json)"),
        (
            "auto_map",
            {"AutoModelForCausalLM": "x.Y"},
            "brings its own code (auto_map in config.json), which is never run",
        ),
    ],
)
def test_config_that_does_not_fit(refuse, checkpoint, key, value, says):
    edit_config(checkpoint, **{key: value})
    refuse("-g", 2, checkpoint, says=says)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("hidden_act", "x", "'x'"),
        ("intermediate_size", -1, "negative dimension -1"),
        ("pad_token_id", 9999, "Padding_idx must be within num_embeddings"),
    ],
)
def test_config_that_no_class_can_be_made_of(refuse, checkpoint, key, value, says):
    edit_config(checkpoint, **{key: value})
    refuse("-g", 2, "--method", "lowrank", checkpoint, says=f"no model can be made of the config.json of {checkpoint}")
    refuse("-g", 2, "--method", "lowrank", checkpoint, says=says)


def test_missing_optional_tensor_in_one_layer(refuse, named, tmp_path):
    named("llama-bias").model().save_pretrained(tmp_path / "ckpt")
    edit_tensors(tmp_path / "ckpt", lambda tensors: tensors.pop("model.layers.0.self_attn.v_proj.bias"))
    refuse("-g", 2, tmp_path / "ckpt", says="tensor model.layers.0.self_attn.v_proj.bias is missing")


@pytest.mark.parametrize(
    ("groups", "says"),
    [
        (3, "8 KV heads do not divide into 3 groups; choose one of 1, 2, 4"),
        (16, "groups is 16, but the checkpoint has only 8 KV heads; choose one of 1, 2, 4"),
        (8, "already has 8 KV heads, so there is nothing to do; choose one of 1, 2, 4"),
        (0, "groups is 0; it must be at least 1"),
    ],
)
def test_groups_that_do_not_fit(refuse, checkpoint, groups, says):
    refuse("-g", groups, checkpoint, says=says)


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--method", "meen", "unknown method 'meen' (did you mean 'mean'?); known: aligned, first, "),
        ("--dtype", "bfloat", "unknown dtype 'bfloat' (did you mean 'bfloat16'?)"),
        ("--max-shard-size", "huge", "max_shard_size is 'huge'; write a size such as 5GB or 500MB"),
    ],
)
def test_options_of_no_meaning(refuse, checkpoint, option, value, says):
    refuse("-g", 2, checkpoint, option, value, says=says)


def test_missing_and_unknown_options(checkpoint):
    for arguments, says in ([], "Missing argument"), ([str(checkpoint)], "--groups"), (["--grups", "2"], "--groups"):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 2
        assert says in result.stderr


def test_output_exists(refuse, checkpoint, tmp_path):
    (tmp_path / "out").mkdir()
    refuse("-g", 2, checkpoint, "-o", tmp_path / "out", says="exists; choose another with --output, or replace it")


def test_output_is_a_file(refuse, checkpoint, tmp_path):
    (tmp_path / "out").write_text("precious")
    refuse("-g", 2, checkpoint, "-o", tmp_path / "out", "--overwrite", says="is not a directory; --overwrite replaces")


@pytest.mark.parametrize("place", [".", "inside", ".."])
def test_output_is_or_touches_the_input(refuse, checkpoint, place):
    refuse("-g", 2, checkpoint, "-o", checkpoint / place, "--overwrite", says="is the input")
