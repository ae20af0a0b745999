"""Own modeling code, for families whose class in transformers can't hold fewer KV heads."""
