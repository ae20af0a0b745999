"""mT5, with shared heads: a class of ours."""

from gqa.convert.families._t5 import KIN
from gqa.convert.family import Family

FAMILY = Family(model_type="gqa_mt5", known_as="What mT5 becomes", **KIN)
