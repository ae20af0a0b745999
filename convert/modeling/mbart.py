"""mBART, with shared heads: transformers' own model, its attention exchanged."""

from transformers import MBartConfig, MBartForConditionalGeneration, MBartModel
from transformers.models.mbart.modeling_mbart import MBartAttention

from gqa.convert.modeling.bart_kin import BartKinAttention, BartKinConfig, BartKinModel


class GQAMBartConfig(BartKinConfig, MBartConfig):
    """The stock configuration, and the numbers of KV heads."""

    model_type = "gqa_mbart"


class GQAMBartAttention(BartKinAttention, MBartAttention):
    """The stock attention's calls, answered by shared heads."""


class GQAMBartModel(BartKinModel, MBartModel):
    """The encoder and the decoder."""

    config_class = GQAMBartConfig
    attention = GQAMBartAttention


class GQAMBartForConditionalGeneration(BartKinModel, MBartForConditionalGeneration):
    """The same as a language model of the output."""

    config_class = GQAMBartConfig
    attention = GQAMBartAttention


AUTO = {
    "AutoConfig": GQAMBartConfig,
    "AutoModel": GQAMBartModel,
    "AutoModelForSeq2SeqLM": GQAMBartForConditionalGeneration,
}
