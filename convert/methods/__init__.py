"""One file per way to merge heads: a module with a pure function `merge` and nothing else public."""
