"""How what is cached is divided between the latent and the rotary key: so that least is predicted to be lost.

The more the key takes, the better scores know positions, and the less of keys and values the latent holds; where the
two balance depends on how much there is in all. A few divisions are tried on two layers, from their weights alone: on
two models those chose what all layers chose, and what they chose was at every size as good as the best fixed share, or
better.
"""

from collections.abc import Iterator, Sequence

from gqa.convert.calibration import Progress
from gqa.convert.latent.factors import Factors, factored
from gqa.convert.latent.frequencies import chosen_pairs, gains_of_pairs
from gqa.convert.merging import load_layer
from gqa.convert.moments import Moments
from gqa.convert.plan import Plan
from gqa.convert.wide import WideLayer, widened


def divided(
    source: Plan, divisions: Sequence[tuple[int, int]], scale: float, progress: Progress = lambda *_: None
) -> tuple[int, int, tuple[int, ...]]:
    """The division that is predicted to lose least: of the latent, of the rotary key, and the key's pairs.

    Args:
        source: the checkpoint.
        divisions: numbers of the latent, its constant included, and of the rotary key.
        scale: what the checkpoint's softmax multiplies scores by.
        progress: told how many layers were looked at, and then how many divisions were tried.
    """
    gains = gains_of_pairs(_wide_layers(source, progress), source.freedoms[0].rotation)
    losses: list[float] = []
    for kv_rank, rope_dim in divisions if len(divisions) > 1 else ():
        asked = Factors(pairs=chosen_pairs(gains, rope_dim), rank=kv_rank - 1, scale=scale, centred=True)
        losses.append(_loss(source, asked))
        progress(f"dividing the cache, {len(losses)} of {len(divisions)}", len(losses), len(divisions))
    kv_rank, rope_dim = divisions[losses.index(min(losses))] if losses else divisions[0]
    return kv_rank, rope_dim, chosen_pairs(gains, rope_dim)


def _loss(source: Plan, asked: Factors) -> float:
    """The predicted damage of a layer from either half of the stack."""
    layers = source.shape.num_layers
    moments = Moments.unit(source.shape.hidden_size)
    return sum(
        factored(load_layer(source, layer, also_queries=True), source.freedoms[layer], moments, asked)[1].total
        for layer in {layers // 4, 3 * layers // 4}
    )


def _wide_layers(source: Plan, progress: Progress) -> Iterator[WideLayer]:
    unit, layers = Moments.unit(source.shape.hidden_size), len(source.freedoms)
    for layer, freedom in enumerate(source.freedoms):
        yield widened(load_layer(source, layer, also_queries=True), freedom, unit)
        progress(f"choosing frequencies, layer {layer + 1} of {layers}", layer + 1, layers)
