"""Decoding speed: prefill and decoding apart, memory, and what the machine's memory bandwidth allows."""
