"""Attention on a GPU by packed documents: torch's flash attention for sequences of many lengths takes each by itself.

Where there is a mask, sdpa leaves flash attention for a kernel that reads the mask and computes what it hides, too. But
the mask of packed documents says no more than where they start, and that of a sliding window no more than its size: a
mask of which this is found to be true, token by token, is replaced by the starts. All others, and what flash attention
can't do, are left to transformers' own sdpa attention, but not to cuDNN's kernel, which torch may ask first on Hopper:
behind a mask it has given gradients that are not finite (pytorch issue 196678) and read float32 masks as bfloat16
(pytorch pull request 191612).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad
from torch.utils.weak import WeakTensorKeyDictionary
from transformers.integrations.sdpa_attention import sdpa_attention_forward

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:
    varlen_attn = None
_OPTIONS = getattr(varlen_attn, "__kwdefaults__", None) or {}
"""It has come with torch 2.10, with windows and scales in 2.11."""

_BEHIND_A_MASK = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]

_AMPERE = (8, 0)
"""The oldest compute capability that flash attention is for."""


@dataclass(frozen=True)
class Documents:
    """Sequences one behind the other, all rows of a batch in one."""

    starts: torch.Tensor
    """The first token of each, and behind these the number of all tokens: int32 [documents + 1]"""

    longest: int
    """tokens"""


_known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""What is known of masks: all layers of a forward pass have the same."""


def has_flash_attention(device: torch.device) -> bool:
    """Whether documents can be told apart so on this device."""
    if device.type != "cuda" or "window_size" not in _OPTIONS or not torch.backends.cuda.is_flash_attention_available():
        return False
    return torch.cuda.get_device_capability(device) >= _AMPERE


def sdpa_by_documents(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **how: Any,
) -> tuple[torch.Tensor, None]:
    """As `sdpa_attention_forward`: queries [rows, heads, length, head_dim] -> [rows, length, heads, head_dim]."""
    window, dtype = how.get("sliding_window"), _dtype(query)
    fits = attention_mask is not None and _fits(query, key, value, dtype, how)
    documents = documents_of(attention_mask, len(query), window) if fits else None
    if documents is None:
        with sdpa_kernel(_BEHIND_A_MASK):
            return sdpa_attention_forward(module, query, key, value, attention_mask, **how)
    assert varlen_attn is not None
    (rows, _, length, _), longest = query.shape, documents.longest
    outputs = varlen_attn(
        *(part.transpose(1, 2).flatten(0, 1).to(dtype) for part in (query, key, value)),  # [tokens, heads, head_dim]
        *(documents.starts, documents.starts, longest, longest),
        scale=how.get("scaling"),
        window_size=(window - 1 if window else -1, 0),
        **_grouped(query, key),
    )
    assert isinstance(outputs, torch.Tensor)
    return outputs.unflatten(0, (rows, length)), None


def documents_of(mask: torch.Tensor, rows: int, window: int | None) -> Documents | None:
    """The documents, if the mask lets every token see those of its own document up to itself, and no others.

    Args:
        mask: True where a query sees a key, [rows, 1, length, length]; of any other kind there are none.
        rows: sequences in the batch.
        window: how many tokens a token sees, itself among them; None: all.
    """
    found = _known.setdefault(mask, {})
    if window not in found:
        by_token = mask.dtype == torch.bool and mask.ndim == 4 and mask.shape == (rows, 1, *mask.shape[-1:] * 2)
        found[window] = _documents_of(mask[:, 0], window) if by_token else None
    return found[window]


def _documents_of(seen: torch.Tensor, window: int | None) -> Documents | None:
    opens = pad(~seen.diagonal(-1, 1, 2), (1, 0), value=True)  # a token that does not see the one before it
    number, index = opens.cumsum(1), torch.arange(seen.shape[1], device=seen.device)
    behind = index[:, None] - index
    expected = (number[:, :, None] == number[:, None]) & (behind >= 0)
    if window:
        expected &= behind < window
    if not torch.equal(expected, seen):
        return None
    starts = pad(opens.flatten().nonzero().flatten(), (0, 1), value=opens.numel()).to(torch.int32)
    return Documents(starts, int(starts.diff().max()))


def _fits(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dtype: torch.dtype, how: dict[str, Any]) -> bool:
    """Whether flash attention can do it, and a mask is all that there is to it."""
    head_dim, shape = query.shape[3], query.shape[2:]
    if how.get("position_bias") is not None or how.get("softcap") is not None or how.get("dropout"):
        return False
    if dtype not in (torch.bfloat16, torch.float16) or head_dim % 8 or head_dim > 256:
        return False
    return key.shape[2:] == shape == value.shape[2:]


def _dtype(query: torch.Tensor) -> torch.dtype:
    """What attention computes in: rotated queries may come in fp32, and torch's own attention heeds autocast."""
    device = query.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype


def _grouped(query: torch.Tensor, key: torch.Tensor) -> dict[str, bool]:
    """What says that there are fewer KV heads, to releases of torch that want to be told."""
    return {"enable_gqa": True} if "enable_gqa" in _OPTIONS and query.shape[1] != key.shape[1] else {}
