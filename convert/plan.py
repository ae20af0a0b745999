"""What a conversion is going to do, worked out from headers alone, before a single weight is read."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ByteSize, TypeAdapter, ValidationError

from gqa.convert.calibration import CalibrationOptions
from gqa.convert.checkpoint import open_for
from gqa.convert.derived import DerivedEntry, Entry
from gqa.convert.errors import UserError, did_you_mean
from gqa.convert.families.rewritten import REWRITTEN
from gqa.convert.family import Family, HeadShape
from gqa.convert.freedom import Freedom
from gqa.convert.layerfit import FitOptions
from gqa.convert.layout import (
    attention_shapes,
    kv_shapes,
    merged_shape,
    meta_layer,
    required_names,
    write_layer,
)
from gqa.convert.method import method_names, traits_of
from gqa.convert.places import Place, freedoms_of, places
from gqa.convert.precision import dtype_name
from gqa.convert.seeds import check_seed
from gqa.convert.tensors import FLOATS
from gqa.convert.writer import OutputTensor


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """How to convert."""

    groups: int
    """KV heads to keep in every layer; 1 is multi-query attention"""
    method: str = "mean"
    """how the heads of a group become one: a file in `convert/methods/`"""
    grouping: Literal["auto", "contiguous", "similar"] = "auto"
    """which heads share: neighbours, or those that lose least together; `auto` is similar for methods that rewrite
    queries anyway, and contiguous for the others"""
    encoder: bool = False
    """of an encoder-decoder: whether the heads of its encoder merge too"""
    seed: int = 0
    """for methods that draw random numbers"""
    calibration: CalibrationOptions | None = None
    """text to measure what enters the projections on; None: nothing is measured"""
    keep_architecture: bool = False
    """have the output in our own code, its class the checkpoint's own but for attention, where otherwise one of
    transformers' classes would hold it rewritten"""
    fit: FitOptions | None = None
    """fit every layer to the calibration text after merging it; None: keep what merging gives"""
    dtype: str | None = None
    """cast all floating-point weights: float32, float16 or bfloat16 (default: as they are)"""
    max_shard_size: str = "5GB"
    """no weight file grows beyond this unless a single tensor does"""

    def __post_init__(self) -> None:
        if self.groups < 1:
            raise UserError(f"groups is {self.groups}; it must be at least 1 (1 is multi-query attention)")
        traits = traits_of(self.method)
        if self.fit and not self.calibration:
            raise UserError("a fit needs text to learn from: name it with --calibration")
        if self.fit and self.calibration and not self.calibration.held_out_tokens:
            raise UserError("a fit is checked on text held out; give the calibration held_out_tokens, 16384 say")
        if self.calibration and not (self.fit or traits.uses_moments):
            knowing = ", ".join(name for name in method_names() if traits_of(name).uses_moments)
            raise UserError(
                f"method {self.method} has no use for calibration; leave it out, or choose one of {knowing}"
            )
        check_seed(self.seed)
        _ = self.torch_dtype, self.max_shard_bytes

    @property
    def moves_heads(self) -> bool:
        """Whether heads change places so that similar ones share."""
        return self.grouping == "similar" or (self.grouping == "auto" and traits_of(self.method).rewrites_queries)

    @property
    def rewrites_queries(self) -> bool:
        """Whether query and output projections are written anew, beside K and V."""
        return self.fit is not None or self.moves_heads or traits_of(self.method).rewrites_queries

    @cached_property
    def torch_dtype(self) -> torch.dtype | None:
        """`dtype` as torch knows it."""
        if self.dtype is None:
            return None
        known = {dtype_name(dtype): dtype for dtype in FLOATS}
        if self.dtype not in known:
            raise UserError(f"unknown dtype {self.dtype!r}{did_you_mean(self.dtype, known)}; known: {', '.join(known)}")
        return known[self.dtype]

    @cached_property
    def max_shard_bytes(self) -> int:
        """`max_shard_size` as a number of bytes."""
        try:
            size = TypeAdapter(ByteSize).validate_python(self.max_shard_size)
        except ValidationError:
            size = ByteSize(0)
        if size < 1:
            raise UserError(f"max_shard_size is {self.max_shard_size!r}; write a size such as 5GB or 500MB")
        return int(size)


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """What happens to one layer's attention. Bytes are those of the tensors that hold K and V."""

    site: str | None
    """which of the layer's attentions, in an encoder-decoder"""
    layer: int
    num_heads: int
    kv_heads_before: int
    kv_heads_after: int
    bytes_before: int
    bytes_after: int
    parameters_saved: int
    cache_bytes_before: int
    """KV-cache bytes a token, at the dtype of the weights; of the source's tokens in cross-attention"""
    cache_bytes_after: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A conversion that passed every check that needs no weights."""

    checkpoint: Path
    rewritten_from: str | None
    """the model type of the checkpoint, where its own class has no KV heads and `family` is another's"""
    group_choices: list[int]
    """the numbers of KV heads that its own can be merged into, ascending"""
    config: dict[str, Any]
    """config.json of the family's class"""
    settings: dict[str, Any]
    """of the language model: `config` itself, or what a multimodal one says of it"""
    family: Family
    shape: HeadShape
    """of every layer's attention; of the decoder's self-attention, in an encoder-decoder"""
    options: ConvertOptions
    places: list[Place]
    """the attentions that are converted: every layer's, or, in an encoder-decoder, every layer's at every site; all
    that is said of layers below is said of these, in their order"""
    attention: list[dict[str, Entry]]
    """of every layer, its attention tensors by name after the prefix"""
    freedoms: list[Freedom]
    """of every layer, what may be changed in it; empty where only K and V are pooled, which needs to know nothing"""
    merged: list[list[OutputTensor]]
    """of every layer, the tensors that the merge produces"""
    tensors: list[OutputTensor]
    """the whole output, in writing order"""
    layers: list[LayerPlan]

    @property
    def prefixes(self) -> list[str]:
        """Of every layer's attention tensors."""
        return [place.prefix for place in self.places]

    @property
    def own_code(self) -> bool:
        """Whether the output's class is one of ours."""
        return self.family.own_code

    @property
    def total_bytes(self) -> int:
        """Bytes of weights in the output."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def grouping(self) -> Literal["contiguous", "similar"]:
        """Which heads share: similar ones only where some may change places."""
        moves = self.options.moves_heads and any(freedom.heads_move for freedom in self.freedoms)
        return "similar" if moves else "contiguous"

    @property
    def restrictions(self) -> list[str]:
        """Sentences on what the family keeps the method from doing."""
        restrictions = list(dict.fromkeys(reason for freedom in self.freedoms for reason in freedom.reasons))
        if self.options.moves_heads:
            restrictions += self._heads_that_stay()
        return restrictions

    def _heads_that_stay(self) -> Iterator[str]:
        """One sentence or none."""
        freedoms = zip(self.places, self.freedoms, strict=True)
        staying = [place.site.name if place.site else "" for place, freedom in freedoms if not freedom.heads_move]
        if staying:
            sites = ", ".join(filter(None, dict.fromkeys(staying)))
            where = f" ({sites})" if sites else ""
            yield f"positions bias every head in its own way, so heads stay where they are{where}"

    @property
    def rewriting(self) -> str | None:
        """Sentences on what the output is, where it is not of the checkpoint's class or its layers differed."""
        return " ".join(filter(None, (self._change_of_class, self._levelling))) or None

    @property
    def original_runs(self) -> bool:
        """Whether transformers runs the checkpoint as it stands."""
        model_type = self.rewritten_from or self.family.model_type
        return not (self.levelled or (model_type in REWRITTEN and REWRITTEN[model_type].own_code))

    @property
    def levelled(self) -> bool:
        """Whether layers differ in their KV heads on disk."""
        return any(place.kv_heads != place.shape.num_kv_heads for place in self.places)

    @property
    def _levelling(self) -> str | None:
        if not self.levelled:
            return None
        groups, heads = self.options.groups, sorted({place.kv_heads for place in self.places})
        said = f"{', '.join(map(str, heads[:-1]))} or {heads[-1]}"
        done = f"Where {groups} is a multiple, heads are repeated, which changes nothing; elsewhere they merge."
        if not any(groups % count for count in heads):
            done = "Heads are repeated, which changes nothing."
        return f"Layers have {said} KV heads; in the output each has {groups}. {done}"

    @property
    def _change_of_class(self) -> str | None:
        if self.rewritten_from is None:
            return None
        but = " but for the heads that merge" if self.options.groups < self.shape.num_kv_heads else ""
        if self.own_code:
            model_type = self.family.model_type
            return (
                f"{self.rewritten_from} has no KV heads in transformers; the output is a {model_type} checkpoint, the "
                f"same{but} in our own code, which goes with it (modeling_{model_type}.py): it loads with "
                "trust_remote_code=True, or after gqa.convert.modeling.register()."
            )
        what = "class" if REWRITTEN[self.rewritten_from].own_code else "KV heads"
        return (
            f"{self.rewritten_from} has no {what} in transformers; the output is a {self.family.model_type} "
            f"checkpoint, equal up to rounding{but}."
        )

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values: the totals, and one entry a layer."""
        return {
            "checkpoint": str(self.checkpoint),
            "model_type": self.family.model_type,
            "rewritten_from": self.rewritten_from,
            "own_code": self.own_code,
            "method": self.options.method,
            "grouping": self.grouping,
            "restrictions": self.restrictions,
            "groups": self.options.groups,
            "num_heads": self.shape.num_heads,
            "kv_heads_before": max(place.kv_heads for place in self.places),
            "head_dim": self.shape.head_dim,
            "weight_bytes": self.total_bytes,
            "parameters_saved": sum(layer.parameters_saved for layer in self.layers),
            "cache_bytes_per_token_before": sum(layer.cache_bytes_before for layer in self.layers),
            "cache_bytes_per_token_after": sum(layer.cache_bytes_after for layer in self.layers),
            "layers": [asdict(layer) for layer in self.layers],
        }


Layer = dict[str, Entry]
"""a layer's attention tensors, by name after the layer's prefix"""


def plan_conversion(checkpoint: Path, options: ConvertOptions) -> Plan:
    """Check the checkpoint against its family and lay out the output.

    Raises:
        UserError: anything about the checkpoint or the options that makes the conversion impossible.
    """
    opened = open_for(checkpoint, groups=options.groups, keep_architecture=options.keep_architecture)
    config, family, shape = opened.config, opened.family, opened.shape
    opened.check_groups(options.groups, encoder=options.encoder)
    if options.calibration:
        opened.check_calibrated()
    entries = {name: _computed_in(options.torch_dtype, entry) for name, entry in opened.entries.items()}
    found = places(family, opened.settings, set(entries), encoder=options.encoder, levelled=opened.levelled)
    attention = [_attention(place, entries) for place in found]
    _check_attention(found, attention)
    freedoms = freedoms_of(opened, found) if options.rewrites_queries else []
    merged = [_merged(place, layer, options) for place, layer in zip(found, attention, strict=True)]
    return Plan(
        checkpoint=checkpoint,
        rewritten_from=opened.rewritten_from,
        group_choices=opened.group_choices(encoder=options.encoder),
        config=config,
        settings=opened.settings,
        family=family,
        shape=shape,
        options=options,
        places=found,
        attention=attention,
        freedoms=freedoms,
        merged=merged,
        tensors=list(_in_writing_order(entries, found, merged, options.torch_dtype)),
        layers=[
            _layer_plan(place, layer, tensors, options)
            for place, layer, tensors in zip(found, attention, merged, strict=True)
        ],
    )


def _attention(place: Place, entries: Mapping[str, Entry]) -> Layer:
    """The tensors of one attention."""
    names = attention_shapes(place.family, place.shape)
    return {name: entries[place.prefix + name] for name in names if place.prefix + name in entries}


def _computed_in(dtype: torch.dtype | None, entry: Entry) -> Entry:
    """What is going to be cast up is computed in the wider dtype from the start."""
    return entry.widened(dtype) if dtype and isinstance(entry, DerivedEntry) and entry.dtype in FLOATS else entry


def _check_attention(found: list[Place], attention: list[Layer]) -> None:
    """Every layer must have the required tensors and the same optional ones, in the shapes that `config` implies."""
    for site in dict.fromkeys(place.site for place in found):
        layers = [(place, layer) for place, layer in zip(found, attention, strict=True) if place.site == site]
        everywhere = {name for place, layer in layers for name in (*layer, *required_names(place.family))}
        for place, layer in layers:
            expected = attention_shapes(place.family, place.shape)
            for name in sorted(everywhere):
                _check_tensor(place.prefix + name, layer.get(name), expected[name])


def _check_tensor(name: str, entry: Entry | None, shape: tuple[int, ...]) -> None:
    if entry is None:
        raise UserError(f"tensor {name} is missing from the checkpoint; download it again")
    if entry.shape != shape:
        raise UserError(
            f"tensor {name} has shape {list(entry.shape)}, but config.json implies {list(shape)}; the checkpoint and "
            "its configuration do not belong together"
        )
    if entry.dtype not in FLOATS:
        raise UserError(f"tensor {name} is {entry.dtype}; K and V are merged in floating point: dequantise first")


def _merged(place: Place, layer: Layer, options: ConvertOptions) -> list[OutputTensor]:
    """The tensors that hold the merged K and V of one layer; their shapes come from the layout itself, on no data."""
    family = place.family
    before = meta_layer(family, place.shape, set(layer))
    after = write_layer(family, before, merged_shape(before, options.groups, rewrites=options.rewrites_queries))
    dtype = options.torch_dtype or layer[required_names(family)[0]].dtype
    dtypes = {name: options.torch_dtype or layer[name].dtype if name in layer else dtype for name in after}
    return [
        OutputTensor(name=place.prefix + name, dtype=dtypes[name], shape=tuple(tensor.shape), source=None)
        for name, tensor in after.items()
    ]


def _in_writing_order(
    entries: Mapping[str, Entry],
    found: list[Place],
    merged: list[list[OutputTensor]],
    dtype: torch.dtype | None,
) -> Iterator[OutputTensor]:
    """The source's order, each layer's merged tensors together where the first tensor that they replace stood."""
    layer_of = {
        place.prefix + name: number
        for number, place in enumerate(found)
        for name in kv_shapes(place.family, place.shape)
    }
    layer_of |= {tensor.name: number for number, tensors in enumerate(merged) for tensor in tensors}
    written: set[int] = set()
    for name, entry in entries.items():
        layer = layer_of.get(name)
        if layer is None:
            cast = dtype if dtype and entry.dtype in FLOATS else entry.dtype
            yield OutputTensor(name=name, dtype=cast, shape=entry.shape, source=entry)
        elif layer not in written:
            written.add(layer)
            yield from merged[layer]


def _layer_plan(place: Place, layer: Layer, after: list[OutputTensor], options: ConvertOptions) -> LayerPlan:
    shape = place.shape
    names = kv_shapes(place.family, shape).keys()
    before = [layer[name] for name in names if name in layer]
    after = [tensor for tensor in after if tensor.name.removeprefix(place.prefix) in names]
    share = Fraction(place.kv_heads, shape.num_kv_heads)  # the rest are repetitions
    numbers_before = int(share * sum(math.prod(entry.shape) for entry in before))
    numbers_after = sum(math.prod(tensor.shape) for tensor in after)
    # bytes of one head's K and V for one token
    cached = 2 * shape.head_dim * after[0].dtype.itemsize if place.caches else 0
    return LayerPlan(
        site=place.site.name if place.site else None,
        layer=place.layer,
        num_heads=shape.num_heads,
        kv_heads_before=place.kv_heads,
        kv_heads_after=options.groups,
        bytes_before=int(share * sum(entry.nbytes for entry in before)),
        bytes_after=sum(tensor.nbytes for tensor in after),
        parameters_saved=numbers_before - numbers_after,
        cache_bytes_before=cached * place.kv_heads,
        cache_bytes_after=cached * options.groups,
    )
