"""Before and after: perplexity, KV-cache bytes, parameters and size of checkpoints on the same data."""
