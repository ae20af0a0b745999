"""mBART, with shared heads."""

from transformers.models.mbart.configuration_mbart import MBartConfig
from transformers.models.mbart.modeling_mbart import MBartAttention, MBartForConditionalGeneration, MBartModel

from gqa.convert.modeling.bart_kin import BartKinAttention, BartKinConfig, BartKinModel


class GqaMBartConfig(BartKinConfig, MBartConfig):
    """The stock configuration, and the numbers of KV heads."""

    model_type = "gqa_mbart"


class GqaMBartAttention(BartKinAttention, MBartAttention):
    """Shared heads, recorded as the stock attention is."""


class GqaMBartModel(BartKinModel, MBartModel):
    """The encoder and the decoder."""

    config_class = GqaMBartConfig
    attention = GqaMBartAttention


class GqaMBartForConditionalGeneration(BartKinModel, MBartForConditionalGeneration):
    """The same with what makes text of it."""

    config_class = GqaMBartConfig
    attention = GqaMBartAttention
