"""Continued pretraining of a converted checkpoint, from one CPU core to many nodes, on accelerate."""
