"""What a model family is to the converter: a frozen record of names and defaults, found by `model_type`."""

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

from gqa.convert import families
from gqa.convert.errors import UserError, did_you_mean
from gqa.convert.families.refused import REFUSED
from gqa.convert.families.rewritten import REWRITTEN
from gqa.convert.families.wrappers import WRAPPERS
from gqa.convert.uneven import BY_LAYER, is_llama_but_for_its_layers, says_kv_heads_by_layer

_QUERY_HEADS = {"num_attention_heads", "head_dim"}


@dataclass(frozen=True, kw_only=True)
class Site:
    """One of the attentions of an encoder-decoder, of which every layer of one of its stacks has one."""

    name: str
    """what users read"""
    layer: str
    """as in `Family`"""
    num_layers: str
    """configuration key of the number of layers of the stack"""
    num_heads: str
    """configuration key of its query heads"""
    kv_heads_key: str = "num_key_value_heads"
    """as in `Family`"""
    heads_move: bool = True
    """as in `Family`"""
    in_encoder: bool = False
    """whether the encoder has it, which keeps its heads unless it is asked for: it caches nothing"""


@dataclass(frozen=True, kw_only=True)
class Family:
    """How one `model_type` lays out its attention on disk, and which configuration keys size it.

    Tensor names are those of the files, with `{layer}` for the layer's number and `{head}` for a head's. The defaults
    are the names that most families share, so a family's file states only what differs.
    """

    model_type: str
    """`model_type` in config.json"""
    known_as: str
    """the checkpoints that users know it by"""
    layer: str = "model.layers.{layer}.self_attn."
    """prefix of a layer's attention tensors"""
    sites: tuple[Site, ...] = ()
    """in the place of `layer` and what else a site says: the attentions of an encoder-decoder"""
    base_prefix: str = "model."
    """what a checkpoint of the bare base model leaves off every name"""
    homes: tuple[str, ...] = ()
    """what stands in its place in a multimodal checkpoint, whose `text_config` then describes the language model"""
    q: str = "q_proj"
    k: str = "k_proj"
    v: str = "v_proj"
    o: str = "o_proj"
    """modules of the four projections; `.weight` and, where there is one, `.bias` follow"""
    fused_qkv: str | None = None
    """the module that holds q, k and v in this order as blocks of rows, in place of three modules"""
    fused_by_group: bool = False
    """whether that module has a block for every KV head instead: its query heads, then its key, then its value"""
    k_norm: str | None = None
    """the weight of a key norm that differs from head to head: a [num_kv_heads, head_dim] or flat tensor, or one
    tensor a head when the name holds `{head}`; absent from checkpoints whose configuration turns it off"""
    q_norm: str | None = None
    """the same of the queries, with as many heads as there are query heads"""
    beside: Mapping[str, Literal["number", "vector", "matrix"]] = field(default_factory=dict)
    """tensors, beside those of q and o, of which every query head has a part of its own: a number (attention sinks), a
    [head_dim] vector (a norm over all heads' outputs) or a [head_dim, hidden_size] matrix (a gate on them)"""
    beside_called: Mapping[str, str] = field(default_factory=dict)
    """other names of those tensors, for `in_class`"""
    outputs: Literal["plain", "gated", "normed"] = "plain"
    """what comes between the heads' outputs and the output projection: nothing, a gate on every component, or a norm
    over the components of all heads"""
    rotary: Literal["half", "interleaved", "none"] = "half"
    """which components rotate together: (i, i + rotary_dim / 2), (2i, 2i + 1), or none"""
    k_norm_scope: Literal["none", "shared", "per_head", "full_width"] = "none"
    """what a norm on the keys sees: one head with a weight shared by all heads, or with a weight of its own, or the
    whole width of all heads at once"""
    k_norm_key: str | None = None
    """configuration key that turns the norms on queries and keys on (None: they are always there)"""
    k_norm_default: bool = False
    """whether they are on where the configuration does not say"""
    k_norm_plain: bool = False
    """whether that norm is a root mean square without weights, to which only the size of a key matters"""
    k_norm_turns: bool = False
    """whether that norm is only in the layers that rotate"""
    no_rope_key: str | None = None
    """configuration key that lists, a layer each, 1 where q and k rotate and 0 where they do not"""
    rope_base_key: str | None = None
    """configuration key that lists each layer's rotary base, 0 where q and k do not rotate"""
    no_rope_type: str | None = None
    """the kind of layers, in `layer_types`, whose q and k do not rotate where others have a window"""
    alibi_key: str | None = None
    """configuration key that puts ALiBi in the place of rotary positions"""
    heads_move: bool = True
    """whether heads may change places; not where positions bias every head in its own way (ALiBi, T5)"""
    clip_key: str | None = None
    """configuration key that clamps q, k and v after their projection"""
    sizes: Mapping[str, str] = field(default_factory=dict)
    """configuration keys of sizes that the class calls otherwise than most: `{"hidden_size": "n_embd"}`"""
    spellings: Mapping[str, str] = field(default_factory=dict)
    """other spellings of such keys, that the class reads just as well: `{"num_layers": "num_hidden_layers"}`"""
    kv_heads_key: str = "num_key_value_heads"
    """configuration key of the number of KV heads"""
    multi_query_key: str | None = None
    """configuration key that decides it instead, where the class has either one KV head or as many as query heads"""
    layer_returns_tuple: bool = False
    """whether the class's decoder layer returns its hidden states as the first of several things"""
    own_code: bool = False
    """whether its class is one of ours, in `convert/modeling/`, and goes with every checkpoint"""
    refused: Mapping[str, str] = field(default_factory=dict)
    """configuration keys that must not be on, each with the reason"""
    default_kv_heads: int | None = None
    """KV heads when the configuration does not say (None: as many as query heads)"""
    default_head_dim: int | None = None
    """head dim when the configuration has no `head_dim` (None: hidden_size / num_attention_heads)"""
    hears: bool = False
    """whether its encoder is given sound"""
    named_heads: str | None = None
    """key of generation_config.json that lists query heads of cross-attention, each as [layer, head]"""
    reads_head_dim: bool = True
    """whether the class honours `head_dim` in the configuration"""
    in_class: Mapping[str, Any] = field(default_factory=dict)
    """fields, of those above, that say something else of transformers' class than of the files that it reads"""

    @property
    def of_class(self) -> "Family":
        """The family with the tensor names of transformers' class in place of those of the files."""
        return replace(self, **self.in_class, in_class={})

    def chosen_sites(self, *, encoder: bool) -> list[Site]:
        """The sites whose heads merge, the encoder's if asked; none where there is but one attention a layer."""
        return [site for site in self.sites if encoder or not site.in_encoder]

    def at(self, site: Site) -> "Family":
        """The family as if it had nothing but the attention at `site`."""
        sizes = {"num_attention_heads": site.num_heads, "num_hidden_layers": site.num_layers}
        return replace(
            self,
            sites=(),
            layer=site.layer,
            sizes={**self.sizes, **sizes},
            kv_heads_key=site.kv_heads_key,
            heads_move=site.heads_move,
        )


@dataclass(frozen=True, kw_only=True)
class HeadShape:
    """The sizes of a checkpoint's attention."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int


@cache
def all_families() -> dict[str, Family]:
    """Every family whose class can have fewer KV heads, by model type, in alphabetical order."""
    names = sorted(info.name for info in pkgutil.iter_modules(families.__path__))
    modules = [importlib.import_module(f"{families.__name__}.{name}") for name in names]
    return {module.FAMILY.model_type: module.FAMILY for module in modules if hasattr(module, "FAMILY")}


def family_for(config: Mapping[str, Any]) -> Family:
    """The family of a checkpoint's configuration, as that has it.

    Raises:
        UserError: a family or a configuration that can't be converted, with the reason.
    """
    if config["model_type"] in WRAPPERS:
        return replace(family_for(text_config(config)), homes=WRAPPERS[config["model_type"]])
    family = all_families()[config["model_type"]]
    for key, reason in family.refused.items():
        if config.get(key):
            raise UserError(f"{family.model_type} with {key} can't be converted: {reason}")
    if family.alibi_key and config.get(family.alibi_key):
        return replace(family, rotary="none", heads_move=False)
    return family


def check_supported(config: Mapping[str, Any]) -> None:
    """Refuse what can't be converted whatever its values.

    Raises:
        UserError: no or unknown model type, a family that can't be converted (with the reason), a quantised
            checkpoint, or one that brings its own code.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise UserError("config.json has no model_type; it is not a transformers checkpoint")
    if model_type in REFUSED:
        raise UserError(f"{model_type} can't be converted: {REFUSED[model_type]}")
    known = all_families().keys() | REWRITTEN.keys() | WRAPPERS.keys()
    if model_type not in known:
        raise UserError(
            f"unsupported model type {model_type!r}{did_you_mean(model_type, known)}; "
            "gqa-convert --list-families shows those supported"
        )
    if config.get("quantization_config"):
        raise UserError("the checkpoint is quantised (quantization_config in config.json); dequantise it first")
    if unequal := _says_layers_differ(config):
        raise UserError(f"the checkpoint's layers differ in their heads ({unequal} in config.json); none is merged")
    if config.get("auto_map") and not _needs_no_code(config):
        raise UserError(
            "the checkpoint brings its own code (auto_map in config.json), which is never run; "
            f"if the stock {model_type} class loads it, remove auto_map from a copy of it and convert that"
        )
    if model_type in WRAPPERS:
        inner = text_config(config)
        check_supported(inner)
        if inner["model_type"] not in all_families() or says_kv_heads_by_layer(inner):
            raise UserError(f"a {inner['model_type']} inside a {model_type} can't be converted; save it on its own")


def _says_layers_differ(config: Mapping[str, Any]) -> str | None:
    """The key of a configuration that gives layers heads of their own which nothing can be made of, if there is one."""
    if any(_QUERY_HEADS & layer.keys() for layer in (config.get(BY_LAYER) or {}).values()):
        return BY_LAYER
    model_type = config["model_type"]
    levelled = model_type in all_families() or (model_type in REWRITTEN and REWRITTEN[model_type].levelled)
    if says_kv_heads_by_layer(config) and not levelled:
        return "KV heads of every layer"
    return next((key for key in sorted(_QUERY_HEADS) if isinstance(config.get(key), list)), None)


def _needs_no_code(config: Mapping[str, Any]) -> bool:
    """Whether code that a checkpoint brings can be left alone: another class loads it, or the code is ours."""
    model_type = config["model_type"]
    if model_type in REWRITTEN:
        return REWRITTEN[model_type].own_code or REWRITTEN[model_type].may_bring_code
    return is_llama_but_for_its_layers(config) or (model_type in all_families() and all_families()[model_type].own_code)


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a multimodal checkpoint's configuration says of its language model.

    Raises:
        UserError: it says nothing.
    """
    inner = config.get("text_config")
    if not isinstance(inner, dict):
        raise UserError(f"config.json of a {config['model_type']} has no text_config; restore it from the original")
    return inner


def head_shape(family: Family, config: Mapping[str, Any]) -> HeadShape:
    """The sizes that the family's own configuration class would read from `config`; of the first site of several.

    Raises:
        UserError: a size is missing, not a positive integer, or does not divide as it must.
    """
    if family.sites:
        return head_shape(family.at(family.sites[0]), config)
    config = {key: config[other] for other, key in family.spellings.items() if other in config} | dict(config)
    hidden_size, num_heads, num_layers = (
        read_size(config, family.sizes.get(key, key))
        for key in ("hidden_size", "num_attention_heads", "num_hidden_layers")
    )
    if family.multi_query_key:
        num_kv_heads = 1 if config.get(family.multi_query_key, True) else num_heads
    else:
        num_kv_heads = read_size(config, family.kv_heads_key, family.default_kv_heads or num_heads)
    if num_heads % num_kv_heads:
        raise UserError(f"config.json: {num_heads} query heads do not divide among {num_kv_heads} KV heads; restore it")
    head_dim = family.default_head_dim or hidden_size // num_heads
    if family.reads_head_dim:
        head_dim = read_size(config, family.sizes.get("head_dim", "head_dim"), head_dim)
    return HeadShape(
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        hidden_size=hidden_size,
    )


def kv_settings(family: Family, num_kv_heads: int, *, encoder: bool = False) -> dict[str, Any]:
    """The configuration keys that make the family's class build so many KV heads; in the encoder too, if asked."""
    if family.sites:
        return {site.kv_heads_key: num_kv_heads for site in family.chosen_sites(encoder=encoder)}
    settings: dict[str, Any] = {family.kv_heads_key: num_kv_heads}
    if family.multi_query_key:
        settings[family.multi_query_key] = num_kv_heads == 1
    return settings


def read_size(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """The positive integer that stands at `key`, or else the default.

    Raises:
        UserError: it is something else, or neither there nor to be assumed.
    """
    value = config.get(key)
    value = default if value is None else value
    if value is None:
        raise UserError(f"config.json has no {key}; restore it from the original checkpoint")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"config.json: {key} is {value!r}, not a positive integer; restore it")
    return value
