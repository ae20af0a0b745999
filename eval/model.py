"""Loading a checkpoint's model as transformers does, but never half: whatever is missing is an error."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gqa.convert.errors import UserError, first_line
from gqa.convert.pretrained import check_complete, hears, load_config
from gqa.convert.tensors import weight_files
from gqa.eval.teacher import decoder_inputs

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel


def load_model(
    checkpoint: Path, *, dtype: "str | torch.dtype" = "auto", device: "str | torch.device"
) -> "PreTrainedModel":
    """The checkpoint as a causal language model or an encoder-decoder in evaluation mode, without remote code.

    Args:
        checkpoint: the directory of a Hugging Face checkpoint.
        dtype: "float32", "bfloat16", ...; "auto" keeps the precision it is stored in.
        device: where its weights go; "meta": nowhere, and they are not read as a whole either.

    Raises:
        UserError: weights are missing, left over, of the wrong shape or damaged; neither kind of model.
    """
    import torch
    from safetensors import SafetensorError

    config = load_config(checkpoint, encoder_decoder=True)
    kind = auto_class(config)
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
    except (OSError, ValueError, ImportError) as error:  # ImportError: a quantised one without its library
        raise UserError(f"{checkpoint} can't be loaded: {first_line(error)}") from error
    mismatched = {name for name, *_ in report["mismatched_keys"]}
    missing, unexpected = set(report["missing_keys"]), set(report["unexpected_keys"])
    check_complete(checkpoint, mismatched=mismatched, missing=missing, unexpected=unexpected)
    assert not report["error_msgs"], report["error_msgs"]
    if config.is_encoder_decoder:
        _check_start(model, checkpoint)
    return model.to(device).eval()


def auto_class(config: "PreTrainedConfig") -> Any:
    """The Auto class that loads such a model."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq

    if hears(config):
        return AutoModelForSpeechSeq2Seq
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def set_attention(model: "PreTrainedModel", attention: str) -> None:
    """Choose the attention implementation; auto leaves it to transformers.

    Raises:
        UserError: it is not installed, or the model can't use it.
    """
    if attention == "auto":
        return
    try:
        model.set_attn_implementation(attention)
    except (ImportError, ValueError) as error:
        raise UserError(f"attention {attention} can't be used: {str(error).splitlines()[0]}") from error


def _check_start(model: "PreTrainedModel", checkpoint: Path) -> None:
    """Refuse an encoder-decoder that can't tell what targets begin with, before anything is run."""
    import torch

    try:
        decoder_inputs(model, torch.zeros((1, 2), dtype=torch.int64))
    except (AttributeError, TypeError, ValueError):
        raise UserError(
            f"the config.json of {checkpoint} lacks decoder_start_token_id or pad_token_id, which every target begins "
            "with and is padded with; add them (T5's are both 0)"
        ) from None
