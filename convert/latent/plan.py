"""What a conversion to latent attention is going to do, worked out before anything is spent on it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from gqa.convert.calibration import Progress
from gqa.convert.checkpoint import Checkpoint, open_for
from gqa.convert.config import converted_config
from gqa.convert.derived import Entry
from gqa.convert.errors import UserError, did_you_mean
from gqa.convert.latent.division import divided
from gqa.convert.latent.factors import Factors
from gqa.convert.latent.frequencies import rope_settings, score_factor
from gqa.convert.latent.normed import spare_channels
from gqa.convert.latent.sources import ATTENTION, NORM, check_family, check_held
from gqa.convert.latent.target import MODEL_TYPES, LatentShape, family
from gqa.convert.plan import ConvertOptions, Plan, plan_conversion
from gqa.convert.pretrained import load_config
from gqa.convert.writer import OutputTensor

_CARRIED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "use_cache",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
    "attention_dropout",
)
_SAID = ("dtype", "torch_dtype", "transformers_version")
SIXTEENTHS = (5, 6, 7, 8)
"""of a budget, that the rotary key may take. Less is now and then predicted to lose less, but did not (measured on two
models, at 1/2 to 1/16 of their caches)"""


@dataclass(frozen=True, kw_only=True)
class LatentOptions:
    """How large what is cached becomes: a share of the original's cache, or numbers."""

    kv_budget: float | None = None
    """the share of the KV cache to keep"""
    kv_rank: int | None = None
    """numbers of a token's latent, of which in a youtu one is constant; in place of the share"""
    rope_dim: int | None = None
    """numbers of a token's rotary key (default: as many as a head has beside a `kv_rank`; of a share what is predicted
    to lose least, between five sixteenths and a half; of a deepseek_v3 as many as a head has, halved until they are at
    most half)"""
    model_type: str = "youtu"
    """of the result: youtu, which loses least and only transformers runs, or deepseek_v3, which engines know"""

    def __post_init__(self) -> None:
        if self.model_type not in MODEL_TYPES:
            raise UserError(
                f"unknown model_type {self.model_type!r} of a latent{did_you_mean(self.model_type, MODEL_TYPES)}; "
                f"known: {', '.join(MODEL_TYPES)}"
            )
        if self.kv_rank is None and self.kv_budget is None:
            raise UserError("how large a latent? give --kv-rank N or --kv-budget SHARE")
        if self.kv_rank is not None and self.kv_budget is not None:
            raise UserError("--kv-rank and --kv-budget both say how much to keep; give one of them")
        if self.kv_budget is not None and not 0 < self.kv_budget < 1:
            raise UserError(
                f"kv_budget is {self.kv_budget:g}; it is a share of the KV cache, between 0 and 1 (0.25 keeps a "
                "quarter)"
            )
        for name in ("kv_rank", "rope_dim"):
            value = getattr(self, name)
            if value is not None and (value < 2 or value % 2):
                raise UserError(f"{name} is {value}; it must be even and at least 2")

    def divisions(self, cached: float, head_dim: int, most: int | None = None) -> list[tuple[int, int]]:
        """Numbers of the latent and of the rotary key, or of several such where they are for us to choose from.

        Args:
            cached: numbers that the original caches for a token in a layer, on the average of layers.
            head_dim: components of a head.
            most: those of keys and values that the latent has to hold in a layer, where layers differ.

        Raises:
            UserError: the budget has no room for both, or there is not so much to keep.
        """
        if self.kv_rank is not None:
            found = [(self.kv_rank, self.rope_dim or head_dim)]
        else:
            assert self.kv_budget is not None
            budget = 2 * int(self.kv_budget * cached * (1 + 1e-9) / 2)
            keys = [self.rope_dim] if self.rope_dim else self._keys(budget, head_dim)
            found = [(budget - key, key) for key in keys]
            if min(found)[0] < 2:
                raise UserError(
                    f"kv_budget is {self.kv_budget:g}, of {cached:g} numbers that are cached for a token in a layer: "
                    f"that leaves no room for a latent beside the {keys[-1]} of the rotary key; keep more, or lower "
                    "--rope-dim"
                )
        if self.model_type == "deepseek_v3" and head_dim % found[0][1]:
            raise UserError(
                f"rope_dim is {found[0][1]}; a deepseek_v3 has one rotary base, so its key is as wide as a head, "
                f"{head_dim}, or an even part of that; take {head_dim}, or half as many"
            )
        kv_rank, rope_dim, most = max(found)[0], found[-1][1], most or int(cached)
        if kv_rank > most + 2:
            raise UserError(f"kv_rank is {kv_rank}, but {most + 2} hold all that there is; ask for no more")
        if rope_dim > most // 2:
            raise UserError(f"rope_dim is {rope_dim}, but all keys together have {most // 2}; ask for no more")
        return found

    def _keys(self, budget: int, head_dim: int) -> list[int]:
        """Numbers of the rotary key to choose from."""
        if self.model_type == "youtu":
            return sorted({max(2, 2 * ((n * budget + 16) // 32)) for n in SIXTEENTHS})
        halved = head_dim
        while 2 * halved > budget and halved % 4 == 0:
            halved //= 2
        return [halved]


@dataclass(frozen=True, kw_only=True)
class Rest(Checkpoint):
    """A checkpoint as one of the target's class, without its attention."""

    kept: Mapping[str, Entry]
    """its tensors"""

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """As in `Checkpoint`."""
        return dict(self.kept)


@dataclass(frozen=True, kw_only=True)
class LatentPlan:
    """A conversion that passed every check that needs no calibration."""

    source: Plan
    """the checkpoint; what that plan would do to its heads does not matter"""
    shape: LatentShape
    factors: Factors
    config: dict[str, Any]
    """config.json of the output"""
    merged: list[list[OutputTensor]]
    """of every layer, the tensors of its attention"""
    tensors: list[OutputTensor]
    """the whole output, in writing order"""
    no_engine: str | None
    """why engines can't hold the checkpoint with a latent, whatever its model type; None: as a deepseek_v3 they do"""

    @property
    def options(self) -> ConvertOptions:
        """Calibration, fit and dtype."""
        return self.source.options

    @property
    def dtype(self) -> torch.dtype:
        """Of the layers in the output."""
        return self.merged[0][0].dtype

    @property
    def total_bytes(self) -> int:
        """Of all weights that are written."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def cache_bytes_before(self) -> int:
        """Of a token, in all layers, at the dtype of the output."""
        heads = sum(place.kv_heads for place in self.source.places)
        return 2 * heads * self.source.shape.head_dim * self.dtype.itemsize

    @property
    def cache_bytes_after(self) -> int:
        """The same of the result."""
        return self.shape.cached * self.source.shape.num_layers * self.dtype.itemsize

    def input_norm(self, layer: int) -> torch.Tensor:
        """The weight of the norm before a layer's attention. [hidden_size]."""
        name = self.source.prefixes[layer].removesuffix(f"{ATTENTION}.") + NORM
        (norm,) = (tensor.source for tensor in self.tensors if tensor.name == name)
        assert norm is not None
        return norm.load()

    def rest(self) -> Rest:
        """What the target's class is given, but for attention."""
        return Rest(
            path=self.source.checkpoint,
            on_disk={},
            rewrite=None,
            config=self.config,
            settings=self.config,
            family=family(self.shape),
            shape=replace(self.source.shape, num_kv_heads=self.shape.num_heads),
            kept={tensor.name: tensor.source for tensor in self.tensors if tensor.source is not None},
        )

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return {
            "checkpoint": str(self.source.checkpoint),
            "model_type": self.shape.model_type,
            "rewritten_from": self.source.rewritten_from or self.source.family.model_type,
            "own_code": False,
            "method": "latent",
            **self.facts(),
            "num_heads": self.source.shape.num_heads,
            "kv_heads_before": max(place.kv_heads for place in self.source.places),
            "head_dim": self.source.shape.head_dim,
            "weight_bytes": self.total_bytes,
            "cache_bytes_per_token_before": self.cache_bytes_before,
            "cache_bytes_per_token_after": self.cache_bytes_after,
        }

    def facts(self) -> dict[str, Any]:
        """The sizes, and which rotary pairs of a head's the shared key turns like."""
        return {"latent": {**asdict(self.shape), "rotary_pairs": list(self.factors.pairs)}}


Ready = Callable[[int | None, int], None]
"""told, before any weight is read, the latent's rank (None: one of several) and the bytes that the output will take, of
several the fewest; raises UserError where there is no place for it"""


def plan_latent(
    checkpoint: Path,
    latent: LatentOptions,
    options: ConvertOptions,
    progress: Progress = lambda *_: None,
    ready: Ready = lambda *_: None,
) -> LatentPlan:
    """Check the checkpoint and lay out the output.

    Args:
        checkpoint: its directory.
        latent: how large what is cached becomes.
        options: dtype, calibration and fit; groups and method are of no use.
        progress: told how far the choice of what the rotary key takes is.
        ready: asked whether there is a place for the output.

    Raises:
        UserError: anything about the checkpoint or the options that makes the conversion impossible.
    """
    check_family(open_for(checkpoint, groups=options.groups))
    source = plan_conversion(checkpoint, options)
    config = load_config(checkpoint, source.config if source.rewritten_from else None, wrapped=True)
    no_engine = check_held(source, config, latent.model_type)
    heads, rotation = source.shape, source.freedoms[0].rotation
    cached = 2 * heads.head_dim * fmean(place.kv_heads for place in source.places)
    divisions = latent.divisions(cached, heads.head_dim, 2 * heads.num_kv_heads * heads.head_dim)
    tied = bool(config.tie_word_embeddings)
    laid_out = [_laid_out(source, _shape(source, latent.model_type, *sizes), tied=tied) for sizes in divisions]
    ready(divisions[0][0] if len(divisions) == 1 else None, min(layout.nbytes for layout in laid_out))
    scale = score_factor(config) * heads.head_dim**-0.5
    if latent.model_type == "youtu":
        kv_rank, rope_dim, pairs = divided(source, divisions, scale, progress)
    else:
        kv_rank, rope_dim = divisions[0]
        pairs = tuple(range(0, rotation.pairs, heads.head_dim // rope_dim))
        _check_normed(kv_rank, source)
    layout = laid_out[divisions.index((kv_rank, rope_dim))]
    shape = layout.shape
    carried = {key: getattr(config, key) for key in _CARRIED if hasattr(config, key)} | {
        key: source.config[key] for key in _SAID if key in source.config
    }
    written = {**carried, **shape.settings(heads.num_layers)}
    written["tie_word_embeddings"] = tied and shape.has_constant
    written["pad_token_id"] = None  # the class would put zeros in the place of that token's embedding, also when tied
    written["rope_parameters"] = (
        rope_settings(config, rotation, pairs)
        if shape.has_constant
        else dict(config.rope_parameters)  # every n-th pair turns as all do of a key an n-th as wide
    )
    unused = 1 if shape.has_constant else spare_channels(kv_rank)
    return LatentPlan(
        source=source,
        shape=shape,
        factors=Factors(pairs=pairs, rank=kv_rank - unused, scale=scale, centred=shape.has_constant),
        config=converted_config(written, {}, options.dtype),
        merged=layout.merged,
        tensors=layout.tensors,
        no_engine=no_engine,
    )


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """What the output holds, whatever the numbers in it."""

    shape: LatentShape
    merged: list[list[OutputTensor]]
    tensors: list[OutputTensor]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)


def _laid_out(source: Plan, shape: LatentShape, *, tied: bool) -> _Layout:
    merged = [_attention(source, layer, shape) for layer in range(source.shape.num_layers)]
    tensors = list(_in_writing_order(source, merged))
    return _Layout(
        shape=shape, merged=merged, tensors=tensors + (_head(tensors) if tied and not shape.has_constant else [])
    )


def _shape(source: Plan, model_type: str, kv_rank: int, rope_dim: int) -> LatentShape:
    heads = source.shape
    return LatentShape(
        model_type=model_type,
        hidden_size=heads.hidden_size,
        num_heads=heads.num_heads,
        kv_rank=kv_rank,
        rope_dim=rope_dim,
        still_dim=heads.head_dim,
        head_dim=heads.head_dim,
        query_bias=f"{source.family.q}.bias" in source.attention[0],
    )


def _check_normed(kv_rank: int, source: Plan) -> None:
    """Refuse a latent that can't be fitted to the norm behind it.

    Raises:
        UserError: nothing is known of what enters, or it has fewer components than the latent.
    """
    if source.options.calibration is None:
        raise UserError(
            "a deepseek_v3 needs --calibration: its norm divides a latent by a length that only text tells; without, "
            "leave --model-type out, for a youtu"
        )
    if kv_rank > source.shape.hidden_size:
        raise UserError(
            f"kv_rank is {kv_rank}, more than the {source.shape.hidden_size} of hidden_size; ask for no more"
        )


def _attention(source: Plan, layer: int, shape: LatentShape) -> list[OutputTensor]:
    """The tensors of a layer's attention, but for an output bias that stands in the source."""
    prefix, dtype = source.prefixes[layer], source.merged[layer][0].dtype
    bias = "o_proj.bias"
    there = not shape.has_constant or any(tensor.name == prefix + bias for tensor in source.tensors)
    shapes = shape.tensors() | ({} if there else {bias: (shape.hidden_size,)})
    return [OutputTensor(name=prefix + name, dtype=dtype, shape=size, source=None) for name, size in shapes.items()]


def _head(tensors: list[OutputTensor]) -> list[OutputTensor]:
    """The output's weights, where they were the embeddings: not all engines know a deepseek_v3 that has them tied."""
    by_name = {tensor.name: tensor for tensor in tensors}
    head = "lm_head.weight"
    return [] if head in by_name else [replace(by_name["model.embed_tokens.weight"], name=head)]


def _in_writing_order(source: Plan, merged: list[list[OutputTensor]]) -> Iterator[OutputTensor]:
    """The source's order, each layer's attention where it stood there."""
    layer_of = {
        prefix + name: layer for layer, prefix in enumerate(source.prefixes) for name in source.attention[layer]
    }
    written: set[int] = set()
    for tensor in source.tensors:
        layer = layer_of.get(tensor.name)
        if layer is None:
            yield tensor
        elif layer not in written:
            written.add(layer)
            yield from merged[layer]
