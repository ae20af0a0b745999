"""T5, T5 1.1 and FLAN-T5, with shared heads: transformers' own model, its attention exchanged."""

from transformers import T5Config, T5ForConditionalGeneration, T5Model

from gqa.convert.modeling.t5_kin import T5KinConfig, T5KinModel


class GQAT5Config(T5KinConfig, T5Config):
    """The stock configuration, and the numbers of KV heads."""

    model_type = "gqa_t5"


class GQAT5Model(T5KinModel, T5Model):
    """The encoder and the decoder."""

    config_class = GQAT5Config


class GQAT5ForConditionalGeneration(T5KinModel, T5ForConditionalGeneration):
    """The same as a language model of the output."""

    config_class = GQAT5Config


AUTO = {
    "AutoConfig": GQAT5Config,
    "AutoModel": GQAT5Model,
    "AutoModelForSeq2SeqLM": GQAT5ForConditionalGeneration,
}
