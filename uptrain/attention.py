"""The sdpa attention of training: what the masks of packed documents hide is not computed, where there is a way.

Sequences that hold one document each need no mask, and torch's kernels leave out by themselves what causality hides.
Transformers finds out by looking, which it can't do in a compiled model; so there it is told. On Hopper cuDNN's kernel
is asked first, since it is made for it, and torch's own for the GPUs before.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import masking_utils
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from gqa.uptrain.attention_blocks import sdpa_in_blocks
from gqa.uptrain.attention_documents import has_flash_attention, sdpa_by_documents

_PACKS, _SKIPS = "find_packed_sequence_indices", "_ignore_causal_mask_sdpa"
"""Transformers' functions that tell documents apart by their positions, and say None where a sequence holds one; and
that say whether torch's kernel needs no mask, which no release does while it compiles with torch before 2.13."""

_HOPPER = 9
"""The major compute capability of H100, H200 and GH200; on other GPUs torch's own order stands."""

_CUDNN_FIRST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


@contextmanager
def packed_attention(device: torch.device) -> Iterator[None]:
    """While it lasts, models that use sdpa leave out what masks hide, as can be done on this device.

    What is compiled stops for it where there is a mask: masks are looked at, and differ from step to step.
    """
    if device.type == "cpu":
        masked = torch.compiler.disable(sdpa_in_blocks)
    elif has_flash_attention(device):
        masked = torch.compiler.disable(sdpa_by_documents)
    else:
        masked = sdpa_attention_forward

    def attention(module: nn.Module, query: Any, key: Any, value: Any, mask: Any, **how: Any) -> tuple[Any, None]:
        return (sdpa_attention_forward if mask is None else masked)(module, query, key, value, mask, **how)

    ALL_ATTENTION_FUNCTIONS["sdpa"] = attention
    try:
        with _fastest_kernels(device):
            yield
    finally:
        del ALL_ATTENTION_FUNCTIONS["sdpa"]


def _fastest_kernels(device: torch.device) -> AbstractContextManager[object]:
    """While it lasts, torch's own attention asks first the kernels that are fastest on this device."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == _HOPPER:
        return sdpa_kernel(_CUDNN_FIRST, set_priority=True)
    return nullcontext()


@contextmanager
def packing_told(position_ids: torch.Tensor) -> Iterator[None]:
    """While it lasts, compiled models know whether any sequence holds several documents.

    They keep what was compiled for either by the function that they were compiled with; a variable that it read would
    go unnoticed.

    Args:
        position_ids: [rows, length]
    """
    several = bool((position_ids[:, -1] != position_ids.shape[1] - 1).any())
    if several or not (hasattr(masking_utils, _PACKS) and hasattr(masking_utils, _SKIPS)):
        yield
        return
    packs, skips = patch.object(masking_utils, _PACKS, _one_document_each), patch.object(masking_utils, _SKIPS, _causal)
    with packs, skips:
        yield


def _one_document_each(position_ids: torch.Tensor) -> None:  # noqa: ARG001  (transformers' signature)
    return None


def _causal(padding: Any, queries: int, keys: int, *offsets_and_window: Any) -> bool:
    """As transformers has it for a model that does not compile; releases differ in the offsets."""
    *_, window = offsets_and_window
    return padding is None and queries == keys and (window is None or keys < window)
