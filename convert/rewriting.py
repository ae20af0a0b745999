"""Families whose class has no KV heads, rewritten into one that has them and computes the same.

A rewrite says what the other class's configuration and tensors are, as pure functions of the checkpoint's. Nothing of
it is done ahead of time: `rewritten` gives entries that compute themselves when they are read, a tensor at a time, and
the rest of the conversion reads them as if they stood on disk.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from gqa.convert import rewrites
from gqa.convert.derived import Entry, Made, derive
from gqa.convert.errors import UserError, first_line
from gqa.convert.family import read_size
from gqa.convert.levelling import Levelling
from gqa.convert.renaming import Renaming
from gqa.convert.tensors import TensorEntry

Config = Mapping[str, Any]
"""config.json of a checkpoint, what it is silent about filled in with the defaults of its class"""
Tensors = Mapping[str, str | Made]
"""by the names of the new class: the name of the tensor that it is, or how it is made"""

_CARRIED = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "tie_word_embeddings")
_SAID = ("dtype", "torch_dtype", "use_cache", "transformers_version")


@dataclass(frozen=True, kw_only=True)
class Target:
    """A checkpoint in the new class."""

    config: dict[str, Any]
    """config.json; what stands in every class's alike is carried over where nothing is said of it here"""
    outside: Tensors
    """the tensors before and after the layers, by full names"""
    layer_prefix: str
    """of a layer's names, with `{layer}` for its number"""
    layer: Callable[[int], Tensors]
    """a layer's tensors, by names after its prefix, on both sides"""


@dataclass(frozen=True, kw_only=True)
class Rewrite:
    """How one family's checkpoints become another's."""

    model_type: str
    """`model_type` in config.json of what is rewritten"""
    base_prefix: str
    """what a checkpoint of the bare base model leaves off every name; names are given without it"""
    layer_prefix: str
    """of a layer's names after that, with `{layer}` for its number"""
    num_layers: str = "num_hidden_layers"
    """configuration key of the number of layers"""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """names that some checkpoints have, with those that are meant"""
    computed: tuple[str, ...] = ()
    """endings of tensors that old checkpoints carry and today's class computes"""
    defaults: Mapping[str, Any]
    """what the class takes where config.json is silent: every key that is asked for"""
    target: Callable[[Config], Target] | None = None
    """the checkpoint in the new class; raises UserError where no class of transformers' can hold the model"""
    own: Callable[[Config], Target] | None = None
    """the checkpoint in a class of ours, which holds any number of KV heads; None: there is none, or no need of it"""

    def read(self, config: Mapping[str, Any]) -> Config:
        """The configuration with nothing left out.

        Raises:
            UserError: a size is no positive integer.
        """
        given = {key: value for key, value in config.items() if value is not None or key.endswith("_token_id")}
        for key, default in self.defaults.items():
            if type(default) is int and not key.endswith("_token_id"):
                read_size(given, key, default)
        return {**self.defaults, **given}

    def in_own_code(self) -> "Rewrite":
        """The same into the class of ours."""
        assert self.own is not None
        return replace(self, target=self.own)

    def new_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """config.json in the new class.

        Raises:
            UserError: no class can hold the model, or a value is of another kind than it must be.
        """
        known = self.read(config)
        assert self.target is not None
        try:
            new = self.target(known).config
        except UserError:
            raise
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"config.json has a value that is of no use to a {self.model_type} ({first_line(error)}); restore it"
            ) from error
        carried = {key: known.get(key) for key in _CARRIED} | {key: known[key] for key in _SAID if key in known}
        return new | {key: value for key, value in carried.items() if key not in new}

    def tensors(self, config: Mapping[str, Any], entries: Mapping[str, TensorEntry]) -> dict[str, Entry]:
        """See `rewritten`."""
        return rewritten(self, config, entries)


Change = Rewrite | Renaming | Levelling
"""how a checkpoint becomes one of another class, or one whose layers are alike"""


def rewrite_of(model_type: str) -> Change:
    """The rewrite of a model type in `REWRITTEN`."""
    return importlib.import_module(f"{rewrites.__name__}.{model_type}").REWRITE


def rewritten(rewrite: Rewrite, config: Mapping[str, Any], entries: Mapping[str, TensorEntry]) -> dict[str, Entry]:
    """The tensors of the new class, in its own order: those that stay what they are as they stand on disk.

    Args:
        rewrite: of the checkpoint's family.
        config: the checkpoint's config.json.
        entries: its tensors.

    Raises:
        UserError: a tensor is missing, there is one that nothing is known of, or shapes don't fit.
    """
    known = rewrite.read(config)
    bare = {name.removeprefix(rewrite.base_prefix): entry for name, entry in entries.items()}
    named = {rewrite.renamed.get(name, name): entry for name, entry in bare.items()}
    tied = known["tie_word_embeddings"]
    found: dict[str, Entry] = {}
    used = {rewrite.renamed.get("lm_head.weight", "lm_head.weight")} if tied else set[str]()
    for name, value in _wanted(rewrite, known).items():
        sources = value.sources if isinstance(value, Made) else (value,)
        missing = [source for source in sources if source not in named]
        if missing and not (tied and name == "lm_head.weight"):
            raise UserError(
                f"tensor {rewrite.base_prefix}{missing[0]} is missing from the checkpoint; download it again"
            )
        if not missing:
            found[name] = derive(value, named) if isinstance(value, Made) else named[value]
            used |= set(sources)
    unknown = [name for name in named if name not in used and not name.endswith(rewrite.computed)]
    if unknown:
        raise UserError(
            f"the checkpoint has {len(unknown)} tensors that {rewrite.model_type} with its config.json does not have, "
            f"{unknown[0]} for one; the checkpoint and its configuration do not belong together"
        )
    return found


def _wanted(rewrite: Rewrite, known: Config) -> Tensors:
    """Everything that the new class has, the head last."""
    assert rewrite.target is not None
    target = rewrite.target(known)
    head = {name: value for name, value in target.outside.items() if name.startswith("lm_head.")}
    wanted = {name: value for name, value in target.outside.items() if name not in head}
    for number in range(known[rewrite.num_layers]):
        prefix = rewrite.layer_prefix.format(layer=number)
        for name, value in target.layer(number).items():
            wanted[target.layer_prefix.format(layer=number) + name] = _prefixed(value, prefix)
    return wanted | head


def _prefixed(value: str | Made, prefix: str) -> str | Made:
    if isinstance(value, str):
        return prefix + value
    return replace(value, sources=tuple(prefix + name for name in value.sources))
