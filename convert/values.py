"""The best shared value of a group, and the output projections that go with it.

A head adds o_h v_h x to the layer's output. One W [head_dim, in] is to serve all heads of a group,
with a new o_h' for each, so that sum_h E|o_h v_h x - o_h' W x|^2 is least.
"""

import torch
from torch import Tensor

from gqa.convert.algebra import low_rank, solve
from gqa.convert.freedom import Freedom
from gqa.convert.moments import Moments
from gqa.convert.wide import WideLayer


def shared_value(group: WideLayer, moments: Moments, freedom: Freedom) -> tuple[Tensor, Tensor]:
    """W [head_dim, in] and the new output projections [kv_heads, queries, hidden_size, head_dim].

    Args:
        group: the heads to merge.
        moments: of what goes in.
        freedom: where values are free, W may be any map. Otherwise it is the mean, weighted by what comes out, in the
            components as they are, and the output projections are fitted; to the size of every component alone where
            something between attention and them sees it.
    """
    head_dim, width = group.v.shape[1:]
    outputs = (group.o.mT @ group.o).sum(1)  # [kv_heads, d, d]
    stacked = group.v.reshape(-1, width)
    if freedom.values == "free":
        gram = moments.between(stacked, stacked)
        combination, maps = low_rank(gram, outputs, head_dim)
        scale = gram.diagonal().mean().sqrt()  # as large as the values were
        scale = scale if scale > 0 else torch.ones_like(scale)
        return scale * (combination @ stacked), group.o @ (maps / scale)[:, None]
    w = solve(outputs.sum(0), (outputs @ group.v).sum(0))
    gram, cross = moments.between(w, w), moments.between(w.expand_as(group.v), group.v)  # [d, d], [kv_heads, d, d]
    if freedom.values in ("gated", "normed"):
        sizes = solve(outputs * gram, (cross @ outputs).diagonal(dim1=1, dim2=2)[..., None])  # [kv_heads, d, 1]
        return w, group.o * sizes.mT[:, None]
    maps = solve(gram, cross).mT  # [kv_heads, d, d]
    return w, group.o @ maps[:, None]
