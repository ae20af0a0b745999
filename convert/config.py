"""The converted checkpoint's `config.json`: the KV heads said outright, the rest as it was and readable everywhere.

transformers 5 writes rotary settings into `rope_parameters` and the dtype as `dtype`; transformers 4 and other readers
know `rope_theta`, `rope_scaling` and `torch_dtype`, and fall back to a default in silence. So what stands in the new
spelling is repeated in the old one; what already stands in the old one is left alone, since transformers 5 reads it.
"""

from typing import Any


def converted_config(config: dict[str, Any], kv_settings: dict[str, Any], dtype: str | None) -> dict[str, Any]:
    """`config` with its KV heads as `kv_settings` has them, and `dtype` ("bfloat16", ...) when the weights were cast.

    Keys keep their order; new ones follow at the end.
    """
    result = config | kv_settings
    known_dtype = dtype or config.get("dtype") or config.get("torch_dtype")
    if known_dtype:
        result["dtype"] = result["torch_dtype"] = known_dtype
    return result | _old_rope_spelling(config)


def converted_wrapper_config(config: dict[str, Any], kv_settings: dict[str, Any], dtype: str | None) -> dict[str, Any]:
    """The same for a multimodal checkpoint: of its language model, which `text_config` describes."""
    result = config | {"text_config": converted_config(config["text_config"], kv_settings, dtype)}
    return result | ({"dtype": dtype, "torch_dtype": dtype} if dtype else {})


def _old_rope_spelling(config: dict[str, Any]) -> dict[str, Any]:
    """The top-level rotary keys of transformers 4 that `rope_parameters` implies and `config` lacks."""
    parameters = config.get("rope_parameters")
    if not isinstance(parameters, dict) or config.get("rope_scaling"):
        return {}
    local = parameters.get("sliding_attention")  # families whose local layers rotate on their own
    main = parameters.get("full_attention", parameters) or local or {}  # some layers have no positions
    keys = {key: main[key] for key in ("rope_theta", "partial_rotary_factor") if main.get(key) is not None}
    if isinstance(local, dict) and local.get("rope_theta") is not None:
        keys["rope_local_base_freq"] = local["rope_theta"]
    if main.get("rope_type", "default") != "default":
        keys["rope_scaling"] = {key: value for key, value in main.items() if key not in keys}
    return {key: value for key, value in keys.items() if config.get(key) is None}
