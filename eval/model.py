"""Loading a checkpoint's model as transformers does, but never half: whatever is missing is an error."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gqa.convert.errors import UserError
from gqa.convert.pretrained import hears, load_config, load_weights
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
    config = load_config(checkpoint, encoder_decoder=True)
    model = load_weights(auto_class(config), checkpoint, dtype=dtype, device=device)
    if config.is_encoder_decoder:
        _check_start(model, checkpoint)
    return model


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
