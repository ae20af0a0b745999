"""One file per way to merge heads."""
