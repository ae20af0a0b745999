"""Marian, with shared heads: a class of ours."""

from gqa.convert.families._bart import KIN
from gqa.convert.family import Family

FAMILY = Family(model_type="gqa_marian", known_as="What OPUS-MT becomes", **KIN)
