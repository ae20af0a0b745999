"""Whisper, with shared heads: a class of ours."""

from gqa.convert.families._bart import KIN
from gqa.convert.family import Family

FAMILY = Family(model_type="gqa_whisper", known_as="what Whisper checkpoints become", **KIN)
