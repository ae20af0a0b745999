"""BART, with shared heads."""

from transformers.models.bart.configuration_bart import BartConfig
from transformers.models.bart.modeling_bart import BartAttention, BartForConditionalGeneration, BartModel

from gqa.convert.modeling.bart_kin import BartKinAttention, BartKinConfig, BartKinModel


class GqaBartConfig(BartKinConfig, BartConfig):
    """The stock configuration, and the numbers of KV heads."""

    model_type = "gqa_bart"


class GqaBartAttention(BartKinAttention, BartAttention):
    """Shared heads, recorded as the stock attention is."""


class GqaBartModel(BartKinModel, BartModel):
    """The encoder and the decoder."""

    config_class = GqaBartConfig
    attention = GqaBartAttention


class GqaBartForConditionalGeneration(BartKinModel, BartForConditionalGeneration):
    """The same with what makes text of it."""

    config_class = GqaBartConfig
    attention = GqaBartAttention
