"""The loss: transformers' own model on every document alone is the oracle."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from gqa.uptrain import lesson
from gqa.uptrain.batches import IGNORED
from gqa.uptrain.objective import NextTokenLoss

LENGTHS = (5, 1, 9, 17)

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 4},
    "gemma3_text": {"sliding_window": 4, "head_dim": 8, "rope_parameters": None},
    "phi": {"rope_parameters": {"rope_theta": 5000.0, "rope_type": "default", "partial_rotary_factor": 0.5}},
    "qwen2_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
}


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, make_checkpoint):
    config = {key: value for key, value in FAMILIES[request.param].items() if value is not None}
    path = make_checkpoint(request.param, **config)
    return AutoModelForCausalLM.from_pretrained(path).eval()


def packed() -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Documents, and the same packed into one sequence with positions that restart."""
    generator = torch.Generator().manual_seed(0)
    documents = [torch.randint(0, 256, (length,), generator=generator) for length in LENGTHS]
    return documents, torch.cat(documents)[None], torch.cat([torch.arange(length) for length in LENGTHS])[None]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_documents_do_not_see_each_other(model, attention: str):
    model.set_attn_implementation(attention)
    documents, input_ids, positions = packed()
    with torch.no_grad():
        alone = torch.cat([model(input_ids=document[None], use_cache=False).logits[0] for document in documents])
        together = model(input_ids=input_ids, position_ids=positions, attention_mask=None, use_cache=False).logits[0]
        mixed = model(input_ids=input_ids, use_cache=False).logits[0]
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert (mixed - alone).abs().max() > 1e-2  # the test would see it


def test_nor_do_they_once_the_model_is_traced_for_compilation(checkpoint: Path):
    """transformers looks for packed documents in another way then."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    _, input_ids, positions = packed()
    batch = input_ids, positions, input_ids
    plain, traced = NextTokenLoss(model, None), NextTokenLoss(model, None)
    for trunk in traced.lesson.trunks:
        trunk.compile(backend="eager", dynamic=False)
    torch.testing.assert_close(traced(*batch), plain(*batch), rtol=1e-6, atol=0)


def test_the_loss_is_the_sum_of_the_documents_own_losses(checkpoint: Path):
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    documents, input_ids, positions = packed()
    labels = torch.cat([torch.cat([document[1:], torch.tensor([IGNORED])]) for document in documents])[None]
    found = NextTokenLoss(model, None)(input_ids, positions, labels)
    parts = [
        model(input_ids=item[None], labels=item[None]).loss * (len(item) - 1) for item in documents if len(item) > 1
    ]
    torch.testing.assert_close(found, torch.stack(parts).sum(), rtol=1e-6, atol=0)


def test_autocast_changes_the_arithmetic_and_not_the_weights(checkpoint: Path):
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    _, input_ids, positions = packed()
    exact, rounded = (NextTokenLoss(model, kind)(input_ids, positions, input_ids) for kind in (None, torch.bfloat16))
    rounded.backward()
    assert exact.dtype == rounded.dtype == torch.float32
    assert 0 < abs(float(exact.detach() - rounded.detach())) < 0.02 * float(exact.detach())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert {parameter.grad.dtype for parameter in model.parameters() if parameter.grad is not None} == {torch.float32}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("twice", [True, False])
@pytest.mark.parametrize(("autocast", "most"), [(None, 1e-6), (torch.bfloat16, 1e-2)])
def test_chunks_change_neither_loss_nor_gradient(make_checkpoint, monkeypatch, tied: bool, twice: bool, autocast, most):
    """Of all parameters, against all logits at once; in bf16 the parts of a sum are rounded one by one."""
    model = AutoModelForCausalLM.from_pretrained(make_checkpoint(tie_word_embeddings=tied)).train()
    _, input_ids, positions = packed()
    labels = input_ids.roll(-1).masked_fill(torch.arange(input_ids.shape[1]) % 7 == 0, IGNORED)
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        logits = model(input_ids=input_ids, position_ids=positions, use_cache=False).logits[0]
    whole = torch.nn.functional.cross_entropy(logits.float(), labels[0], reduction="sum", ignore_index=IGNORED)
    expected = torch.autograd.grad(whole, list(model.parameters()))
    monkeypatch.setattr(lesson, "tokens_at_once", lambda *_: 13)
    learnt = lesson.Lesson(model)
    learnt.computes_twice = twice
    loss = NextTokenLoss(model, autocast, learnt).train()(input_ids, positions, labels)
    torch.testing.assert_close(loss, whole, rtol=most, atol=0)
    for ours, theirs in zip(torch.autograd.grad(loss / 4, list(model.parameters())), expected, strict=True):
        assert (4 * ours - theirs).abs().max() <= most * theirs.abs().max()


def test_what_is_frozen_gets_no_gradient(checkpoint: Path):
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint).train()
    model.lm_head.weight.requires_grad_(False)
    _, input_ids, positions = packed()
    NextTokenLoss(model, None)(input_ids, positions, input_ids).backward()
    assert model.lm_head.weight.grad is None
    assert all(parameter.grad is not None for parameter in model.model.parameters())
