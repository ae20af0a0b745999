"""Marian, the models of OPUS-MT, with shared heads: transformers' own model, its attention exchanged."""

from transformers import MarianConfig, MarianModel, MarianMTModel
from transformers.models.marian.modeling_marian import MarianAttention

from gqa.convert.modeling.bart_kin import BartKinAttention, BartKinConfig, BartKinModel


class GQAMarianConfig(BartKinConfig, MarianConfig):
    """The stock configuration, and the numbers of KV heads."""

    model_type = "gqa_marian"


class GQAMarianAttention(BartKinAttention, MarianAttention):
    """The stock attention's calls, answered by shared heads."""


class GQAMarianModel(BartKinModel, MarianModel):
    """The encoder and the decoder."""

    config_class = GQAMarianConfig
    attention = GQAMarianAttention


class GQAMarianMTModel(BartKinModel, MarianMTModel):
    """The same as a language model of the output."""

    config_class = GQAMarianConfig
    attention = GQAMarianAttention


AUTO = {
    "AutoConfig": GQAMarianConfig,
    "AutoModel": GQAMarianModel,
    "AutoModelForSeq2SeqLM": GQAMarianMTModel,
}
