"""The sdpa attention of training, where torch's own computes what the masks of packed documents hide."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from gqa.uptrain.attention_blocks import sdpa_in_blocks
from gqa.uptrain.attention_documents import has_flash_attention, sdpa_by_documents


@contextmanager
def packed_attention(device: torch.device) -> Iterator[None]:
    """While it lasts, models that use sdpa leave out what masks hide, as can be done on this device.

    What is compiled stops for it: masks are looked at, and differ from step to step.
    """
    if device.type == "cpu":
        attention = sdpa_in_blocks
    elif has_flash_attention(device):
        attention = sdpa_by_documents
    else:
        yield
        return
    ALL_ATTENTION_FUNCTIONS["sdpa"] = torch.compiler.disable(attention)
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS["sdpa"]
