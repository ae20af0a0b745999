"""Families whose own class keeps all tensors as they are, but for what the modules of attention are called.

That is so of encoder-decoders: no stock class can share their KV heads, so they become classes of ours, which are the
stock ones with another attention. Nothing is computed, and what stands outside attention is not looked at.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gqa.convert.derived import Entry
from gqa.convert.errors import UserError, did_you_mean
from gqa.convert.family import read_size
from gqa.convert.tensors import TensorEntry


@dataclass(frozen=True, kw_only=True)
class Renaming:
    """How one family's checkpoints become those of a class of ours."""

    model_type: str
    """`model_type` in config.json of what is renamed"""
    becomes: str
    """the same afterwards"""
    architectures: Mapping[str, str]
    """names of classes that can be converted, with those of ours; the first is meant where config.json names none"""
    attentions: tuple[str, ...]
    """what modules of attention are called"""
    modules: Mapping[str, str]
    """what stands in them, with what it is called in ours"""
    sizes: Mapping[str, int | str]
    """what the class takes where config.json is silent about a size: a number, or the key of another"""
    kv_heads: Mapping[str, str]
    """configuration keys of ours for KV heads, with those of the query heads, as many as there are of which"""
    tokenizer: str
    """the tokenizer's class, which transformers would otherwise take from the model type"""
    computed: tuple[str, ...] = ()
    """endings of tensors that old checkpoints carry and the class has no use for"""

    target: None = None
    """as in `Rewrite`: no class of transformers' holds the model"""

    @property
    def own(self) -> "Renaming":
        """As in `Rewrite`: the class of ours holds it, always."""
        return self

    def in_own_code(self) -> "Renaming":
        """As in `Rewrite`."""
        return self

    def new_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """config.json of the class of ours: all that it says, and every size said outright.

        Raises:
            UserError: a size is no positive integer, or the model is not one that can be converted.
        """
        sizes: dict[str, int] = {}
        for key, default in self.sizes.items():
            sizes[key] = read_size(config, key, sizes[default] if isinstance(default, str) else default)
        heads = {key: sizes[source] for key, source in self.kv_heads.items()}
        ours = {"architectures": [self._architecture(config)], "model_type": self.becomes}
        return {**config, **ours, **sizes, **heads}

    def tensors(self, config: Mapping[str, Any], entries: Mapping[str, TensorEntry]) -> dict[str, Entry]:
        """The checkpoint's tensors by the names of the class of ours."""
        del config
        return {self._renamed(name): entry for name, entry in entries.items() if not name.endswith(self.computed)}

    def _architecture(self, config: Mapping[str, Any]) -> str:
        named = (config.get("architectures") or [*self.architectures])[0]
        if named not in self.architectures:
            raise UserError(
                f"config.json says that the model is a {named}{did_you_mean(str(named), self.architectures)}; of "
                f"{self.model_type}, {' and '.join(self.architectures)} can be converted"
            )
        return self.architectures[named]

    def _renamed(self, name: str) -> str:
        *path, attention, module, kind = ["", "", "", *name.split(".")]
        if attention not in self.attentions or module not in self.modules:
            return name
        return ".".join([*path[3:], attention, self.modules[module], kind])
