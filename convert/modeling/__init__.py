"""Own modeling code, for families whose class in transformers can't hold fewer KV heads; what makes it known there.

Every module but `attention` has one family: transformers' own model with another attention in it, and `AUTO`, its
classes by the names of the Auto classes that find them.
"""

import importlib

OWN = {f"gqa_{name}": f"{__name__}.{name}" for name in ("bloom", "gpt2", "gpt_neo", "mpt", "opt")}
"""model types with the modules that have their classes"""


def register(*model_types: str) -> None:
    """Make classes of ours known to AutoConfig, AutoModel and AutoModelForCausalLM; done twice, it is done once.

    transformers looks for no installed packages that might have classes for it, so a program says this itself before
    it loads a checkpoint without `trust_remote_code`. The commands do.

    Args:
        model_types: which; those that are none of ours are passed over. None given: all.
    """
    wanted = OWN.keys() & set(model_types) if model_types else OWN.keys()
    for model_type in sorted(wanted):
        _register(model_type)


def classes(model_type: str) -> dict[str, type]:
    """A model type's classes, by the names of the Auto classes that find them."""
    return importlib.import_module(OWN[model_type]).AUTO


def _register(model_type: str) -> None:
    import transformers

    found = classes(model_type)
    config = found["AutoConfig"]
    transformers.AutoConfig.register(model_type, config, exist_ok=True)  # pyright: ignore[reportArgumentType]
    for name, model in found.items():
        if name != "AutoConfig":
            getattr(transformers, name).register(config, model, exist_ok=True)
