"""What weights are stored in, and whether a device is fast at products in that.

A processor without instructions for half precision still computes in it, but products of matrices take from seven to a
hundred times as long as in float32, by how the matrices lie in memory.
"""

import platform
from collections import Counter
from pathlib import Path

import torch

from gqa.convert.tensors import read_entries

HALVES = (torch.bfloat16, torch.float16)
"""the dtypes that not every device has products in"""


def is_fast(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the device has instructions of its own for matrix products in `dtype`."""
    if dtype not in HALVES:
        return True
    if device.type == "cpu":
        return _fast_on_cpu(dtype)
    if dtype == torch.bfloat16 and device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return dtype == torch.float16 or device.type != "mps"  # Apple's first two generations have no bfloat16


def dtype_name(dtype: torch.dtype) -> str:
    """As options, configurations and reports write it: `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def stored_dtype(checkpoint: Path) -> torch.dtype:
    """The dtype that most bytes of the checkpoint's weights are stored in.

    Raises:
        UserError: its weights can't be read.
    """
    sizes = Counter[torch.dtype]()
    for entry in read_entries(checkpoint).values():
        sizes[entry.dtype] += entry.nbytes
    ((stored, _),) = sizes.most_common(1)
    return stored


def _fast_on_cpu(dtype: torch.dtype) -> bool:
    mkldnn = torch.ops.mkldnn
    if dtype == torch.float16:
        return torch.backends.mkldnn.is_available() and mkldnn._is_mkldnn_fp16_supported()
    if platform.machine() in ("aarch64", "arm64"):  # on x86 the same function is content with AVX-512, which emulates
        return torch.backends.mkldnn.is_available() and mkldnn._is_mkldnn_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported()
