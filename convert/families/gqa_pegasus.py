"""Pegasus, with shared heads: a class of ours."""

from gqa.convert.families._bart import KIN
from gqa.convert.family import Family

FAMILY = Family(model_type="gqa_pegasus", known_as="What Pegasus becomes", **KIN)
