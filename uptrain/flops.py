"""Floating-point operations of training, counted from the architecture, and what a device can do in a second.

A product of matrices with n weights takes 2n operations for every token; embeddings are looked up and take none, of
experts those count that a token passes through. Attention takes 4 * head_dim for every query head and every key that a
token sees: half the sequence on average, as attention is causal, or what a window leaves of it. (Of latent attention it
takes twice the sizes of a key and of a value, which differ.) So fewer KV heads save the weights of their projections,
and nothing else here. Of an encoder-decoder the encoder's weights, and those of keys and values in cross-attention, are
for every token of the source; all others are for those of the target. Backward takes twice as much, less what is not
trained; a teacher runs forward only. What is computed twice to save memory counts once: this is model FLOPs utilisation
(MFU).
"""

import re
import time
from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PEAKS: dict[str, tuple[float, float]] = {
    "B200": (2250, 75),
    "GB200": (2500, 80),
    "H200": (989, 67),
    "GH200": (989, 67),
    "H100 PCIe": (756, 51),
    "H100 NVL": (835, 60),
    "H100": (989, 67),
    "H800": (989, 67),
    "H20": (148, 44),
    "A100": (312, 19.5),
    "A800": (312, 19.5),
    "A40": (149.7, 37.4),
    "A30": (165, 10.3),
    "A10G": (70, 35),
    "A10": (125, 31.2),
    "L40S": (362, 91.6),
    "L40": (181, 90.5),
    "L4": (121, 30.3),
    "RTX 5090": (209.5, 104.8),
    "RTX 4090": (165.2, 82.6),
    "RTX 3090": (71, 35.6),
    "MI300X": (1307, 163.4),
    "MI325X": (1307, 163.4),
    "MI250": (181, 45.3),
}
"""Dense TFLOP/s in bfloat16 and in float32, from the makers' data sheets, by what a device's name contains."""


def training_flops(model: "PreTrainedModel", length: int, teacher: "PreTrainedModel | None" = None) -> float:
    """Operations for every token of training a decoder on sequences of `length` tokens, after a teacher's if any."""
    weights, trained = matrix_weights(model)
    attention = attention_flops(model.config, length)
    total = 4 * weights + 2 * trained + 3 * attention
    if teacher is not None:
        total += 2 * matrix_weights(teacher)[0] + attention_flops(teacher.config, length)
    return total


def pair_flops(
    model: "PreTrainedModel", source: float, target: float, teacher: "PreTrainedModel | None" = None
) -> float:
    """Operations of training an encoder-decoder on a pair, after a teacher's if there is one.

    Args:
        model: the one that learns.
        source: tokens, or positions, that the encoder computes.
        target: tokens of the decoder.
        teacher: runs forward.
    """
    weights, trained, attention = _of_a_pair(model, source, target)
    total = 4 * weights + 2 * trained + 3 * attention
    if teacher is not None:
        weights, _, attention = _of_a_pair(teacher, source, target)
        total += 2 * weights + attention
    return total


def _of_a_pair(model: "PreTrainedModel", source: float, target: float) -> tuple[float, float, float]:
    """The products with all weights, those with weights that are trained, and attention's operations, forward."""
    encoder = model.get_encoder()
    inside = set(encoder.modules())
    weights = trained = attention = 0.0
    for path, module, weight, share in _matrices(model):
        crosses = re.search(_CROSS, path) is not None
        of_source = module in inside or (crosses and re.search(_KEYS_AND_VALUES, path) is not None)
        count = share * weight.numel() * (source if of_source else target) * _outputs_a_position(module, encoder)
        weights += count
        trained += count * weight.requires_grad
        if re.search(_QUERIES, path):
            keys = source if crosses or module in inside else (target + 1) / 2
            attention += 4 * len(weight) * keys * (source if of_source else target)
    return weights, trained, attention


_CROSS = r"\.(?:encoder_attn|EncDecAttention)\."
_QUERIES, _KEYS_AND_VALUES = r"\.(?:q|q_proj)$", r"\.(?:[kv]|[kv]_proj)$"
"""How transformers names the projections of encoder-decoders, and how rewritten checkpoints do."""


def _outputs_a_position(module: nn.Module, encoder: nn.Module) -> int:
    """How often a convolution's weights are used for a position of the encoder: later ones may skip some."""
    convolutions = [other for other in encoder.modules() if isinstance(other, nn.Conv1d)]
    if module not in convolutions:
        return 1
    return prod(other.stride[0] for other in convolutions[convolutions.index(module) + 1 :])


def matrix_weights(model: "PreTrainedModel") -> tuple[float, float]:
    """How many weights a token is multiplied by, and how many of these are trained."""
    total = trained = 0.0
    for _, _, weight, share in _matrices(model):
        total += share * weight.numel()
        trained += share * weight.numel() * weight.requires_grad
    return total, trained


def _matrices(model: "PreTrainedModel") -> Iterator[tuple[str, nn.Module, nn.Parameter, float]]:
    """All weights that a token may be multiplied by: their module and its path, and the share of tokens that are."""
    experts, chosen = experts_of(model.config)
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            continue
        for name, weight in module.named_parameters(recurse=False):
            if weight.ndim in (2, 3) and not name.endswith("bias"):  # experts have rows of biases
                yield path, module, weight, chosen / experts if "experts" in f"{path}.{name}".split(".") else 1.0


def attention_flops(config: Any, length: int, *, causal: bool = True) -> float:
    """Operations of all layers' attention for every token, forward."""
    heads = config.num_attention_heads
    if getattr(config, "kv_lora_rank", None):  # a `head_dim` there is that of the rotary part
        both = config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
    else:
        both = 2 * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    windows = _windows(config)
    return sum(2 * heads * both * (_keys(length, window) if causal else length) for window in windows)


def device_peak(device: torch.device, dtype: torch.dtype) -> float | None:
    """Operations a second that the device is built for, in `dtype`; of a CPU what one large product reaches now."""
    if device.type == "cpu":
        return _measured(dtype)
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    found = max((key for key in _PEAKS if key in name), key=len, default=None)
    if found is None:
        return None
    halves, singles = _PEAKS[found]
    return 1e12 * (singles if dtype == torch.float32 else halves)


def _measured(dtype: torch.dtype, size: int = 1024, rounds: int = 4) -> float:
    matrix = torch.ones(size, size, dtype=dtype)
    best = float("inf")
    for _ in range(rounds):
        began = time.perf_counter()
        torch.mm(matrix, matrix)
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def _keys(length: int, window: int | None) -> float:
    """How many keys a token sees, on average over a sequence."""
    seen = min(length, window or length)
    return (seen * (seen + 1) / 2 + (length - seen) * seen) / length


def _windows(config: Any) -> list[int | None]:
    """The window of every layer's attention; None: it sees all that came before."""
    kinds = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    if kinds is None:
        return [window if getattr(config, "use_sliding_window", True) else None] * config.num_hidden_layers
    return [window if "sliding" in kind else None for kind in kinds]


def experts_of(config: Any) -> tuple[float, float]:
    """How many experts a layer has and how many of them a token passes through, on average; of no experts: 1 and 1."""
    experts = _first(config, "num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    chosen = _first(config, "num_experts_per_tok", "moe_topk")
    return (experts, chosen) if experts and chosen else (1.0, 1.0)


def _first(config: Any, *names: str) -> float:
    """The first of these numbers that there is, otherwise 0; where each layer has its own, their mean."""
    found = next((value for name in names if (value := getattr(config, name, None))), 0)
    return sum(found) / len(found) if isinstance(found, list) else found
