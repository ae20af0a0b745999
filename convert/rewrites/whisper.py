"""Whisper: an encoder of sound, keys without biases. Becomes the same with shared heads."""

from gqa.convert.rewrites._bart import renaming

REWRITE = renaming(
    "whisper",
    "WhisperForConditionalGeneration",
    "WhisperModel",
    layers=4,
    heads=6,
    width=384,
    tokenizer="WhisperTokenizer",
)
