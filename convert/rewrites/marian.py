"""Marian (OPUS-MT): sinusoidal positions, norms behind. Becomes the same with shared heads."""

from gqa.convert.rewrites._bart import renaming

REWRITE = renaming(
    "marian",
    "MarianMTModel",
    "MarianModel",
    layers=12,
    heads=16,
    width=1024,
    tokenizer="MarianTokenizer",
)
