"""Checkpoint in, checkpoint out: multi-head attention merged into grouped-query attention on disk."""
