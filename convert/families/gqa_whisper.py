"""Whisper, with shared heads: a class of ours. Its timestamps are read off heads that generation_config.json names."""

from gqa.convert.families._bart import KIN
from gqa.convert.family import Family

FAMILY = Family(model_type="gqa_whisper", known_as="What Whisper becomes", named_heads="alignment_heads", **KIN)
