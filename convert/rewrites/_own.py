"""What all rewrites into classes of our own have in common: everything but attention stays as it is."""

from typing import Any

from gqa.convert.rewriting import Config

_NOT_OURS = ("auto_map", "architectures")


def own_config(config: Config, num_heads: int, **settings: Any) -> dict[str, Any]:
    """config.json in the class of ours, `settings` in place of the original's.

    Args:
        config: the original's.
        num_heads: its query heads, of which each has keys and values of its own.
        settings: what the class says in another way.
    """
    kept = {key: value for key, value in config.items() if key not in _NOT_OURS}
    return {**kept, **settings, "model_type": f"gqa_{config['model_type']}", "num_key_value_heads": num_heads}


def same(*names: str) -> dict[str, str]:
    """Tensors that keep their names."""
    return {name: name for name in names}


def both(*modules: str) -> dict[str, str]:
    """Weights and biases of modules that keep their names."""
    return same(*(f"{module}.{kind}" for module in modules for kind in ("weight", "bias")))
