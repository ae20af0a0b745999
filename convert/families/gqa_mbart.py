"""mBART, with shared heads: a class of ours."""

from gqa.convert.families._bart import KIN
from gqa.convert.family import Family

FAMILY = Family(model_type="gqa_mbart", known_as="What mBART becomes", **KIN)
