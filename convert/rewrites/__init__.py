"""One file for each family whose class has no KV heads: a module with a `REWRITE` into a class that has."""
