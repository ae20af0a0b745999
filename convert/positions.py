"""What rotary positions leave free: which components of a layer's heads rotate together, and how fast.

The angles are those of transformers' own rotary embedding for the checkpoint, so that every kind of scaling, per-layer
base and partial rotation is the class's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gqa.convert.checkpoint import Checkpoint
from gqa.convert.errors import UserError
from gqa.convert.family import Family

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """How the components of a head turn with the position of its token.

    Methods work in rotary order: the first components of all pairs, then the second ones, then what does not rotate.
    """

    angles: Tensor
    """[pairs] float64, radians per position; empty where nothing rotates"""
    order: Tensor
    """[head_dim] int64: the components of a head in rotary order"""
    context: int
    """positions that the model is made for"""

    @property
    def pairs(self) -> int:
        """Pairs of components that turn."""
        return len(self.angles)

    @staticmethod
    def none(head_dim: int, context: int = 1) -> "Rotation":
        """Heads that know nothing of positions."""
        return Rotation(
            angles=torch.empty(0, dtype=torch.float64), order=torch.arange(head_dim), context=max(context, 1)
        )


def rotations(opened: Checkpoint) -> list[Rotation]:
    """Every layer's rotation.

    Raises:
        UserError: the configuration doesn't fit transformers' class.
    """
    from gqa.convert.skeleton import empty_model

    family, shape, checkpoint = opened.family, opened.shape, opened.path
    model = empty_model(opened, dtype=torch.float32, device=torch.device("cpu"), num_kv_heads=shape.num_kv_heads)
    config = model.config.get_text_config(decoder=True)
    context = int(getattr(config, "max_position_embeddings", 0) or 0)
    still = Rotation.none(shape.head_dim, context)
    if family.rotary == "none":
        return [still] * shape.num_layers
    buffers = {name.rpartition(".")[2]: buffer for name, buffer in model.named_buffers() if "rotary_emb" in name}
    by_base = {module.config.rope_parameters["rope_theta"]: module.inv_freq for module in _one_for_each_base(model)}
    kinds = getattr(config, "layer_types", None) or [""] * shape.num_layers
    bases = getattr(config, family.rope_base_key) if family.rope_base_key else [None] * shape.num_layers
    found = []
    for kind, base, turn in zip(kinds, bases, _turns(family, config, kinds), strict=True):
        if not turn:
            found.append(still)
            continue
        angles = by_base[base] if base else buffers.get("inv_freq", buffers.get(f"{kind}_inv_freq"))
        if angles is None:
            raise UserError(f"{checkpoint}: transformers' {family.model_type} has no rotary angles for its layers")
        found.append(_rotation(angles.double(), shape.head_dim, family.rotary, context))
    return found


def _one_for_each_base(model: "PreTrainedModel") -> list[nn.Module]:
    """The rotary embeddings of a class that has one for each base that its layers name."""
    return [module for name, module in model.named_modules() if ".rotary_embs." in name]


def _turns(family: Family, config: "PretrainedConfig", kinds: Sequence[str]) -> list[bool]:
    """Whether q and k rotate, layer by layer. `kinds` are the layers' types."""
    if family.no_rope_key:
        return [bool(entry) for entry in getattr(config, family.no_rope_key)]
    if family.rope_base_key:
        return [bool(base) for base in getattr(config, family.rope_base_key)]
    windowed = getattr(config, "sliding_window", None) is not None
    still = {kind for kind, settings in (getattr(config, "rope_parameters", None) or {}).items() if settings is None}
    return [kind not in still and not (windowed and kind == family.no_rope_type) for kind in kinds]


def _rotation(angles: Tensor, head_dim: int, layout: str, context: int) -> Rotation:
    pairs = len(angles)
    turning = torch.arange(2 * pairs)
    if layout == "interleaved":  # (0, 1), (2, 3), ...: firsts, then seconds
        turning = turning.view(pairs, 2).T.flatten()
    return Rotation(angles=angles, order=torch.cat([turning, torch.arange(2 * pairs, head_dim)]), context=context)
