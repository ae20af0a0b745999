"""What of a model is trained, and what learns at a rate of its own."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import parse_flag_from_env
from torch import nn

from gqa.convert.errors import UserError
from gqa.convert.family import Family, all_families, family_for, head_shape
from gqa.convert.latent.target import MODEL_TYPES
from gqa.convert.layout import rows_of_kv
from gqa.convert.source import read_config
from gqa.convert.tensors import read_entries
from gqa.uptrain.config import UptrainConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The outcome of the choice."""

    words: str
    """What is trained, for the user."""

    kv: frozenset[nn.Parameter] = frozenset()
    """Parameters of keys and values, if they have a rate of their own."""

    rows: Mapping[nn.Parameter, torch.Tensor] = field(default_factory=dict)
    """Of parameters that are trained in part, which rows are: bool [rows]."""


def choose_trained(model: "PreTrainedModel", checkpoint: Path, config: UptrainConfig) -> Trained:
    """Freeze what is not to be trained, and say what is.

    Raises:
        UserError: keys and values, or attentions, that can't be told from the rest.
    """
    words = {"all": "all weights", "attention": "the attention", "kv": "the keys and values"}[config.train]
    rows: dict[nn.Parameter, torch.Tensor] = {}
    if config.train != "all":
        wanted = _parameters(model, checkpoint, only_kv=config.train == "kv")
        model.requires_grad_(False)
        for parameter in wanted.values():
            parameter.requires_grad_(True)
        rows = _rows(wanted, checkpoint) if config.train == "kv" else {}
    if rows and parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        raise UserError(
            f"{checkpoint} keeps q, k and v in one tensor, whose rows DeepSpeed trains all; take train = attention, or "
            "fsdp2"
        )
    if config.freeze_embeddings:
        words += " but the embeddings" if config.train == "all" else ""
        model.get_input_embeddings().weight.requires_grad_(False)
    if config.kv_lr_multiplier == 1:
        return Trained(words=words, rows=rows)
    words += f" (keys and values at {config.kv_lr_multiplier:g} times the rate)"
    faster = _parameters(model, checkpoint, only_kv=True)
    if config.train != "kv" and _rows(faster, checkpoint):
        raise UserError(
            f"{checkpoint} keeps q, k and v in one tensor, which has one learning rate; leave kv_lr_multiplier out, or "
            "take train = kv"
        )
    return Trained(words=words, kv=frozenset(faster.values()), rows=rows)


def _rows(parameters: Mapping[str, nn.Parameter], checkpoint: Path) -> dict[nn.Parameter, torch.Tensor]:
    """Of tensors that hold q, k and v, the rows of k and v."""
    family, shape = _family(checkpoint, only_kv=True).of_class, _language(checkpoint)
    if not family.fused_qkv:
        return {}
    rows = rows_of_kv(family, head_shape(family, shape))
    fused = re.compile(rf"\.{re.escape(family.fused_qkv)}\.(?:weight|bias)$")
    return {parameter: rows for name, parameter in parameters.items() if fused.search(name)}


def _parameters(model: "PreTrainedModel", checkpoint: Path, *, only_kv: bool) -> dict[str, nn.Parameter]:
    """The parameters of all attentions, or those that hold their keys and values, by name."""
    family = _family(checkpoint, only_kv=only_kv).of_class
    pattern = re.compile("|".join(_patterns(family, only_kv=only_kv)))
    found = {name: parameter for name, parameter in model.named_parameters() if pattern.search(name)}
    if not found:
        raise UserError(f"no attention was found by name in {checkpoint}; leave train and kv_lr_multiplier out")
    return found


def trained_share(checkpoint: Path, config: UptrainConfig) -> float:
    """The share of the weights that is trained, as the names on disk tell before a model is there."""
    if config.train == "all":
        return 1.0
    family = _family(checkpoint, only_kv=config.train == "kv")
    pattern = re.compile("|".join(_patterns(family, only_kv=config.train == "kv")))
    sizes = {name: prod(entry.shape) for name, entry in read_entries(checkpoint).items()}
    return sum(size for name, size in sizes.items() if pattern.search(name)) / sum(sizes.values())


def _family(checkpoint: Path, *, only_kv: bool) -> Family:
    language = _language(checkpoint)
    if language.get("model_type") in MODEL_TYPES:
        return _latent_family(language["model_type"], only_kv=only_kv)
    if language.get("model_type") not in all_families():
        raise UserError(
            f"{checkpoint} is a {read_config(checkpoint).get('model_type')}, whose attention gqa does not know by "
            "name; leave train and kv_lr_multiplier out, or convert it first"
        )
    return family_for(language)


def _language(checkpoint: Path) -> dict[str, Any]:
    """What config.json says of the model, or of a multimodal one's language model."""
    raw = read_config(checkpoint)
    return raw.get("text_config", raw)


def _latent_family(model_type: str, *, only_kv: bool) -> Family:
    """Where latent attention stands; its layers are named as Llama's."""
    if only_kv:
        raise UserError(
            f"a {model_type} has no projections of keys and values, but a latent that both are made of; "
            "take train = attention, and leave kv_lr_multiplier out"
        )
    return Family(model_type=model_type, known_as="latent attention")


def _patterns(family: Family, *, only_kv: bool) -> Iterator[str]:
    """What matches names of the parameters of one attention, for every attention that a layer has."""
    for there in [family.at(site) for site in family.sites] or [family]:
        layers, attention = there.layer.removesuffix(".").split(".{layer}.")
        beneath = rf"(?:^|\.){re.escape(layers)}\.\d+\.{re.escape(attention)}\."
        if not only_kv:
            yield beneath
            continue
        norm = re.escape(there.k_norm).replace(re.escape("{head}"), r"\d+") if there.k_norm else None
        modules = [there.fused_qkv] if there.fused_qkv else [there.k, there.v]
        projections = rf"(?:{'|'.join(map(re.escape, modules))})\.(?:weight|bias)"
        yield rf"{beneath}(?:{projections}{f'|{norm}' if norm else ''})$"
