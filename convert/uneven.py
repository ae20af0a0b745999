"""What a configuration says of layers whose numbers of KV heads differ."""

from collections.abc import Mapping, Sequence
from typing import Any

from gqa.convert.errors import UserError

KEY = "num_key_value_heads"
LIST = "num_key_value_heads_per_layer"
BY_LAYER = "per_layer_config"
CODE = "DeciLMForCausalLM"
"""the class that DeciLM's checkpoints bring: Llama's, but for the KV heads of its layers"""


def says_kv_heads_by_layer(config: Mapping[str, Any]) -> bool:
    """Whether layers are given KV heads of their own."""
    lists = any(isinstance(config.get(key), list) for key in (LIST, KEY))
    return lists or any(KEY in settings for settings in (config.get(BY_LAYER) or {}).values())


def is_llama_but_for_its_layers(config: Mapping[str, Any]) -> bool:
    """Whether the code that a checkpoint brings is known to do nothing that Llama's does not."""
    return config.get("architectures") == [CODE] and says_kv_heads_by_layer(config)


def kv_heads_by_layer(config: Mapping[str, Any]) -> list[int]:
    """KV heads of every layer.

    Raises:
        UserError: what stands there are no positive integers, or layers are spoken of twice and differently.
    """
    said = [config[key] for key in (LIST, KEY) if isinstance(config.get(key), list)]
    if config.get(BY_LAYER) or not said:
        said.append(_filled_in(config))
    if any(heads != said[0] for heads in said):
        raise UserError("config.json gives the KV heads of layers twice, and differently; restore it")
    for count in said[0]:
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise UserError(f"config.json: a layer has {count!r} KV heads, not a positive integer; restore it")
    return list(said[0])


def span(numbers: Sequence[int]) -> str:
    """`8`, or `2 to 8` where they differ."""
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def _filled_in(config: Mapping[str, Any]) -> list[Any]:
    """The KV heads of all layers where only some have settings of their own, or none has."""
    layers = config.get("num_hidden_layers")
    if not isinstance(layers, int):
        raise UserError("config.json has no num_hidden_layers; restore it from the original checkpoint")
    usual = config.get(KEY) or config.get("num_attention_heads")
    own = {str(layer): settings for layer, settings in (config.get(BY_LAYER) or {}).items()}
    return [own.get(str(layer), {}).get(KEY, usual) for layer in range(layers)]
