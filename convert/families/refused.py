"""Model types that can't be converted, each with the reason a user should read."""

_LATENT = "its attention already caches one small latent instead of K/V heads (MLA); there are no heads to merge"
_NO_SETTING = (
    "its transformers class has no setting for the number of KV heads, so stock code could not load the result"
)

REFUSED: dict[str, str] = {
    "bart": _NO_SETTING,
    "bloom": _NO_SETTING,
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "diffllama": "its heads attend in pairs whose difference is taken; merging K/V heads would break the pairs",
    "gemma3": "it is a multimodal checkpoint; convert its language model, saved on its own as gemma3_text",
    "jetmoe": "its query heads are experts over shared K/V heads, which can't be merged further",
    "marian": _NO_SETTING,
    "mpt": _NO_SETTING,
    "t5": _NO_SETTING,
    "whisper": _NO_SETTING,
}
