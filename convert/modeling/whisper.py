"""Whisper, with shared heads."""

from transformers.models.whisper.configuration_whisper import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperAttention, WhisperForConditionalGeneration, WhisperModel

from gqa.convert.modeling.bart_kin import BartKinAttention, BartKinConfig, BartKinModel


class GqaWhisperConfig(BartKinConfig, WhisperConfig):
    """The stock configuration, and the numbers of KV heads."""

    model_type = "gqa_whisper"
    attribute_map = {key: name for key, name in WhisperConfig.attribute_map.items() if key != "num_key_value_heads"}


class GqaWhisperAttention(BartKinAttention, WhisperAttention):
    """Shared heads, recorded as the stock attention is; keys have no bias."""

    biases = "qvo"


class GqaWhisperModel(BartKinModel, WhisperModel):
    """The encoder and the decoder."""

    config_class = GqaWhisperConfig
    attention = GqaWhisperAttention


class GqaWhisperForConditionalGeneration(BartKinModel, WhisperForConditionalGeneration):
    """The same with what makes text of it."""

    config_class = GqaWhisperConfig
    attention = GqaWhisperAttention
