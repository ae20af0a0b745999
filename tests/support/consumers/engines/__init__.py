"""One script for each engine, run in the engine's own environment."""
