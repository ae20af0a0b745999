"""Low rank: the shared K and V that lose least, with queries and output projections adapted to them.

Heads are arbitrary bases: a value can take any invertible map that its output projection undoes, a key any map that
commutes with the rotation of positions and that its queries undo. So merging is no averaging of weights. It chooses,
among all K and V that the heads of a group could share, the ones from which each head's own scores and outputs can be
read off best. Both are small closed problems on second moments; see `gqa.convert.keys` and `gqa.convert.values`.
It needs no data; with calibration the moments are those of the text.
"""

from gqa.convert.attention import AttentionWeights
from gqa.convert.freedom import Freedom
from gqa.convert.keys import shared_key
from gqa.convert.method import Merge, Traits
from gqa.convert.moments import Moments
from gqa.convert.values import shared_value
from gqa.convert.wide import WideLayer, merged_by_group

TRAITS = Traits(rewrites_queries=True, uses_moments=True)


def merge(weights: AttentionWeights, asked: Merge) -> AttentionWeights:
    """Each contiguous group shares the K and V that lose least; q and o are rewritten to fit them."""
    return merged_by_group(weights, asked, _merge_group)


def _merge_group(group: WideLayer, freedom: Freedom, moments: Moments) -> WideLayer:
    """The heads of one group as one KV head that all their queries read."""
    key = shared_key(group, moments, freedom)
    v, o = shared_value(group, moments, freedom)
    return WideLayer(
        q=(key.maps.mT[:, None] @ group.q).flatten(0, 1)[None], k=key.w[None], v=v[None], o=o.flatten(0, 1)[None]
    )
