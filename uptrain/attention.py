"""The sdpa attention of training: what the masks of packed documents hide is not computed, where there is a way.

Sequences that hold one document each need no mask, and torch's kernels leave out by themselves what causality hides.
Transformers finds out by looking, which it can't do in a compiled model; so there it is told.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from transformers import masking_utils
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from gqa.uptrain.attention_blocks import sdpa_in_blocks
from gqa.uptrain.attention_documents import has_flash_attention, sdpa_by_documents

_PACKS = "find_packed_sequence_indices"
"""Transformers' function that tells documents apart by their positions, and says None where a sequence holds one."""


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
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS["sdpa"]


@contextmanager
def packing_told(position_ids: torch.Tensor) -> Iterator[None]:
    """While it lasts, compiled models know whether any sequence holds several documents.

    They keep what was compiled for either by the function that they were compiled with; a variable that it read would
    go unnoticed.

    Args:
        position_ids: [rows, length]
    """
    packs = bool((position_ids[:, -1] != position_ids.shape[1] - 1).any())
    if packs or not hasattr(masking_utils, _PACKS):
        yield
        return
    with patch.object(masking_utils, _PACKS, _one_document_each):
        yield


def _one_document_each(position_ids: torch.Tensor) -> None:  # noqa: ARG001  (transformers' signature)
    return None
