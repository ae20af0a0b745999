"""T5, T5 1.1 and FLAN-T5: no biases, unscaled scores, relative positions. Becomes the same with shared heads."""

from gqa.convert.rewrites._t5 import renaming

REWRITE = renaming("t5", "T5", layers=6, heads=8)
