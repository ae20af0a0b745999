"""What a dry run recommends is what can be done with the checkpoint."""

import json

import pytest
from transformers import (
    AutoModelForMultimodalLM,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlavaConfig,
)
from typer.testing import CliRunner

from gqa.convert.cli import app


def recommended(checkpoint, *more):
    """The last line of a dry run."""
    result = CliRunner().invoke(app, ["--dry-run", "-g", "2", *more, str(checkpoint)])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout.splitlines()[-1]


def regains(data, text):
    return f"{data}--fit 65536 fits every layer to {text}, which regains most of the loss."


OWN = regains("--calibration self ", "text that the model writes")
GIVEN = regains("--calibration DATA ", "that text")


@pytest.mark.parametrize("model_type", ["llama", "gpt_neox"])
def test_a_model_that_writes_needs_no_text(make_checkpoint, model_type, calibration_text):
    checkpoint = make_checkpoint(model_type=model_type)
    assert recommended(checkpoint) == OWN
    text = ["--calibration", str(calibration_text), "--calibration-tokens", "64", "--sequence-length", "16"]
    assert recommended(checkpoint, *text) == regains("", "that text")


def test_a_tokenizer_without_a_token_to_begin_with(make_checkpoint, make_tokenizer):
    checkpoint = make_checkpoint()
    make_tokenizer(bos_token=None, eos_token=None).save_pretrained(checkpoint)
    assert recommended(checkpoint) == GIVEN


@pytest.mark.parametrize("part", ["classifier", "bare"])
def test_weights_without_a_head(part, make_checkpoint, make_tokenizer, tmp_path):
    config = LlamaConfig.from_pretrained(make_checkpoint())
    model = LlamaForSequenceClassification(config) if part == "classifier" else LlamaForCausalLM(config).model
    model.save_pretrained(tmp_path / "ckpt")
    make_tokenizer().save_pretrained(tmp_path / "ckpt")
    assert recommended(tmp_path / "ckpt") == GIVEN


def test_a_language_model_inside_another(make_checkpoint, make_tokenizer, tmp_path):
    eyes = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
    )
    words = LlamaConfig.from_pretrained(make_checkpoint())
    config = LlavaConfig(text_config=words, vision_config=eyes, image_token_index=319)
    AutoModelForMultimodalLM.from_config(config).save_pretrained(tmp_path / "ckpt")
    make_tokenizer().save_pretrained(tmp_path / "ckpt")
    assert recommended(tmp_path / "ckpt") == GIVEN


def test_layers_of_different_kv_heads(make_checkpoint):
    checkpoint = make_checkpoint(num_key_value_heads=2)
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"num_key_value_heads": [2, 2]}))
    assert recommended(checkpoint, "-g", "1") == GIVEN
