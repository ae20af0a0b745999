"""mT5, with shared heads: transformers' own model, its attention exchanged."""

from transformers import MT5Config, MT5ForConditionalGeneration, MT5Model

from gqa.convert.modeling.t5_kin import T5KinConfig, T5KinModel


class GQAMT5Config(T5KinConfig, MT5Config):
    """The stock configuration, and the numbers of KV heads."""

    model_type = "gqa_mt5"


class GQAMT5Model(T5KinModel, MT5Model):
    """The encoder and the decoder."""

    config_class = GQAMT5Config


class GQAMT5ForConditionalGeneration(T5KinModel, MT5ForConditionalGeneration):
    """The same as a language model of the output."""

    config_class = GQAMT5Config


AUTO = {
    "AutoConfig": GQAMT5Config,
    "AutoModel": GQAMT5Model,
    "AutoModelForSeq2SeqLM": GQAMT5ForConditionalGeneration,
}
