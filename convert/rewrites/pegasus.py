"""Pegasus: sinusoidal positions, norms in front. Becomes the same with shared heads."""

from gqa.convert.rewrites._bart import renaming

REWRITE = renaming(
    "pegasus",
    "PegasusForConditionalGeneration",
    "PegasusModel",
    layers=12,
    heads=16,
    width=1024,
    tokenizer="PegasusTokenizer",
)
