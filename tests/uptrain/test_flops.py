"""Operations, counted from the architecture, held against those that torch counts as they are done."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from gqa.convert.plan import ConvertOptions
from gqa.convert.rewrite import convert
from gqa.convert.source import read_config
from gqa.eval.model import load_model
from gqa.uptrain import uptrain
from gqa.uptrain.flops import attention_flops, device_peak, matrix_weights, pair_flops, training_flops
from gqa.uptrain.memory import estimate_memory
from gqa.uptrain.plan import make_plan

ROWS, LENGTH = 2, 16
LATENT = {"num_key_value_heads": 4, "kv_lora_rank": 10, "qk_rope_head_dim": 6, "qk_nope_head_dim": 8, "v_head_dim": 12}


def counted(model: torch.nn.Module, *, backward: bool = True) -> float:
    """For every token, by torch."""
    ids = torch.arange(ROWS * LENGTH).view(ROWS, LENGTH) % 300
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        logits = model(input_ids=ids, use_cache=False).logits
        if backward:
            logits.sum().backward()
    return counter.get_total_flops() / ROWS / LENGTH


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("llama", {}),
        ("llama", {"num_key_value_heads": 1, "head_dim": 16}),
        ("llama", {"tie_word_embeddings": True}),
        ("gpt_neox", {}),
        ("gpt2", {}),
        ("youtu", {**LATENT, "q_lora_rank": None}),
        ("youtu", {**LATENT, "q_lora_rank": 24}),
    ],
    ids=str,
)
def test_torch_counts_the_same(make_checkpoint: Callable[..., Path], family: str, sizes: dict[str, object]):
    model = AutoModelForCausalLM.from_pretrained(
        make_checkpoint(family, **sizes), attn_implementation="eager", dtype=torch.float32
    )
    weights, trained = matrix_weights(model)
    full = attention_flops(model.config, LENGTH, causal=False)  # eager attention computes what it masks, too
    assert trained == weights
    assert counted(model, backward=False) == pytest.approx(2 * weights + full, rel=1e-3)
    assert counted(model) == pytest.approx(6 * weights + 3 * full, rel=1e-3)
    half = attention_flops(model.config, LENGTH)
    assert half == pytest.approx(full * (LENGTH + 1) / 2 / LENGTH)
    assert training_flops(model, LENGTH) == pytest.approx(6 * weights + 3 * half)
    teacher = 2 * weights + half
    assert training_flops(model, LENGTH, model) == pytest.approx(6 * weights + 3 * half + teacher)
    model.requires_grad_(False)
    assert training_flops(model, LENGTH) == pytest.approx(4 * weights + 3 * half)


SOURCE, TARGET = 24, 10


def of_a_pair(model: Any, inputs: dict[str, torch.Tensor], *, backward: bool) -> float:
    """By torch."""
    targets = torch.arange(ROWS * TARGET).view(ROWS, TARGET) % 200
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        logits = model(**inputs, decoder_input_ids=targets, use_cache=False).logits
        if backward:
            logits.sum().backward()
    return counter.get_total_flops() / ROWS


@pytest.mark.parametrize("family", ["t5", "bart", "marian", "gqa_t5", "whisper"])
def test_torch_counts_the_same_of_pairs(make_encoder_decoder, make_whisper, tmp_path: Path, family: str):
    hears = family == "whisper"
    checkpoint = make_whisper() if hears else make_encoder_decoder(model_type=family.removeprefix("gqa_"))
    if family == "gqa_t5":
        convert(checkpoint, tmp_path / "merged", ConvertOptions(groups=2))
        checkpoint = tmp_path / "merged"
    model = load_model(checkpoint, dtype=torch.float32, device="cpu").train()
    model.set_attn_implementation("eager")
    inputs, source = {"input_ids": torch.arange(ROWS * SOURCE).view(ROWS, SOURCE) % 200}, SOURCE
    if hears:
        source = model.config.max_source_positions
        inputs = {"input_features": torch.randn(ROWS, model.config.num_mel_bins, 2 * source)}
    named = model.named_parameters()
    masked = [weight for path, weight in named if re.search(r"decoder.*elf_?[Aa]tt.*\.(q|q_proj)\.weight$", path)]
    assert len(masked) == 2
    hidden = sum(4 * len(weight) * TARGET * (TARGET - 1) / 2 for weight in masked)  # eager computes it, too
    forward = of_a_pair(model, inputs, backward=False) - hidden
    both = of_a_pair(model, inputs, backward=True) - 3 * hidden
    found = pair_flops(model, source, TARGET)
    assert found == pytest.approx(3 * forward, rel=1e-3)
    assert pair_flops(model, source, TARGET, model) - found == pytest.approx(forward, rel=1e-3)
    if not hears:  # whose first convolution passes no gradient on
        assert found == pytest.approx(both, rel=1e-3)
    model.requires_grad_(False)
    assert pair_flops(model, source, TARGET) < found


FOUR = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
        ("qwen2_moe", {**FOUR, "shared_expert_intermediate_size": 16}),
        ("dots1", {**FOUR, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1}),
        ("granitemoe", {"num_local_experts": 4, "num_experts_per_tok": 2}),
        ("gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}),
        ("ernie4_5_moe", {**FOUR, "moe_k": 2, "moe_num_experts": 4, "moe_layer_start_index": 1}),
        ("aria_text", {"moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1}),
        ("hunyuan_v1_moe", {"num_experts": 4, "moe_topk": [2, 2], "head_dim": 8}),
        ("hunyuan_v1_moe", {"num_experts": 4, "moe_topk": [1, 3], "head_dim": 8}),
    ],
    ids=str,
)
def test_torch_counts_the_same_of_experts(
    configured, make_checkpoint: Callable[..., Path], family: str, sizes: dict[str, object]
):
    checkpoint = make_checkpoint(family, **sizes)
    how = {"attn_implementation": "eager", "experts_implementation": "eager", "dtype": torch.float32}
    model = AutoModelForCausalLM.from_pretrained(checkpoint, **how)
    full = attention_flops(model.config, LENGTH, causal=False)
    assert counted(model, backward=False) == pytest.approx(2 * matrix_weights(model)[0] + full, rel=1e-3)
    plan = make_plan(configured(), read_config(checkpoint), 1)
    assert estimate_memory(configured(), plan, checkpoint, None).activations > 0


def test_of_experts_those_count_that_a_token_passes_through(make_checkpoint: Callable[..., Path]):
    sizes = {"num_local_experts": 4, "num_experts_per_tok": 1}
    model = AutoModelForCausalLM.from_pretrained(make_checkpoint("mixtral", **sizes))
    names = {name: item.numel() for name, item in model.named_parameters() if item.ndim > 1 and "embed" not in name}
    experts = sum(size for name, size in names.items() if "experts" in name)
    assert experts > 0
    assert matrix_weights(model)[0] == sum(names.values()) - experts * 3 / 4


def test_a_window_leaves_fewer_keys():
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32}
    windowed, whole = (AutoConfig.for_model("mistral", sliding_window=window, **sizes) for window in (4, None))
    seen = sum(min(place + 1, 4) for place in range(16)) / 16
    assert attention_flops(windowed, 16) == pytest.approx(2 * 4 * 32 * seen)
    assert attention_flops(whole, 16) == pytest.approx(2 * 4 * 32 * 17 / 2)
    mixed = AutoConfig.for_model(
        "gemma2", sliding_window=4, head_dim=8, layer_types=["sliding_attention", "full_attention"], **sizes
    )
    assert attention_flops(mixed, 16) == pytest.approx(4 * 32 * (seen + 17 / 2))


def test_the_peak_of_a_device_is_known_by_its_name(monkeypatch: pytest.MonkeyPatch):
    names = iter(["NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "NVIDIA H200", "NVIDIA L4", "NVIDIA L40S", "Something"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: next(names))
    peaks = [device_peak(torch.device("cuda"), torch.bfloat16) for _ in range(6)]
    assert peaks == [989e12, 756e12, 989e12, 121e12, 362e12, None]
    measured = device_peak(torch.device("cpu"), torch.float32)
    assert measured is not None
    assert measured > 1e8


def test_every_step_says_how_it_went(configured):
    result = uptrain(configured())
    lines = [json.loads(line) for line in (result.run_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    for line in steps:
        assert line["tokens_per_second"] > 0
        assert line["mfu"] > 0  # of a peak that is measured on a machine where others work, too
        assert line["memory_bytes"] > 1e7
        assert line["seconds_left"] >= 0
    assert steps[-1]["seconds_left"] == 0
