"""Attention by blocks, against transformers' own over the whole mask.

In float64, where another order of the sums and another processor's instructions change nothing that can be seen.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, masking_utils
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from gqa.uptrain import attention_blocks
from gqa.uptrain.attention import packed_attention, packing_told

CPU = torch.device("cpu")
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 5},
    "gemma3_text": {"sliding_window": 4, "head_dim": 8, "num_key_value_heads": 1},
}


@pytest.fixture
def keys_seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many keys each call of the kernel is given, for blocks of 8 queries."""
    monkeypatch.setattr(attention_blocks, "BLOCK", 8)
    own, seen = attention_blocks.sdpa_attention_forward, []

    def watched(module: Any, query: Any, key: torch.Tensor, *more: Any, **how: Any) -> Any:
        seen.append(key.shape[2])
        return own(module, query, key, *more, **how)

    monkeypatch.setattr(attention_blocks, "sdpa_attention_forward", watched)
    return seen


def states_and_gradients(model: Any, **inputs: Any) -> list[torch.Tensor]:
    logits = model(**inputs, use_cache=False).logits
    return [logits, *torch.autograd.grad(logits.square().mean(), list(model.parameters()))]


POSITIONS = {
    "one document": [torch.arange(30), torch.arange(30)],
    "several": [torch.cat([torch.arange(count) for count in counts]) for counts in ((3, 20, 7), (17, 13))],
}


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("positions", POSITIONS)
def test_it_is_the_same_attention(make_checkpoint: Callable[..., Path], model_type: str, positions: str, keys_seen):
    checkpoint = make_checkpoint(model_type, **FAMILIES[model_type])
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float64)
    ids = torch.randint(0, 256, (2, 30), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "position_ids": torch.stack(POSITIONS[positions]), "attention_mask": None}
    expected = states_and_gradients(model, **inputs)
    with packed_attention(CPU):
        found = states_and_gradients(model, **inputs)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    if positions == "one document" and model_type == "llama":  # there is no mask
        assert keys_seen == []
    else:
        assert sum(keys_seen) < 30 * len(keys_seen)
    if positions == "several":
        assert len(keys_seen) == 2 * 4 * model.config.num_hidden_layers


def test_keys_that_a_block_does_not_see_are_left_out(make_checkpoint: Callable[..., Path], keys_seen: list[int]):
    model: Any = AutoModelForCausalLM.from_pretrained(make_checkpoint(num_hidden_layers=1))
    with packed_attention(CPU):
        model(input_ids=torch.zeros((1, 30), dtype=torch.int64), use_cache=False)
        assert keys_seen == []  # without a mask the kernel is left to itself
        positions = torch.cat([torch.arange(16), torch.arange(14)])[None]
        model(input_ids=torch.zeros((1, 30), dtype=torch.int64), position_ids=positions, use_cache=False)
    assert keys_seen == [8, 16, 8, 14]


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # torch's own, of what its compiler imports
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # of what it asks
def test_a_compiled_model_uses_it_too(make_checkpoint: Callable[..., Path], keys_seen: list[int]):
    model: Any = AutoModelForCausalLM.from_pretrained(make_checkpoint(), dtype=torch.float64)
    ids = torch.randint(0, 256, (2, 30), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "position_ids": torch.stack(POSITIONS["several"]), "attention_mask": None}
    expected = states_and_gradients(model, **inputs)
    model.model.compile(dynamic=False)
    with packed_attention(CPU):
        found = states_and_gradients(model, **inputs)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert len(keys_seen) == 2 * 4 * model.config.num_hidden_layers
    assert sum(keys_seen) < 30 * len(keys_seen)


@pytest.mark.parametrize("model_type", ["bart", "t5"])
def test_what_is_not_causal_is_left_alone(
    make_encoder_decoder: Callable[..., Path], model_type: str, keys_seen: list[int]
):
    """The encoder sees all; the decoder of as many tokens sees the encoder's."""
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(make_encoder_decoder(model_type=model_type)).eval()
    ids = torch.randint(5, 200, (2, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids.flip(1)}
    expected = model(**inputs, use_cache=False).logits
    with packed_attention(CPU):
        torch.testing.assert_close(model(**inputs, use_cache=False).logits, expected, rtol=1e-4, atol=1e-5)


def test_afterwards_all_is_as_before():
    before, packs = ALL_ATTENTION_FUNCTIONS["sdpa"], masking_utils.find_packed_sequence_indices
    with packed_attention(CPU), packing_told(torch.arange(3)[None]):
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is not before
        assert masking_utils.find_packed_sequence_indices is not packs
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before
    assert masking_utils.find_packed_sequence_indices is packs
