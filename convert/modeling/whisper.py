"""Whisper, with shared heads: transformers' own model, its attention exchanged."""

from transformers import WhisperConfig, WhisperForConditionalGeneration, WhisperModel
from transformers.models.whisper.modeling_whisper import WhisperAttention

from gqa.convert.modeling.bart_kin import BartKinAttention, BartKinConfig, BartKinModel


class GQAWhisperConfig(BartKinConfig, WhisperConfig):
    """The stock configuration, and the numbers of KV heads."""

    model_type = "gqa_whisper"
    # the stock one reads every number of KV heads as that of the encoder's heads
    attribute_map = {  # noqa: RUF012 - as above it
        key: name for key, name in WhisperConfig.attribute_map.items() if key != "num_key_value_heads"
    }


class GQAWhisperAttention(BartKinAttention, WhisperAttention):
    """The stock attention's calls, answered by shared heads; keys have no bias."""

    biases = "qvo"


class GQAWhisperModel(BartKinModel, WhisperModel):
    """The encoder and the decoder."""

    config_class = GQAWhisperConfig
    attention = GQAWhisperAttention


class GQAWhisperForConditionalGeneration(BartKinModel, WhisperForConditionalGeneration):
    """The same as a language model of the output."""

    config_class = GQAWhisperConfig
    attention = GQAWhisperAttention


AUTO = {
    "AutoConfig": GQAWhisperConfig,
    "AutoModel": GQAWhisperModel,
    "AutoModelForSpeechSeq2Seq": GQAWhisperForConditionalGeneration,
}
