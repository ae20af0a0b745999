"""Marian, of OPUS-MT, with shared heads."""

from transformers.models.marian.configuration_marian import MarianConfig
from transformers.models.marian.modeling_marian import MarianAttention, MarianMTModel, MarianModel

from gqa.convert.modeling.bart_kin import BartKinAttention, BartKinConfig, BartKinModel


class GqaMarianConfig(BartKinConfig, MarianConfig):
    """The stock configuration, and the numbers of KV heads."""

    model_type = "gqa_marian"


class GqaMarianAttention(BartKinAttention, MarianAttention):
    """Shared heads, recorded as the stock attention is."""


class GqaMarianModel(BartKinModel, MarianModel):
    """The encoder and the decoder."""

    config_class = GqaMarianConfig
    attention = GqaMarianAttention


class GqaMarianMTModel(BartKinModel, MarianMTModel):
    """The same with what makes text of it."""

    config_class = GqaMarianConfig
    attention = GqaMarianAttention
