"""A checkpoint's configuration, tokenizer and weights as transformers reads them; its reports, as sentences."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gqa.convert.errors import UserError, did_you_mean, first_line
from gqa.convert.families.wrappers import WRAPPERS
from gqa.convert.modeling import register
from gqa.convert.source import read_config
from gqa.convert.tensors import weight_files

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def load_config(
    checkpoint: Path,
    written: Mapping[str, Any] | None = None,
    *,
    wrapped: bool = False,
    encoder_decoder: bool = False,
) -> "PreTrainedConfig":
    """The configuration of the checkpoint's language model (the text part of a model that has several).

    Args:
        checkpoint: its directory.
        written: what to read in place of its config.json.
        wrapped: whether it may be a multimodal model's that can't be run as a language model.
        encoder_decoder: whether it may be an encoder-decoder's, from text to text; then it comes whole.

    Raises:
        UserError: the installed transformers has no causal language model of that type, or the values don't fit it.
    """
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    raw = read_config(checkpoint) if written is None else written
    model_type = raw.get("model_type")
    register(str(model_type))
    if model_type not in CONFIG_MAPPING:
        if "auto_map" in raw:
            raise UserError(
                f"{checkpoint} needs its own code to run, which is not trusted; convert it to a stock class"
            )
        known = did_you_mean(str(model_type), CONFIG_MAPPING)
        raise UserError(
            f"{checkpoint}: the model type {model_type!r} is unknown to transformers{known}; mend config.json"
        )
    with damage(f"the config.json of {checkpoint} can't be used"):
        if written is None:
            config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
        else:
            config = CONFIG_MAPPING[model_type].from_dict(dict(written))
    if encoder_decoder and config.is_encoder_decoder:
        _check_encoder_decoder(config, checkpoint)
        return config
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not (wrapped and model_type in WRAPPERS):
        raise UserError(f"{checkpoint} is a {model_type}, which is no causal language model; perplexity needs one")
    text_config = config.get_text_config(decoder=True)
    if not getattr(text_config, "num_attention_heads", None):
        raise UserError(f"{checkpoint} is a {model_type}, which has no attention heads to compare")
    if model_type in WRAPPERS:  # whose own setting decides, whatever that of the language model would be on its own
        text_config.tie_word_embeddings = getattr(config, "tie_word_embeddings", False)
    return text_config


def _check_encoder_decoder(config: "PreTrainedConfig", checkpoint: Path) -> None:
    from transformers import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING

    if type(config) not in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING and not hears(config):
        raise UserError(f"{checkpoint} is a {config.model_type}, which is no language model; perplexity needs one")


def hears(config: "PreTrainedConfig") -> bool:
    """Whether the sources of an encoder-decoder are sound that is heard as Whisper hears it."""
    from transformers import MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING

    return type(config) in MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING and getattr(config, "num_mel_bins", None) is not None


def language_settings(checkpoint: Path, config: dict[str, Any]) -> dict[str, Any]:
    """What `config`, the checkpoint's config.json, says of the language model.

    A multimodal checkpoint leaves out what is as its classes have it, so that there it is what the classes read.

    Raises:
        UserError: as `load_config`.
    """
    if config.get("model_type") not in WRAPPERS:
        return config
    return load_config(checkpoint, wrapped=True).to_dict()


def load_tokenizer(checkpoint: Path) -> "PreTrainedTokenizerBase":
    """The checkpoint's tokenizer, without remote code.

    Raises:
        UserError: there is none, or its files are damaged.
    """
    from transformers import AutoTokenizer

    with damage(f"the tokenizer of {checkpoint} can't be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
        works = bool(tokenizer("a", add_special_tokens=False)["input_ids"])
    if not works:  # transformers makes an empty tokenizer of the right class when only its settings are there
        raise UserError(f"{checkpoint} has no tokenizer; copy tokenizer.json and its companions into it")
    return tokenizer


@contextmanager
def damage(what: str) -> Iterator[None]:
    """Turn what the libraries raise on files that hold something else than they expect into the sentence `what`.

    That is whatever the misfit happened to break (JSON is walked unchecked), their own validation errors and, of the
    tokenizers library, Exception itself. A failed assertion, an unknown name and the like are bugs, and stay that.
    """
    from huggingface_hub.errors import StrictDataclassError

    misfits = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError)
    try:
        yield
    except Exception as error:
        if (
            not isinstance(error, (*misfits, OSError, ImportError, StrictDataclassError))
            and type(error) is not Exception
        ):
            raise
        raise UserError(f"{what}: {first_line(error)}") from error


def adds_bos(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the tokenizer puts its BOS token before a text of its own accord."""
    ids, plain = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    return tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id and ids != plain


def quiet_transformers() -> None:
    """No progress bars and no reports from transformers on stderr: what matters in them is raised as an error."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def load_weights(
    kind: Any, checkpoint: Path, *, dtype: "str | torch.dtype" = "auto", device: "str | torch.device"
) -> "PreTrainedModel":
    """The checkpoint as a whole model in evaluation mode, without remote code, but never half.

    Args:
        kind: the Auto class that loads such a model.
        checkpoint: the directory of a Hugging Face checkpoint.
        dtype: "float32", "bfloat16", ...; "auto" keeps the precision it is stored in.
        device: where its weights go; "meta": nowhere, and they are not read as a whole either.

    Raises:
        UserError: weights are missing, left over, of the wrong shape or damaged.
    """
    import torch
    from safetensors import SafetensorError

    weight_files(checkpoint)
    if isinstance(dtype, str) and dtype != "auto":
        dtype = getattr(torch, dtype)
    try:
        # Mismatched shapes are allowed here only so that they come back in the report, which names them.
        model, report = kind.from_pretrained(
            checkpoint,
            dtype=dtype,
            device_map={"": "meta"} if str(device) == "meta" else None,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except SafetensorError as error:
        raise UserError(f"a weight file of {checkpoint} is damaged ({error}); restore it") from error
    except (OSError, ValueError, TypeError, ImportError) as error:  # ImportError: a quantised one without its library
        raise UserError(f"{checkpoint} can't be loaded: {first_line(error)}") from error
    mismatched = {name for name, *_ in report["mismatched_keys"]}
    missing, unexpected = set(report["missing_keys"]), set(report["unexpected_keys"])
    check_complete(checkpoint, mismatched=mismatched, missing=missing, unexpected=unexpected)
    assert not report["error_msgs"], report["error_msgs"]
    return model.to(device).eval()


def check_complete(checkpoint: Path, *, mismatched: set[str], missing: set[str], unexpected: set[str]) -> None:
    """Refuse weights that don't fit their class, by the names that transformers' loader reports.

    Raises:
        UserError: there are any; the first three are named.
    """
    for what, keys in (
        ("has tensors of the wrong shape", mismatched),
        ("lacks tensors", missing - mismatched),
        ("has tensors that its model class doesn't know", unexpected),
    ):
        if keys:
            names = sorted(keys)
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(f"{checkpoint} {what}: {', '.join(names[:3])}{more}; its config.json is of another model")
