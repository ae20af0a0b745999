"""Which of a checkpoint's rotary frequencies the shared key turns at: those that nothing else can stand in for.

All heads of all layers share the numbers of one key. A pair of them at some frequency serves there every head that
reads it through a complex number; a second pair at the same frequency serves what the first could not. What the latent
can do as well, it should: a key that hardly turns over the distances that matter need not turn at all. So pairs go
where they keep most of the scores' mean square that a still key would lose, frequencies may be left out, and fast ones
taken more than once. The class takes any list of frequencies in the form that LongRoPE has.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gqa.convert.errors import UserError
from gqa.convert.keys import query_moments
from gqa.convert.moments import Moments
from gqa.convert.positions import Rotation
from gqa.convert.scores import mean_turn
from gqa.convert.wide import WideLayer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_AS_THEY_ARE = ("default", "linear", "llama3")
"""kinds of rotary settings that the target's class reads alike, and that change nothing but the frequencies"""
_REFUSED = {
    "dynamic": "its frequencies change with the length of the text",
    "longrope": "it has one list of frequencies for short texts and another for long ones",
}


def gains_of_pairs(layers: Iterable[WideLayer], rotation: Rotation) -> Tensor:
    """What each more pair at a frequency keeps of all layers' scores. [pairs, kv_heads].

    From the weights alone, since layers with calibration are known only one after the other.

    Args:
        layers: of the whole checkpoint, one at a time.
        rotation: of all of them.
    """
    gains = sum(_gains(layer, rotation) for layer in layers)
    assert isinstance(gains, Tensor)
    return gains


def chosen_pairs(gains: Tensor, rope_dim: int) -> tuple[int, ...]:
    """The pairs of the original that the pairs of the shared key turn like, in ascending order, some of them twice.

    Args:
        gains: of every pair, see `gains_of_pairs`.
        rope_dim: components of the shared key: even, and no more than all heads' keys have.
    """
    best = gains.flatten().argsort(descending=True, stable=True)[: rope_dim // 2]
    return tuple(sorted(int(index) // gains.shape[1] for index in best))


def _gains(layer: WideLayer, rotation: Rotation) -> Tensor:
    """What each more pair at a frequency keeps, beyond what a still key would, as a share. [pairs, kv_heads]."""
    moments = Moments.unit(layer.k.shape[-1] - 1)
    energy = query_moments(layer, moments).diagonal(dim1=1, dim2=2)  # [kv_heads, head_dim]
    first, second = layer.k[:, : 2 * rotation.pairs].chunk(2, dim=1)
    sizes = energy[:, : 2 * rotation.pairs].unflatten(1, (2, -1)).sum(1).sqrt()
    keys = (torch.complex(first, second) * sizes[..., None]).transpose(0, 1)  # [pairs, kv_heads, in]
    values = torch.linalg.eigvalsh(keys @ keys.mH).flip(-1).clamp_min(0)
    turning = 1 - mean_turn(rotation).abs().square()
    return values * turning[:, None] / values.sum()


def rope_settings(config: "PreTrainedConfig", rotation: Rotation, pairs: tuple[int, ...]) -> dict[str, Any]:
    """`rope_parameters` of the target, whose pairs turn like those of the original in `pairs`."""
    given = dict(config.rope_parameters)
    if given["rope_type"] in _AS_THEY_ARE and pairs == tuple(range(rotation.pairs)):
        return given
    wavelengths = [1 / angle for angle in rotation.angles[list(pairs)].tolist()]
    return {
        "rope_type": "longrope",
        "rope_theta": 1.0,  # so that a factor is a wavelength, in positions a radian
        "factor": 1.0,
        "attention_factor": 1.0,
        "short_factor": wavelengths,
        "long_factor": wavelengths,
        "original_max_position_embeddings": config.max_position_embeddings,
    }


def score_factor(config: "PreTrainedConfig") -> float:
    """What the original's rotary settings multiply scores by, as YaRN does.

    Raises:
        UserError: the settings are of a kind that can't be held.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    kind = config.rope_parameters["rope_type"]
    if kind in _AS_THEY_ARE:
        return 1.0
    if kind != "yarn":
        reason = _REFUSED.get(kind, "nothing is known of it")
        raise UserError(f"rope_type {kind} can't be converted to latent attention: {reason}; merge heads instead")
    return ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))[1] ** 2
