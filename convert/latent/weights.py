"""One layer of multi-head latent attention, in the shapes that it is computed and fitted in.

Of every token one latent c = latent [x; 1] and one key that rotates, k_rope = rope_key [x; 1], are all that is cached.
Head h scores a token by its q_rope with the rotated k_rope plus its q_still with key_up[h] [c; 1], which knows nothing
of positions, and reads value_up[h] [c; 1] from it. In a class without biases there are no ones, and c is normalised.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LatentWeights:
    """The projections, for scores that are divided by nothing: the softmax's scale is in the queries."""

    q_still: Tensor
    """[num_heads, still_dim, hidden_size], or one column more for a bias"""
    q_rope: Tensor
    """[num_heads, rope_dim, hidden_size], likewise"""
    rope_key: Tensor
    """[1, rope_dim, hidden_size + 1], or without the last column; as of q_rope, the first components of all pairs and
    then the second ones"""
    latent: Tensor
    """[1, rank, hidden_size + 1], likewise"""
    key_up: Tensor
    """[num_heads, still_dim, rank + 1], likewise"""
    value_up: Tensor
    """[num_heads, head_dim, rank + 1], likewise"""
    o: Tensor
    """[num_heads, hidden_size, head_dim]"""

    def parts(self) -> dict[str, Tensor]:
        """All of it, by name, as fresh float32 copies: what a fit may move. [heads, rows, columns] each."""
        return {part.name: getattr(self, part.name).float().clone() for part in fields(self)}

    def with_parts(self, parts: Mapping[str, Tensor]) -> "LatentWeights":
        """The layer of such parts. Gradients flow through."""
        return LatentWeights(**parts)

    def map(self, function: Callable[[Tensor], Tensor]) -> "LatentWeights":
        """Apply `function` to every part."""
        return LatentWeights(**{part.name: function(getattr(self, part.name)) for part in fields(self)})

    @property
    def num_heads(self) -> int:
        """Query heads."""
        return self.q_rope.shape[0]
