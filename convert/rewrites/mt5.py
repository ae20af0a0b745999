"""mT5: T5 1.1 in a hundred languages. Becomes the same with shared heads."""

from gqa.convert.rewrites._t5 import renaming

REWRITE = renaming("mt5", "MT5", layers=8, heads=6)
