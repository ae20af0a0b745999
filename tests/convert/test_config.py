"""The configuration that is written: readable by transformers 5, by 4.x and by readers that know only the old keys."""

import json

import pytest
from transformers import AutoConfig

from gqa.convert.config import converted_config
from gqa.convert.plan import ConvertOptions
from gqa.convert.rewrite import convert

TWO = {"num_key_value_heads": 2}

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def test_nothing_but_the_heads_and_the_old_spellings_changes(checkpoint, tmp_path):
    before = json.loads((checkpoint / "config.json").read_text())
    convert(checkpoint, tmp_path / "out", ConvertOptions(groups=2))
    after = json.loads((tmp_path / "out" / "config.json").read_text())
    added = {"rope_theta": 50000.0, "torch_dtype": "float32"}
    assert after == before | {"num_key_value_heads": 2} | added
    assert list(after)[: len(before)] == list(before)


def test_old_configurations_stay_as_they_are():
    config = {"rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 2.0}, "torch_dtype": "float16"}
    assert converted_config(config, TWO, None) == config | TWO | {"dtype": "float16"}


def test_no_dtype_is_invented():
    assert converted_config({}, TWO, None) == TWO


def test_scaled_rope_is_repeated_in_the_old_spelling():
    config = {"rope_parameters": {"rope_theta": 5e5, **LLAMA3}}
    result = converted_config(config, TWO, None)
    assert result["rope_theta"] == 5e5
    assert result["rope_scaling"] == LLAMA3


def test_partial_rotary_is_repeated():
    config = {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 0.4}}
    result = converted_config(config, TWO, None)
    assert (result["rope_theta"], result["partial_rotary_factor"]) == (1e4, 0.4)
    assert "rope_scaling" not in result


def test_local_and_global_rotary_bases_are_repeated():
    config = {
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        }
    }
    result = converted_config(config, TWO, None)
    assert (result["rope_theta"], result["rope_local_base_freq"]) == (1e6, 1e4)
    assert result["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}


ROPES = {
    "theta": {"rope_type": "default", "rope_theta": 54321.0},
    "llama3": {"rope_theta": 54321.0, **LLAMA3},
    "yarn": {"rope_theta": 54321.0, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
}


@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES.keys())
def test_transformers_reads_the_same_rope_before_and_after(llama, tmp_path, rope, load, logits_of):
    model = llama.model(rope_parameters=rope)
    model.save_pretrained(tmp_path / "ckpt")
    convert(tmp_path / "ckpt", tmp_path / "out", ConvertOptions(groups=4))
    before, after = (AutoConfig.from_pretrained(tmp_path / name) for name in ("ckpt", "out"))
    assert after.rope_parameters == before.rope_parameters
    # and a reader of the old keys alone finds the same
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    old = {key: value for key, value in written.items() if key != "rope_parameters"}
    (tmp_path / "out" / "config.json").write_text(json.dumps(old))
    assert AutoConfig.from_pretrained(tmp_path / "out").rope_parameters == before.rope_parameters


def test_every_family_reads_the_same_rope_before_and_after(variant, tmp_path):
    config = variant.config()
    config.save_pretrained(tmp_path / "before")
    written = json.loads((tmp_path / "before" / "config.json").read_text())
    (tmp_path / "after").mkdir()
    (tmp_path / "after" / "config.json").write_text(json.dumps(converted_config(written, TWO, None)))
    after = AutoConfig.from_pretrained(tmp_path / "after")
    assert after.rope_parameters == AutoConfig.from_pretrained(tmp_path / "before").rope_parameters
    assert after.num_key_value_heads == 2
