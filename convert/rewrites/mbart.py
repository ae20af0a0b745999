"""mBART: BART in many languages, norms in front. Becomes the same with shared heads."""

from gqa.convert.rewrites._bart import renaming

REWRITE = renaming(
    "mbart",
    "MBartForConditionalGeneration",
    "MBartModel",
    layers=12,
    heads=16,
    width=1024,
    tokenizer="MBartTokenizer",
)
