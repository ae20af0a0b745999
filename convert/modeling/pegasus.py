"""Pegasus, with shared heads."""

from transformers.models.pegasus.configuration_pegasus import PegasusConfig
from transformers.models.pegasus.modeling_pegasus import PegasusAttention, PegasusForConditionalGeneration, PegasusModel

from gqa.convert.modeling.bart_kin import BartKinAttention, BartKinConfig, BartKinModel


class GqaPegasusConfig(BartKinConfig, PegasusConfig):
    """The stock configuration, and the numbers of KV heads."""

    model_type = "gqa_pegasus"


class GqaPegasusAttention(BartKinAttention, PegasusAttention):
    """Shared heads, recorded as the stock attention is."""


class GqaPegasusModel(BartKinModel, PegasusModel):
    """The encoder and the decoder."""

    config_class = GqaPegasusConfig
    attention = GqaPegasusAttention


class GqaPegasusForConditionalGeneration(BartKinModel, PegasusForConditionalGeneration):
    """The same with what makes text of it."""

    config_class = GqaPegasusConfig
    attention = GqaPegasusAttention
