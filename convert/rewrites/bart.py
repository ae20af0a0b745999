"""BART: learned positions, norms behind. Becomes the same with shared heads."""

from gqa.convert.rewrites._bart import renaming

REWRITE = renaming(
    "bart",
    "BartForConditionalGeneration",
    "BartModel",
    layers=12,
    heads=16,
    width=1024,
    tokenizer="BartTokenizer",
)
