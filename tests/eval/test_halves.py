"""A model in two halves: together they are the model itself, which is the oracle."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from gqa.eval.halves import Halves
from gqa.eval.teacher import decoder_inputs

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma2": {"head_dim": 8, "final_logit_softcapping": 3.0},
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 4.0},
    "phi": {},
    "qwen2_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "gpt_bigcode": {},
    "gpt_neox": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_of_decoders(make_checkpoint, family: str):
    model = AutoModelForCausalLM.from_pretrained(make_checkpoint(family, **FAMILIES[family]))
    ids = torch.randint(0, 256, (2, 9), generator=torch.Generator().manual_seed(0))
    _halves_are_the_whole(model, input_ids=ids)


@pytest.mark.parametrize("model_type", ["t5", "bart"])
def test_of_encoder_decoders(make_encoder_decoder, model_type: str):
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(make_encoder_decoder(model_type=model_type))
    if model_type == "bart":
        torch.nn.init.normal_(model.final_logits_bias)
    source, target = torch.randint(3, 256, (2, 2, 9), generator=torch.Generator().manual_seed(0))
    seen = decoder_inputs(model, target[:, :7])
    _halves_are_the_whole(model, input_ids=source, attention_mask=torch.ones_like(source), decoder_input_ids=seen)


def _halves_are_the_whole(model: Any, **inputs: torch.Tensor) -> None:
    """In logits and in every gradient."""
    names = [name for name, _ in model.named_parameters()]
    whole = model(use_cache=False, **inputs).logits
    weights = torch.randn(whole.shape, generator=torch.Generator().manual_seed(1))
    expected = torch.autograd.grad((whole * weights).sum(), _learnt(model), allow_unused=True)
    halves = Halves(model)
    logits = halves.logits(halves.hidden(**inputs).flatten(0, 1)).reshape(whole.shape)
    found = torch.autograd.grad((logits * weights).sum(), _learnt(model), allow_unused=True)
    torch.testing.assert_close(logits, whole, rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert names == [name for name, _ in model.named_parameters()]  # all is where it was


def _learnt(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def test_of_a_trunk_that_fails_the_model_is_left_whole(checkpoint: Path):
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    trunk = model.model
    with pytest.raises(IndexError):
        Halves(model).hidden(input_ids=torch.tensor([[9999]]))
    assert model.model is trunk
