"""How the layers of a conversion to latent attention are made, with calibration or without."""

from dataclasses import asdict, replace
from functools import partial

from torch import Tensor

from gqa.convert.ahead import Making, Take
from gqa.convert.calibration import stage
from gqa.convert.damage import Damage
from gqa.convert.latent.factors import factored
from gqa.convert.latent.normed import under_norm
from gqa.convert.latent.plan import LatentPlan
from gqa.convert.latent.target import tensors_of
from gqa.convert.latent.weights import LatentWeights
from gqa.convert.merging import load_layer
from gqa.convert.moments import Moments
from gqa.convert.ondemand import LayersOnDemand, Made
from gqa.convert.precision import narrowed


def make_layer(plan: LatentPlan, layer: int, moments: Moments | None = None) -> tuple[LatentWeights, Damage]:
    """A layer by what enters it, measured or assumed, and what it is predicted to lose.

    Raises:
        UserError: a weight is NaN or infinite.
    """
    weights = load_layer(plan.source, layer, also_queries=True)
    known = moments.shrunk() if moments else Moments.unit(plan.shape.hidden_size)
    found, damage = factored(weights, plan.source.freedoms[layer], known, plan.factors)
    if not plan.shape.has_constant:
        assert moments is not None
        found = under_norm(found, plan.input_norm(layer), moments, plan.shape.kv_rank)
    return found, damage


def stored_tensors(plan: LatentPlan, layer: int, weights: LatentWeights) -> dict[str, Tensor]:
    """The tensors of a layer's attention as the output has them, by full name."""
    made = _all_tensors(plan, weights)
    prefix = plan.source.prefixes[layer]
    return {
        item.name: narrowed(item.name, made[item.name.removeprefix(prefix)], item.dtype) for item in plan.merged[layer]
    }


def latent_layers(plan: LatentPlan) -> LayersOnDemand:
    """The layers without calibration."""

    def make(layer: int) -> Made:
        weights, damage = make_layer(plan, layer)
        return stored_tensors(plan, layer, weights), _record(damage)

    return LayersOnDemand(plan.merged, make)


def latent_making(plan: LatentPlan) -> Making[LatentWeights]:
    """The layers with calibration."""
    checkpoint, calibration = plan.source.checkpoint, plan.options.calibration
    assert calibration is not None

    def make(layer: int, moments: Moments) -> tuple[LatentWeights, dict[str, object]]:
        weights, damage = make_layer(plan, layer, moments)
        return weights, _record(damage)

    def read(layer: int, take: Take) -> dict[str, Tensor]:
        return {item.name.removeprefix(plan.source.prefixes[layer]): take(item.name) for item in plan.merged[layer]}

    return Making(
        checkpoint=checkpoint,
        calibration=calibration,
        fit=plan.options.fit,
        settings=repr((plan.shape, plan.factors, replace(plan.options, max_shard_size="1GB"))),
        num_layers=len(plan.merged),
        dtype=plan.dtype,
        original=partial(stage, checkpoint, calibration),
        converted=partial(stage, checkpoint, calibration, opened=plan.rest()),
        make=make,
        written=partial(_all_tensors, plan),
        in_class=partial(_all_tensors, plan),
        tensors=partial(stored_tensors, plan),
        read=read,
    )


def _all_tensors(plan: LatentPlan, weights: LatentWeights) -> dict[str, Tensor]:
    """With the output's bias, of zeros, where the original has none."""
    tensors = tensors_of(weights, plan.shape)
    if len(plan.merged[0]) == len(tensors):
        return tensors
    return tensors | {"o_proj.bias": weights.o.new_zeros(plan.shape.hidden_size)}


def _record(damage: Damage) -> dict[str, object]:
    """What `gqa.json` says of the layer."""
    return {"predicted_damage": asdict(damage)}
