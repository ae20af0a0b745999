"""Own modeling code, for families whose class in transformers can't hold fewer KV heads; what makes it known there.

A module has one family, transformers' own model with another attention in it, and `AUTO`, its classes by the names of
the Auto classes that find them; but for `attention`, and what encoder-decoders share (`encoder_decoder`, `bart_kin`,
`t5_kin`).
"""

import importlib

_DECODERS = ("bloom", "gpt2", "gpt_neo", "mpt", "opt")
_ENCODER_DECODERS = ("bart", "marian", "mbart", "mt5", "pegasus", "t5", "whisper")

OWN = {f"gqa_{name}": f"{__name__}.{name}" for name in (*_DECODERS, *_ENCODER_DECODERS)}
"""model types with the modules that have their classes"""


def register(*model_types: str) -> None:
    """Make classes of ours known to the Auto classes of transformers that find them; done twice, it is done once.

    transformers has no hook by which an installed package could do so unasked, so a program says this itself before it
    loads a checkpoint without `trust_remote_code`. The commands of this project do. What is saved of a class that is
    known so brings its code, as the output of a conversion does.

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

    from gqa.convert.modeling.saving import bring_code

    found = classes(model_type)
    config = found["AutoConfig"]
    bring_code(model_type, config)
    transformers.AutoConfig.register(model_type, config, exist_ok=True)  # pyright: ignore[reportArgumentType]
    for name, model in found.items():
        if name != "AutoConfig":
            getattr(transformers, name).register(config, model, exist_ok=True)
