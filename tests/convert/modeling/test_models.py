"""Our classes against transformers' own: the same with all heads, and with tied heads the same with fewer."""

import subprocess
import sys
from copy import deepcopy
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM

from gqa.convert.modeling import OWN, classes, register

IDS = torch.randint(3, 96, (3, 14), generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def logits(model: Any, ids: Tensor = IDS, **inputs: Any) -> Tensor:
    return model(input_ids=ids, **inputs).logits


def padded() -> dict[str, Tensor]:
    mask = torch.ones_like(IDS)
    mask[0, :5], mask[1, :2] = 0, 0
    return {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp_min(0)}


def close(left: Tensor, right: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(left, right, rtol=0, atol=tolerance)


BACKENDS = ["eager", "sdpa"]


def use(model: Any, backend: str) -> None:
    model.config.attention_backend = backend


def test_with_all_heads_logits_are_the_stock_models(own, both):
    stock, ours = both
    assert logits(stock).abs().max() > 1
    for backend in BACKENDS:
        use(ours, backend)
        close(logits(ours), logits(stock), own.tolerance)


def test_left_padding_is_as_in_the_stock_model(own, both_in_single):
    both = both_in_single
    given = padded()
    if own.model_type in ("bloom", "mpt"):
        del given["position_ids"]
    seen = given["attention_mask"].bool()
    for backend in BACKENDS:
        use(both[1], backend)
        close(logits(both[1], **given)[seen], logits(both[0], **given)[seen], 2e-5)


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_from_the_cache_is_the_stock_models(own, both_in_single, beams):
    given = {"attention_mask": padded()["attention_mask"][:, :8], "max_new_tokens": 9, "num_beams": beams}
    more = {"do_sample": False, "eos_token_id": None, "return_dict_in_generate": True, "output_logits": True}
    outputs = [model.generate(IDS[:, :8], **given, **more) for model in both_in_single]
    assert torch.equal(outputs[0].sequences, outputs[1].sequences)
    for left, right in zip(outputs[0].logits, outputs[1].logits, strict=True):
        close(right, left, 2e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tied_heads_compute_the_same_with_one_of_each(own, tied, backend):
    many, few = tied
    use(many, "eager")
    use(few, backend)
    close(logits(few), logits(many), 1e-12)
    given = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "num_beams": 2}
    assert torch.equal(few.generate(IDS[:, :8], **given), many.generate(IDS[:, :8], **given))


def test_tying_heads_changes_something(own, both, tied):
    assert (logits(tied[0]) - logits(both[1])).abs().max() > 1e-3
    assert tied[1].config.num_key_value_heads == own.groups


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_cache_holds_the_groups_and_no_more(own, tied, dtype):
    few = tied[1]
    use(few, "sdpa")
    model = AutoModelForCausalLM.from_config(few.config, dtype=dtype).eval()
    layers = model.config.num_hidden_layers
    head_dim = 48 // own.heads
    with torch.no_grad():
        cache = model(input_ids=IDS, use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert held == 2 * own.groups * head_dim * layers * IDS.numel() * dtype.itemsize


def test_steps_from_the_cache_are_the_whole(own, tied):
    few = tied[1]
    names = signature(few.forward).parameters
    name = next(name for name in ("cache", "past_key_values") if name in names)  # by version of transformers
    for backend in BACKENDS:
        use(few, backend)
        with torch.no_grad():
            start = few(input_ids=IDS[:, :6], use_cache=True)
            middle = few(input_ids=IDS[:, 6:9], **{name: start.past_key_values}, use_cache=True)
            end = few(input_ids=IDS[:, 9:10], **{name: middle.past_key_values}, use_cache=True)
        parts = torch.cat([start.logits, middle.logits, end.logits], dim=1)
        close(parts, logits(few)[:, :10], 1e-12)


def test_gradient_checkpointing_gives_the_same_gradients(own, tied):
    few = AutoModelForCausalLM.from_config(tied[1].config, dtype=torch.float64).train()
    few.load_state_dict(tied[1].state_dict())
    gradients = []
    for on in (False, True):
        if on:
            renamed = getattr(few, "activation_checkpointing_enable", None)  # in the course of transformers 5
            (renamed or few.gradient_checkpointing_enable)({"use_reentrant": False})
        few.zero_grad()
        torch.manual_seed(0)
        few(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in few.named_parameters()})
    assert any(".k_proj." in name and gradient.abs().max() > 0 for name, gradient in gradients[0].items())
    for name, gradient in gradients[0].items():
        close(gradients[1][name], gradient, 1e-12)


def test_it_saves_and_loads_again(own, tied, load, tmp_path: Path):
    few = tied[1]
    few.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert type(again) is type(few)
    assert again.config.num_key_value_heads == own.groups
    torch.testing.assert_close(again.state_dict(), few.state_dict(), rtol=0, atol=0)
    # copied, because where weights lie in memory decides the order of some processors' sums
    close(logits(deepcopy(again)), logits(deepcopy(few)), 0)
    bare = AutoModel.from_pretrained(tmp_path)
    assert type(bare) is classes(f"gqa_{own.model_type}")["AutoModel"]


def test_attention_weights_are_given_by_the_eager_backend(own, both_in_single, monkeypatch):
    stock, ours = both_in_single
    use(ours, "eager")
    for model in both_in_single:
        monkeypatch.setattr(model.config, "_attn_implementation", "eager")
    with torch.no_grad():
        found, expected = (model(input_ids=IDS, output_attentions=True).attentions for model in (ours, stock))
    assert len(found) == len(expected) == ours.config.num_hidden_layers
    for left, right in zip(found, expected, strict=True):
        close(left, right, 1e-6)


def test_the_flash_kernel_can_be_asked_for(own_named, randomised):
    """Where nothing is added to scores: the same; and with padding a sentence."""
    model = randomised(AutoModelForCausalLM.from_config(own_named("gpt2").config(own=True, num_key_value_heads=2)))
    expected = logits(model)
    use(model, "flash")
    close(logits(model), expected, 1e-5)
    with pytest.raises(ValueError, match="flash attention can add nothing"):
        logits(model, **padded())


def test_registering_twice_is_registering_once():
    register()
    register("gqa_gpt2", "llama")
    for model_type in OWN:
        found = classes(model_type)
        assert found["AutoConfig"].model_type == model_type
        for name in found.keys() - {"AutoConfig"}:
            assert getattr(transformers, name)._model_mapping[found["AutoConfig"]] is found[name]


def test_importing_makes_nothing_known():
    """transformers is not even imported; what makes classes known is called."""
    program = (
        "import sys, gqa.convert.modeling as ours\n"
        "assert 'transformers' not in sys.modules and 'torch' not in sys.modules\n"
        "from transformers import CONFIG_MAPPING\n"
        "assert not any(name in CONFIG_MAPPING for name in ours.OWN)\n"
        "ours.register('gqa_gpt2')\n"
        "assert [name for name in ours.OWN if name in CONFIG_MAPPING] == ['gqa_gpt2']\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
