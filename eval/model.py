"""Loading a checkpoint's model and tokenizer as transformers does, but never half: whatever is missing is an error."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gqa.convert.errors import UserError, did_you_mean
from gqa.convert.source import read_config
from gqa.convert.tensors import weight_files

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def load_config(checkpoint: Path) -> "PreTrainedConfig":
    """The configuration of the checkpoint's language model (the text part of a model that has several).

    Raises:
        UserError: the installed transformers has no causal language model of that type, or the values don't fit it.
    """
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    raw = read_config(checkpoint)
    model_type = raw.get("model_type")
    if model_type not in CONFIG_MAPPING:
        if "auto_map" in raw:
            raise UserError(
                f"{checkpoint} needs its own code to run, which is not trusted; convert it to a stock class"
            )
        known = did_you_mean(str(model_type), CONFIG_MAPPING)
        raise UserError(
            f"{checkpoint}: the model type {model_type!r} is unknown to transformers{known}; mend config.json"
        )
    try:
        config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
    except Exception as error:  # a config checks its values with exceptions of its own
        raise UserError(f"the config.json of {checkpoint} can't be used: {_first_line(error)}") from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(f"{checkpoint} is a {model_type}, which is no causal language model; perplexity needs one")
    text_config = config.get_text_config(decoder=True)
    if not getattr(text_config, "num_attention_heads", None):
        raise UserError(f"{checkpoint} is a {model_type}, which has no attention heads to compare")
    return text_config


def load_model(
    checkpoint: Path, *, dtype: "str | torch.dtype" = "auto", device: "str | torch.device"
) -> "PreTrainedModel":
    """The checkpoint as a causal language model in evaluation mode, without remote code.

    Args:
        checkpoint: the directory of a Hugging Face checkpoint.
        dtype: "float32", "bfloat16", ...; "auto" keeps the precision it is stored in.
        device: where its weights go.

    Raises:
        UserError: weights are missing, left over, of the wrong shape or damaged; not a causal language model.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    load_config(checkpoint)
    weight_files(checkpoint)
    if isinstance(dtype, str) and dtype != "auto":
        dtype = getattr(torch, dtype)
    try:
        # Mismatched shapes are allowed here only so that they come back in the report, which names them.
        model, report = AutoModelForCausalLM.from_pretrained(
            checkpoint,
            dtype=dtype,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except SafetensorError as error:
        raise UserError(f"a weight file of {checkpoint} is damaged ({error}); restore it") from error
    except (OSError, ValueError, ImportError) as error:  # ImportError: a quantised one without its library
        raise UserError(f"{checkpoint} can't be loaded: {_first_line(error)}") from error
    _check_complete(checkpoint, report)
    return model.to(device).eval()


def load_tokenizer(checkpoint: Path) -> "PreTrainedTokenizerBase":
    """The checkpoint's tokenizer, without remote code.

    Raises:
        UserError: there is none, or its files are damaged.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
        works = bool(tokenizer("a", add_special_tokens=False)["input_ids"])
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise UserError(f"the tokenizer of {checkpoint} can't be loaded: {_first_line(error)}") from error
    if not works:  # transformers makes an empty tokenizer of the right class when only its settings are there
        raise UserError(f"{checkpoint} has no tokenizer; copy tokenizer.json and its companions into it")
    return tokenizer


def quiet_transformers() -> None:
    """No progress bars and no reports from transformers on stderr: what matters in them is raised as an error."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _check_complete(checkpoint: Path, report: dict[str, Any]) -> None:
    mismatched = {name for name, *_ in report["mismatched_keys"]}
    for what, keys in (
        ("has tensors of the wrong shape", mismatched),
        ("lacks tensors", set(report["missing_keys"]) - mismatched),
        ("has tensors that its model class doesn't know", set(report["unexpected_keys"])),
    ):
        if keys:
            names = sorted(keys)
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(f"{checkpoint} {what}: {', '.join(names[:3])}{more}; its config.json is of another model")
    assert not report["error_msgs"], report["error_msgs"]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
