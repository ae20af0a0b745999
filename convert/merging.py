"""Merging while copying: the layers' new K and V, each made in a thread just before the writer asks for it."""

from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from gqa.convert.attention import KV_PARTS
from gqa.convert.errors import UserError
from gqa.convert.layout import read_layer, write_layer
from gqa.convert.method import Merge, method_for
from gqa.convert.plan import Plan


def merge_layer(plan: Plan, layer: int) -> dict[str, Tensor]:
    """One layer's merged tensors by full name, in the dtype of the output.

    Raises:
        UserError: a weight is NaN or infinite.
    """
    tensors = {name: entry.load() for name, entry in plan.attention[layer].items()}
    dtype = plan.options.torch_dtype
    if dtype is not None:  # merge in the wider of the two dtypes, so that a cast up loses nothing
        tensors = {name: tensor.to(torch.promote_types(tensor.dtype, dtype)) for name, tensor in tensors.items()}
    weights = read_layer(plan.family, plan.shape, tensors)
    for part in KV_PARTS:
        _check_finite(getattr(weights, part), f"{part} of {plan.prefixes[layer]}")
    merged = method_for(plan.options.method)(
        weights, Merge(groups=plan.options.groups, layer=layer, seed=plan.options.seed)
    )
    assert merged.num_kv_heads == plan.options.groups
    changed = write_layer(plan.family, weights, merged)
    return {
        plan.prefixes[layer] + name: tensor if dtype is None else tensor.to(dtype) for name, tensor in changed.items()
    }


class MergedLayers:
    """Merged tensors on demand, the next layer being merged in a thread while the writer is busy with this one."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._layer_of = {tensor.name: layer for layer, tensors in enumerate(plan.merged) for tensor in tensors}
        written = (tensor.name for tensor in plan.tensors if tensor.source is None)
        self._order = list(dict.fromkeys(self._layer_of[name] for name in written))
        # One core is busy copying; torch's threads would fight over it and, waiting for each other, burn it.
        self._threads = torch.get_num_threads()
        initargs = (max(1, self._threads - 1),)
        self._pool = ThreadPoolExecutor(max_workers=1, initializer=torch.set_num_threads, initargs=initargs)
        self._pending: dict[int, Future[dict[str, Tensor]]] = {}
        self._ready: dict[str, Tensor] = {}

    def __enter__(self) -> "MergedLayers":
        self._start_next()
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        torch.set_num_threads(self._threads)

    def take(self, name: str) -> Tensor:
        """The tensor called `name`; each can be taken once."""
        if name not in self._ready:
            future = self._pending.pop(self._layer_of[name])
            self._ready |= future.result()
            self._start_next()
        return self._ready.pop(name)

    def _start_next(self) -> None:
        if self._order:
            layer = self._order.pop(0)
            self._pending[layer] = self._pool.submit(merge_layer, self._plan, layer)


def _check_finite(heads: Tensor | None, name: str) -> None:
    """A sum is finite only if its terms are, and far quicker than looking at each; an overflow gets the closer look."""
    if heads is None:
        return
    wide = torch.promote_types(heads.dtype, torch.float32)
    for head in heads:
        if not head.sum(dtype=wide).isfinite() and not head.isfinite().all():
            raise UserError(f"{name}* holds NaN or infinity; the checkpoint is damaged: download it again")
