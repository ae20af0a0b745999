"""Loading whole checkpoints, and refusing every kind of incomplete one."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gqa.convert.errors import UserError
from gqa.eval.model import load_config, load_model, load_tokenizer

KEY = "model.layers.1.self_attn.k_proj.weight"


@pytest.fixture
def broken(make_checkpoint) -> Path:
    """A checkpoint that the test may break."""
    return make_checkpoint()


def change_tensors(checkpoint: Path, change) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    change(tensors)
    save_file(tensors, checkpoint / "model.safetensors", {"format": "pt"})


def change_config(checkpoint: Path, **values) -> None:
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(("asked", "expected"), [("auto", torch.bfloat16), ("float32", torch.float32)])
def test_the_precision_is_the_one_asked_for(make_checkpoint, asked, expected):
    checkpoint = make_checkpoint(dtype=torch.bfloat16)
    model = load_model(checkpoint, dtype=asked, device="cpu")
    assert model.dtype == expected
    assert not model.training
    stored = load_file(checkpoint / "model.safetensors")[KEY]
    torch.testing.assert_close(model.state_dict()[KEY], stored.to(expected), rtol=0, atol=0)


def test_tied_embeddings_are_not_missing(make_checkpoint):
    checkpoint = make_checkpoint(tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(checkpoint / "model.safetensors")
    model = load_model(checkpoint, device="cpu")
    weights = dict(model.named_parameters(remove_duplicate=False))
    assert weights["lm_head.weight"] is weights["model.embed_tokens.weight"]


def test_a_missing_tensor_is_never_made_up(broken):
    change_tensors(broken, lambda tensors: tensors.pop(KEY))
    with pytest.raises(UserError, match=f"lacks tensors: {KEY};"):
        load_model(broken, device="cpu")


def test_a_tensor_too_many_is_an_error(broken):
    change_tensors(broken, lambda tensors: tensors.update({f"extra.{i}": torch.zeros(1) for i in range(5)}))
    with pytest.raises(UserError, match=r"doesn't know: extra\.0, extra\.1, extra\.2 and 2 more; its config.json"):
        load_model(broken, device="cpu")


def test_a_config_of_another_shape_is_an_error(broken):
    change_config(broken, num_key_value_heads=2)
    with pytest.raises(UserError, match=r"has tensors of the wrong shape: .*k_proj.weight, .* and 1 more"):
        load_model(broken, device="cpu")


def test_a_truncated_file_is_an_error(broken):
    path = broken / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"a weight file of .* is damaged"):
        load_model(broken, device="cpu")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "llamma"}, r"'llamma' is unknown to transformers .did you mean 'llama'.."),
        ({"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}, "needs its own code to run"),
        ({"model_type": None}, "None is unknown to transformers"),
        ({"model_type": "t5"}, "is a t5, which is no causal language model"),
        ({"hidden_size": "wide"}, "config.json of .* can't be used: .*hidden_size"),
    ],
)
def test_a_config_that_transformers_cannot_use_is_an_error(broken, values, message):
    change_config(broken, **values)
    for load in (load_config, lambda path: load_model(path, device="cpu")):
        with pytest.raises(UserError, match=message):
            load(broken)


def test_a_model_without_attention_is_an_error(broken):
    (broken / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(UserError, match="is a mamba, which has no attention heads to compare"):
        load_config(broken)


def test_the_tokenizer_is_the_checkpoints_own(checkpoint, make_tokenizer, texts):
    assert load_tokenizer(checkpoint)(texts)["input_ids"] == make_tokenizer()(texts)["input_ids"]


@pytest.mark.parametrize("content", ["{", '{"model": {}}', '{"added_tokens": [], "model": {"type": "Unheard"}}'])
def test_a_damaged_tokenizer_is_an_error(broken, content):
    (broken / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"the tokenizer of .* can't be loaded"):
        load_tokenizer(broken)


def test_no_tokenizer_is_an_error(broken):
    for path in broken.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UserError, match=r"the tokenizer of .* can't be loaded"):
        load_tokenizer(broken)


def test_settings_without_a_vocabulary_are_no_tokenizer(broken):
    (broken / "tokenizer.json").unlink()
    (broken / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    with pytest.raises(UserError, match=r"has no tokenizer; copy tokenizer\.json"):
        load_tokenizer(broken)
