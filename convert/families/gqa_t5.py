"""T5 and FLAN-T5, with shared heads: a class of ours."""

from gqa.convert.families._t5 import KIN
from gqa.convert.family import Family

FAMILY = Family(model_type="gqa_t5", known_as="What T5 and FLAN-T5 become", **KIN)
