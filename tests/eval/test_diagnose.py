"""Layers beside the first checkpoint's: nothing is found where nothing was changed, and a hurt layer is found."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from gqa.eval.evaluate import evaluate
from gqa.eval.options import EvalOptions


def options(data: Path, **given) -> EvalOptions:
    return EvalOptions(
        **({"data": str(data), "window": 32, "dtype": "float32", "device": "cpu", "diagnose": True} | given)
    )


def test_of_a_checkpoint_with_itself_nothing_differs(checkpoint, data):
    for row in evaluate([checkpoint, f"again={checkpoint}"], options(data)).rows:
        assert [layer.layer for layer in row.result.layers] == [0, 1]
        for layer in row.result.layers:
            assert (layer.relative_error, layer.relative_error_as_run, layer.inputs) == (0, 0, "first")
            assert layer.cosine == pytest.approx(1)
            assert layer.entropy == layer.entropy_first


def test_a_hurt_layer_is_found_by_its_own_error(make_checkpoint, data, tmp_path: Path):
    whole = make_checkpoint()
    model = AutoModelForCausalLM.from_pretrained(whole)
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.mul_(1.5)
    hurt = make_checkpoint("hurt")
    model.save_pretrained(hurt)
    layers = evaluate([whole, hurt], options(data)).rows[1].result.layers
    assert layers[0].relative_error == pytest.approx(0.5, rel=1e-5)
    assert layers[0].cosine == pytest.approx(1, rel=1e-6)
    assert layers[1].relative_error == 0  # its weights are whole, and here it is given what it was given before
    assert layers[1].relative_error_as_run > 0.01


def test_entropy_is_that_of_the_attention_weights(make_checkpoint, data):
    flat = make_checkpoint()
    model = AutoModelForCausalLM.from_pretrained(flat)
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight.zero_()  # all keys are alike to it
    model.save_pretrained(flat)
    (row,) = evaluate([flat], options(data)).rows
    expected = torch.log(torch.arange(1, 32, dtype=torch.float64)).mean()
    assert row.result.layers[1].entropy == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("adds_bos", [False, True])
def test_no_position_is_needed_for_the_last_token(make_checkpoint, tmp_path: Path, adds_bos: bool):
    sizes = {"ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 32}
    learned = make_checkpoint("opt", model_type="opt", adds_bos=adds_bos, **sizes)
    text = tmp_path / "text.jsonl"
    text.write_text('{"text": "The quick brown fox jumps over the lazy dog."}\n' * 9)
    (row,) = evaluate([learned], options(text, window=33)).rows
    assert [layer.relative_error for layer in row.result.layers] == [0, 0]
    text.write_text('{"text": "The"}\n' * 9)  # windows of a token or two
    shortest = {"documents": "separate"} if adds_bos else {}
    (row,) = evaluate([learned], options(text, window=2, **shortest)).rows
    assert [layer.cosine for layer in row.result.layers] == pytest.approx([1, 1])


def test_other_classes_are_compared_as_run_and_other_shapes_not_at_all(checkpoint, make_checkpoint, data):
    other = make_checkpoint("other", model_type="qwen2")
    deeper = make_checkpoint("deeper", num_hidden_layers=3)
    rows = evaluate([checkpoint, other, deeper], options(data)).rows
    for layer in rows[1].result.layers:
        assert layer.inputs == "own"
        assert (layer.cosine, layer.relative_error) == (layer.cosine_as_run, layer.relative_error_as_run)
    assert rows[2].result.layers == ()


def test_the_model_attends_as_before_afterwards(checkpoint, data):
    found = evaluate([checkpoint], options(data, prompts=("The",), new_tokens=2)).rows[0]
    assert found.result.continuations[0].prompt == "The"
