"""What weights are stored in, and whether a device is fast at products in that.

A processor without instructions for half precision still computes in it, but products of matrices take from seven to a
hundred times as long as in float32, by how the matrices lie in memory.
"""

import platform
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from gqa.convert.errors import UserError
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


def narrowed(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor called `name` in `dtype`.

    Raises:
        UserError: a number in it is too large for that.
    """
    cast = tensor.to(dtype)
    floats = dtype.is_floating_point and tensor.is_floating_point()
    if floats and 2 * torch.finfo(dtype).max < torch.finfo(tensor.dtype).max:  # bfloat16 reaches as far as float32
        lost = cast.isinf() & tensor.isfinite()
        if lost.any():
            largest = tensor[lost].abs().max().item()
            raise UserError(
                f"{name} holds {largest:.4g}, more than a {dtype_name(dtype)} can; take --dtype bfloat16 or float32"
            )
    return cast


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
