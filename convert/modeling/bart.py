"""BART, with shared heads: transformers' own model, its attention exchanged."""

from transformers import BartConfig, BartForConditionalGeneration, BartModel
from transformers.models.bart.modeling_bart import BartAttention

from gqa.convert.modeling.bart_kin import BartKinAttention, BartKinConfig, BartKinModel


class GQABartConfig(BartKinConfig, BartConfig):
    """The stock configuration, and the numbers of KV heads."""

    model_type = "gqa_bart"


class GQABartAttention(BartKinAttention, BartAttention):
    """The stock attention's calls, answered by shared heads."""


class GQABartModel(BartKinModel, BartModel):
    """The encoder and the decoder."""

    config_class = GQABartConfig
    attention = GQABartAttention


class GQABartForConditionalGeneration(BartKinModel, BartForConditionalGeneration):
    """The same as a language model of the output."""

    config_class = GQABartConfig
    attention = GQABartAttention


AUTO = {
    "AutoConfig": GQABartConfig,
    "AutoModel": GQABartModel,
    "AutoModelForSeq2SeqLM": GQABartForConditionalGeneration,
}
