"""Multimodal model types whose language model is a family's: it alone is converted, what sees and hears stays as it is.

The language model's own settings stand in `text_config` of config.json.
"""

_USUAL = ("language_model.model.", "model.language_model.")

WRAPPERS: dict[str, tuple[str, ...]] = {
    "aria": _USUAL,
    "aya_vision": _USUAL,
    "cohere2_vision": _USUAL,
    "gemma3": _USUAL,
    "got_ocr2": _USUAL,
    "idefics3": ("model.text_model.",),
    "internvl": _USUAL,
    "llama4": _USUAL,
    "llava": _USUAL,
    "llava_next": _USUAL,
    "llava_next_video": _USUAL,
    "llava_onevision": _USUAL,
    "mistral3": _USUAL,
    "paligemma": _USUAL,
    "smolvlm": ("model.text_model.",),
    "video_llava": _USUAL,
    "vipllava": _USUAL,
}
"""what stands on disk in the place of the language model's base prefix, in checkpoints old and new"""
