"""Multimodal model types whose language model is a family's: it alone is converted, what sees and hears stays as it is.

The language model's own settings stand in `text_config` of config.json.
"""

_USUAL = ("language_model.model.", "model.language_model.")

WRAPPERS: dict[str, tuple[str, ...]] = {
    "apertus1p5": _USUAL,
    "aria": _USUAL,
    "aya_vision": _USUAL,
    "cohere2_vision": _USUAL,
    "deepseek_vl": _USUAL,
    "exaone4_5": _USUAL,
    "gemma3": _USUAL,
    "glmasr": _USUAL,
    "got_ocr2": _USUAL,
    "granite_speech": _USUAL,
    "idefics2": ("model.text_model.",),
    "idefics3": ("model.text_model.",),
    "internvl": _USUAL,
    "janus": _USUAL,
    "lighton_ocr": _USUAL,
    "llama4": _USUAL,
    "llava": _USUAL,
    "llava_next": _USUAL,
    "llava_next_video": _USUAL,
    "llava_onevision": _USUAL,
    "mistral3": _USUAL,
    "omniasr": _USUAL,
    "ovis2": _USUAL,
    "paligemma": _USUAL,
    "qwen2_audio": _USUAL,
    "qwen3_asr": _USUAL,
    "smolvlm": ("model.text_model.",),
    "video_llama_3": _USUAL,
    "video_llava": _USUAL,
    "vipllava": _USUAL,
    "voxtral": _USUAL,
}
"""what stands on disk in the place of the language model's base prefix, in checkpoints old and new"""
