"""The formula for the KV cache against caches that transformers' own classes fill."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from gqa.convert import convert_checkpoint, convert_to_latent
from gqa.eval.cache import cache_size, formula_cache_bytes, measured_cache_bytes
from gqa.eval.evaluate import evaluate
from gqa.eval.options import EvalOptions
from gqa.eval.page.view import cards
from gqa.eval.render import table_cells

CONTEXT = 24
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]

# model type, its own settings, KV heads x head_dim, tokens kept by each layer
CASES = {
    "llama, multi-head": ("llama", {"num_key_value_heads": 4}, 4 * 8, [CONTEXT] * 3),
    "llama, grouped": ("llama", {"num_key_value_heads": 2}, 2 * 8, [CONTEXT] * 3),
    "llama, wide heads": ("llama", {"num_key_value_heads": 1, "head_dim": 16}, 16, [CONTEXT] * 3),
    "mistral, no window": ("mistral", {"num_key_value_heads": 2, "sliding_window": None}, 16, [CONTEXT] * 3),
    "mistral, full window": ("mistral", {"num_key_value_heads": 2, "sliding_window": 9}, 16, [8] * 3),
    "mistral, open window": ("mistral", {"num_key_value_heads": 2, "sliding_window": 25}, 16, [CONTEXT] * 3),
    "qwen2, window not used": ("qwen2", {"num_key_value_heads": 2, "sliding_window": 9}, 16, [CONTEXT] * 3),
    "gemma2, every other layer": (
        "gemma2",
        {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 9, "layer_types": SLIDING},
        16,
        [8, CONTEXT, 8],
    ),
    "gpt_neox, no KV setting": ("gpt_neox", {}, 32, [CONTEXT] * 3),
    "gpt2, other names": ("gpt2", {}, 32, [CONTEXT] * 3),
    "gpt_bigcode, multi-query": ("gpt_bigcode", {"multi_query": True}, 8, [CONTEXT] * 3),
    "falcon, multi-query": ("falcon", {"multi_query": True, "new_decoder_architecture": False}, 8, [CONTEXT] * 3),
}


def build(model_type: str, extra: dict, dtype: torch.dtype):
    config = AutoConfig.for_model(model_type, **(SIZES | extra))
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval(), config


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_formula_and_measurement_agree(name: str, dtype: torch.dtype):
    model_type, extra, width, kept = CASES[name]
    size = cache_size(*build(model_type, extra, dtype), context=CONTEXT)
    assert size.formula_bytes == 2 * width * dtype.itemsize * sum(kept)
    assert size.measured_bytes == size.formula_bytes
    assert size.agree
    assert size.bytes_per_token == size.measured_bytes / CONTEXT


def test_a_class_that_caches_repeated_heads_is_found_out():
    extra = {"new_decoder_architecture": True, "num_kv_heads": 2}
    size = cache_size(*build("falcon", extra, torch.float32), context=CONTEXT)
    assert not size.agree
    assert size.num_kv_heads == 2
    assert size.formula_bytes is not None
    assert size.measured_bytes == 2 * size.formula_bytes  # four heads are kept where two would do


def test_layers_without_a_formula_have_none():
    config = AutoConfig.for_model("llama", **SIZES)
    config.layer_types = ["full_attention", "linear_attention", "full_attention"]
    assert formula_cache_bytes(config, CONTEXT, 4) is None


def test_the_context_may_be_longer_than_the_vocabulary():
    model, _ = build("llama", {"num_key_value_heads": 2, "vocab_size": 10}, torch.float32)
    assert measured_cache_bytes(model, CONTEXT) == 2 * 16 * 4 * 3 * CONTEXT


def test_latent_attention_is_called_that(checkpoint, data, tmp_path):
    """At equal bytes a grouped-query checkpoint and a latent one stand side by side in every table."""
    convert_to_latent(checkpoint, tmp_path / "mla", kv_rank=24, rope_dim=8)
    convert_checkpoint(checkpoint, tmp_path / "gqa", groups=2)
    named = [f"{name}={path}" for name, path in {"mha": checkpoint, "gqa": tmp_path / "gqa"}.items()]
    options = EvalOptions(data=str(data), window=16, device="cpu")
    made = evaluate([*named, f"mla={tmp_path / 'mla'}"], options).document()
    assert [row.attention for row in made.checkpoints] == ["multi-head", "grouped-query", "latent"]
    assert [row.kv_cache.bytes_per_token for row in made.checkpoints] == [512, 256, 256]
    assert [cells[1] for cells in table_cells(made)] == ["4", "2", "MLA"]
    assert cards(made)[2].line.startswith("latent attention (MLA) for 4 query heads")
