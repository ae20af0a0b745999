"""Disk tensors <-> AttentionWeights: the names, the blocks of fused matrices, and the shapes of one layer."""

from collections.abc import Mapping

import torch
from torch import Tensor

from gqa.convert.attention import AttentionWeights
from gqa.convert.errors import UserError
from gqa.convert.family import Family, HeadShape

Tensors = Mapping[str, Tensor]


def layer_prefix(family: Family, names: set[str], layer: int) -> str:
    """The prefix of a layer's attention tensors, with the base model's own, without or with another, as in `names`."""
    prefix = family.layer.format(layer=layer)
    bare = prefix.removeprefix(family.base_prefix)
    candidates = (bare, *(home + bare for home in family.homes))
    return next((found for found in candidates if any(name.startswith(found) for name in names)), prefix)


def kv_shapes(family: Family, shape: HeadShape) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors, by name after the layer's prefix, that a checkpoint may hold and that K and V are in.

    Which of the biases and norms are really there depends on the configuration; the weights always are.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for module, height in _kv_modules(family, shape):
        shapes[f"{module}.weight"] = (height, shape.hidden_size)
        shapes[f"{module}.bias"] = (height,)
    shapes |= _norm_shapes(family, family.k_norm, shape.num_kv_heads, shape.head_dim)
    return shapes


def attention_shapes(family: Family, shape: HeadShape) -> dict[str, tuple[int, ...]]:
    """`kv_shapes` and those of the query and output projections: everything that `read_layer` reads."""
    width = shape.num_heads * shape.head_dim
    shapes = kv_shapes(family, shape) | {f"{family.o}.weight": (shape.hidden_size, width)}
    if not family.fused_qkv:
        shapes |= {f"{family.q}.weight": (width, shape.hidden_size), f"{family.q}.bias": (width,)}
    sizes = {"number": (shape.num_heads,), "vector": (width,), "matrix": (width, shape.hidden_size)}
    shapes |= {name: sizes[kind] for name, kind in family.beside.items()}
    return shapes | _norm_shapes(family, family.q_norm, shape.num_heads, shape.head_dim)


def required_names(family: Family) -> list[str]:
    """Names, after the layer's prefix, that every layer of every checkpoint of the family has."""
    modules = [family.fused_qkv] if family.fused_qkv else [family.q, family.k, family.v]
    return [f"{module}.weight" for module in (*modules, family.o)]


def read_layer(family: Family, shape: HeadShape, tensors: Tensors) -> AttentionWeights:
    """One layer's tensors, by name after the layer's prefix, in canonical shape. Views wherever the layout allows."""
    if family.fused_qkv:
        tensors = dict(tensors) | _split_fused(family, shape, tensors)

    def weight(module: str) -> Tensor:
        return _by_head(tensors[f"{module}.weight"], shape.head_dim)  # [heads, head_dim, hidden_size]

    def bias(module: str) -> Tensor | None:
        found = tensors.get(f"{module}.bias")
        return None if found is None else _by_head(found, shape.head_dim)  # [heads, head_dim]

    output = tensors[f"{family.o}.weight"]  # [hidden_size, num_heads * head_dim]
    return AttentionWeights(
        q=weight(family.q),
        k=weight(family.k),
        v=weight(family.v),
        o=output.view(shape.hidden_size, shape.num_heads, shape.head_dim).transpose(0, 1),
        q_bias=bias(family.q),
        k_bias=bias(family.k),
        v_bias=bias(family.v),
        q_norm=_read_norm(family.q_norm, shape.num_heads, tensors),
        k_norm=_read_norm(family.k_norm, shape.num_kv_heads, tensors),
        beside={name: tensors[name].unflatten(0, (shape.num_heads, -1)) for name in family.beside if name in tensors},
    )


def write_layer(family: Family, old: AttentionWeights, new: AttentionWeights) -> dict[str, Tensor]:
    """The disk tensors that differ between `old` and `new`, by name after the layer's prefix.

    A part that a method returned as the same object has not changed and is left out.
    """
    if family.fused_qkv:
        changed = _write_fused(family, new)
    else:
        changed = {}
        for module, part, part_bias in (
            (family.q, "q", "q_bias"),
            (family.k, "k", "k_bias"),
            (family.v, "v", "v_bias"),
        ):
            for kind, name in (("weight", part), ("bias", part_bias)):
                value = getattr(new, name)
                if value is not None and value is not getattr(old, name):
                    changed[f"{module}.{kind}"] = value.flatten(0, 1)
    if new.o is not old.o:
        changed[f"{family.o}.weight"] = new.o.transpose(0, 1).flatten(1, 2)
    for name, old_norm, norm in ((family.q_norm, old.q_norm, new.q_norm), (family.k_norm, old.k_norm, new.k_norm)):
        if name is not None and norm is not None and norm is not old_norm:
            changed |= _write_norm(family, name, norm)
    changed |= {
        family.beside_called.get(name, name): part.flatten(0, 1)
        for name, part in new.beside.items()
        if part is not old.beside[name]
    }
    return {name: tensor.contiguous() for name, tensor in changed.items()}


def all_tensors(family: Family, weights: AttentionWeights) -> dict[str, Tensor]:
    """The tensors that `weights` stand in, by name after the attention's prefix. Gradients flow through."""
    every_part_new = weights.map_kv(lambda part: part.view_as(part)).map_queries(lambda part: part.view_as(part))
    return write_layer(family, weights, every_part_new)


def meta_layer(family: Family, shape: HeadShape, names: set[str]) -> AttentionWeights:
    """A layer without storage that has just the tensors in `names`: how a plan learns shapes from the layout itself."""
    shapes = {name: size for name, size in attention_shapes(family, shape).items() if name in names}
    return read_layer(family, shape, {name: torch.empty(size, device="meta") for name, size in shapes.items()})


def merged_shape(weights: AttentionWeights, groups: int, *, rewrites: bool) -> AttentionWeights:
    """What a merge of `weights` looks like from outside: `groups` KV heads, and the queries' parts anew or the same."""
    merged = weights.map_kv(lambda heads: heads[:groups])
    return merged.map_queries(torch.Tensor.clone) if rewrites else merged


def _kv_modules(family: Family, shape: HeadShape) -> list[tuple[str, int]]:
    """Modules that hold K or V, with their rows."""
    rows = shape.num_kv_heads * shape.head_dim
    if family.fused_qkv:
        return [(family.fused_qkv, shape.num_heads * shape.head_dim + 2 * rows)]
    return [(family.k, rows), (family.v, rows)]


def _by_head(tensor: Tensor, head_dim: int) -> Tensor:
    """[heads * head_dim, ...] -> [heads, head_dim, ...], a view."""
    return tensor.unflatten(0, (-1, head_dim))


def _split_fused(family: Family, shape: HeadShape, tensors: Tensors) -> dict[str, Tensor]:
    """The fused matrix (and bias) as the three modules it stands for; views of its rows wherever they are together."""
    heads = [shape.num_heads, shape.num_kv_heads, shape.num_kv_heads]
    parts: dict[str, Tensor] = {}
    for kind in ("weight", "bias"):
        fused = tensors.get(f"{family.fused_qkv}.{kind}")
        if fused is not None:
            for module, part in zip((family.q, family.k, family.v), _fused_parts(family, heads, fused), strict=True):
                parts[f"{module}.{kind}"] = part
    return parts


def _fused_parts(family: Family, heads: list[int], fused: Tensor) -> list[Tensor]:
    """Rows of so many heads of q, k and v."""
    rows = [count * (fused.shape[0] // sum(heads)) for count in heads]
    if not family.fused_by_group:
        return list(fused.split(rows))
    groups = heads[1]
    blocks = fused.unflatten(0, (groups, -1)).split([count // groups for count in rows], dim=1)
    return [block.flatten(0, 1) for block in blocks]  # [groups, rows of each, ...] -> [rows, ...]


def rows_of_kv(family: Family, shape: HeadShape) -> Tensor:
    """Which rows of the fused matrix (and bias) are of keys and values. [rows] bool."""
    heads = [shape.num_heads, shape.num_kv_heads, shape.num_kv_heads]
    rows = torch.arange(sum(heads) * shape.head_dim)
    _, *theirs = _fused_parts(family, heads, rows)
    return torch.isin(rows, torch.cat(theirs))


def _write_fused(family: Family, new: AttentionWeights) -> dict[str, Tensor]:
    changed = {f"{family.fused_qkv}.weight": _fuse(family, new.q, new.k, new.v)}
    if new.q_bias is not None and new.k_bias is not None and new.v_bias is not None:
        changed[f"{family.fused_qkv}.bias"] = _fuse(family, new.q_bias, new.k_bias, new.v_bias)
    return changed


def _fuse(family: Family, *parts: Tensor) -> Tensor:
    """q, k and v, each [heads, head_dim, ...], as rows of one matrix."""
    if not family.fused_by_group:
        return torch.cat(parts).flatten(0, 1)
    groups = parts[1].shape[0]
    return torch.cat([part.unflatten(0, (groups, -1)) for part in parts], dim=1).flatten(0, 2)


def _norm_shapes(family: Family, name: str | None, heads: int, head_dim: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that hold a norm with a weight for every head."""
    if name is None:
        return {}
    if "{head}" in name:
        return {name.format(head=head): (head_dim,) for head in range(heads)}
    return {name: (heads, head_dim) if family.k_norm_scope == "per_head" else (heads * head_dim,)}


def _read_norm(name: str | None, heads: int, tensors: Tensors) -> Tensor | None:
    """[heads, head_dim], or None where the family or this checkpoint has no norm that differs by head."""
    if name is None:
        return None
    if "{head}" in name:
        names = [name.format(head=head) for head in range(heads)]
        present = [tensors[name] for name in names if name in tensors]
        if present and len(present) < heads:
            raise UserError(f"the checkpoint has {len(present)} of the {heads} norms {name}")
        return torch.stack(present) if present else None
    norm = tensors.get(name)
    return None if norm is None else norm.view(heads, -1)


def _write_norm(family: Family, name: str, norm: Tensor) -> dict[str, Tensor]:
    """A norm with a weight for every head, [heads, head_dim], as it stands on disk."""
    if "{head}" in name:
        return {name.format(head=head): weight for head, weight in enumerate(norm)}
    return {name: norm if family.k_norm_scope == "per_head" else norm.flatten()}
