"""Heads in latent attention, where there is room for all of them: transformers' youtu computes what the original does.

The rotary key has every pair of every KV head, the latent every value, so nothing is lost but rounding. Logits here
are about 4 in size; float32 is held to 1e-4 of that, and the constant channel's share of it is measured by itself.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from gqa.convert.latent.plan import LatentOptions
from gqa.convert.latent.rewrite import convert_latent
from gqa.convert.plan import ConvertOptions
from gqa.eval.cache import cache_size

GROUPS, WIDTH = 2, 16  # KV heads, and the components of all of them
RANK = WIDTH + 2
EXACT = LatentOptions(kv_rank=RANK, rope_dim=WIDTH)
PLAIN = ConvertOptions(groups=1, method="lowrank")
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}


def pair(
    variant, path: Path, load, options: ConvertOptions = PLAIN, **config
) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A grouped-query model, and what becomes of it, read back from disk."""
    model = variant.model(GROUPS, **config).float()
    model.save_pretrained(path / "original")
    convert_latent(path / "original", path / "mla", EXACT, options)
    return model, load(path / "mla")


def ids(length: int, rows: int = 2) -> Tensor:
    return torch.randint(0, 90, (rows, length), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("llama", {}),
        ("llama-tied", {}),
        ("llama-bias", {"rope_parameters": YARN}),
        ("llama", {"rope_parameters": YARN | {"mscale": 1.2, "mscale_all_dim": 0.4}}),
        ("llama", {"rope_parameters": LLAMA3}),
        ("llama", {"rope_parameters": LINEAR}),
        ("mistral", {"sliding_window": None}),
        ("qwen2", {}),
        ("internlm3", {}),
        ("seed_oss", {}),
        ("iquestcoder", {}),
        ("helium", {}),
        ("ernie4_5", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value.get("rope_parameters", {}).get("rope_type", "")),
)
@torch.no_grad()
def test_every_source_computes_the_same(named, name, config, tmp_path, load):
    model, converted = pair(named(name), tmp_path, load, **config)
    wanted, found = (one(ids(100)).logits for one in (model, converted))
    assert wanted.abs().max() > 1
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()


@torch.no_grad()
def test_the_cache_holds_one_latent_and_one_rotary_key(llama, tmp_path, load):
    model, converted = pair(llama, tmp_path, load)
    cache = converted(ids(12), use_cache=True).past_key_values
    for layer in cache.layers:
        assert layer.keys.shape == (2, 1, 12, RANK)
        assert layer.values.shape == (2, 1, 12, WIDTH)
    size = cache_size(converted, converted.config, 12)
    assert size.bytes_per_token == 4 * 2 * (RANK + WIDTH)  # bytes of a number, layers, numbers
    assert size.agree
    assert size.num_kv_heads == 1
    assert cache_size(model, model.config, 12).bytes_per_token == 4 * 2 * (2 * WIDTH)


@torch.no_grad()
def test_generation_with_a_cache_and_padding_on_the_left(llama, tmp_path, load):
    models: list[Any] = list(pair(llama, tmp_path, load))
    prompt, mask = ids(9), torch.ones(2, 9, dtype=torch.long)
    mask[1, :4] = 0
    for one in models:
        one.generation_config.eos_token_id = None
    settings = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    wanted, found = (one.generate(prompt, **settings) for one in models)
    assert torch.equal(found, wanted)
    assert torch.equal(models[1].generate(prompt, **settings, use_cache=False), wanted)


@torch.no_grad()
def test_the_constant_is_one_behind_the_norm_so_that_what_reads_it_trains_as_other_weights_do(qwen2, tmp_path, load):
    _, converted = pair(qwen2, tmp_path, load)
    seen: list[Tensor] = []
    for layer in converted.model.layers:
        for norm in (layer.self_attn.kv_a_layernorm, layer.self_attn.q_a_layernorm):
            norm.register_forward_hook(lambda *call: seen.append(call[-1][..., -1]))
    converted(ids(20))
    assert len(seen) == 2 * len(converted.model.layers)
    assert all((part - 1).abs().max() < 1e-2 for part in seen)  # a weight of bfloat16's precision stands before it


@torch.no_grad()
def test_it_is_saved_and_read_again(llama, tmp_path, load):
    _, converted = pair(llama, tmp_path, load)
    converted.save_pretrained(tmp_path / "again")
    assert torch.equal(load(tmp_path / "again")(ids(20)).logits, converted(ids(20)).logits)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@torch.no_grad()
def test_stored_in_half_precision_it_is_about_as_near_as_the_original_so_stored(qwen2, tmp_path, load, dtype):
    """The constant channel costs no more than rounding does anyway: within twice of it."""
    model, converted = pair(qwen2, tmp_path, load, ConvertOptions(groups=1, method="lowrank", dtype=dtype))
    wanted = model(ids(40)).logits
    assert converted.dtype == getattr(torch, dtype)
    found = converted(ids(40)).logits.float() - wanted
    own = model.to(getattr(torch, dtype))(ids(40)).logits.float() - wanted
    assert found.square().mean().sqrt() < 2 * own.square().mean().sqrt()
