"""Engines that nobody here wrote read what `gqa-convert` writes: same tokens, same continuation, same logits."""
