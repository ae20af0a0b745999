"""Loading whole checkpoints, and refusing every kind of incomplete one."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gqa.convert.errors import UserError
from gqa.eval.model import load_model

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


def test_a_config_of_no_language_model_is_an_error(broken):
    change_config(broken, model_type="albert")
    with pytest.raises(UserError, match="is a albert, which is no causal language model"):
        load_model(broken, device="cpu")
