"""Pegasus, with shared heads: transformers' own model, its attention exchanged."""

from transformers import PegasusConfig, PegasusForConditionalGeneration, PegasusModel
from transformers.models.pegasus.modeling_pegasus import PegasusAttention

from gqa.convert.modeling.bart_kin import BartKinAttention, BartKinConfig, BartKinModel


class GQAPegasusConfig(BartKinConfig, PegasusConfig):
    """The stock configuration, and the numbers of KV heads."""

    model_type = "gqa_pegasus"


class GQAPegasusAttention(BartKinAttention, PegasusAttention):
    """The stock attention's calls, answered by shared heads."""


class GQAPegasusModel(BartKinModel, PegasusModel):
    """The encoder and the decoder."""

    config_class = GQAPegasusConfig
    attention = GQAPegasusAttention


class GQAPegasusForConditionalGeneration(BartKinModel, PegasusForConditionalGeneration):
    """The same as a language model of the output."""

    config_class = GQAPegasusConfig
    attention = GQAPegasusAttention


AUTO = {
    "AutoConfig": GQAPegasusConfig,
    "AutoModel": GQAPegasusModel,
    "AutoModelForSeq2SeqLM": GQAPegasusForConditionalGeneration,
}
