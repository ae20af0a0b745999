"""Text that a checkpoint writes itself, for whoever has none: samples of what it was trained to predict.

Its layers see on such text nearly what they see on the text that it learnt from, so that what is measured or fitted on
it holds there, too. To write, the whole model is needed at once, on the device: nothing else in the conversion does.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gqa.convert.errors import UserError
from gqa.convert.pretrained import adds_bos, load_config, load_tokenizer, load_weights

_TOKENS_AT_ONCE = 16384  # in the cache while they are written: 8 GB of a Llama-2-7B's

Progress = Callable[[str, int, int], None]


def own_windows(
    checkpoint: Path,
    *,
    count: int,
    length: int,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    progress: Progress = lambda *_: None,
) -> Tensor:
    """Windows that the checkpoint's model writes from nothing: [count, length] int64, in host memory.

    Each begins as a document does, with the tokenizer's BOS token where it puts one before texts and with its
    end-of-text token elsewhere. What follows is drawn from the model's own probabilities, at temperature 1 and with
    nothing cut off, whatever the checkpoint's generation settings; a document that ends is followed by another.

    Args:
        checkpoint: its directory.
        count: windows.
        length: tokens of each, the first one included.
        seed: draws the text.
        device: where the model is run, whole.
        dtype: what it is run in.
        progress: told after every token how many are written.

    Raises:
        UserError: no causal language model of transformers runs the checkpoint, it has no token to begin with, its
            weights are damaged, its logits are not finite, or memory is too small.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig, LogitsProcessorList

    first = first_token(checkpoint)
    with _in_memory(checkpoint, device), _seeded(seed, device):
        model: Any = load_weights(AutoModelForCausalLM, checkpoint, dtype=dtype, device=device)
        model.generation_config = GenerationConfig()  # its own would fill in what ours leaves open
        sampling = GenerationConfig(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=length - 1)
        written: list[Tensor] = []
        for rows in torch.arange(count).split(max(1, _TOKENS_AT_ONCE // length)):
            start = torch.full((len(rows), 1), first, device=device)
            watch = _Watch(checkpoint, progress, done=int(rows[0]) * length, total=count * length)
            ids = model.generate(
                input_ids=start,
                attention_mask=torch.ones_like(start),
                generation_config=sampling,
                logits_processor=LogitsProcessorList([watch]),
            )
            written.append(ids.cpu())
    return torch.cat(written)


def first_token(checkpoint: Path) -> int:
    """What a text begins with, for a model that can write one."""
    try:
        known = load_config(checkpoint).vocab_size
    except UserError as error:
        why = str(error).partition(";")[0]
        raise UserError(f"{checkpoint} can't write a text itself ({why}); name one with --calibration DATA") from None
    tokenizer = load_tokenizer(checkpoint)
    first = tokenizer.bos_token_id if adds_bos(tokenizer) else tokenizer.eos_token_id
    if first is None:
        raise UserError(
            f"{checkpoint} can't write a text itself, as its tokenizer has no token that one begins with or ends on; "
            "name one with --calibration DATA"
        )
    if first >= known:
        raise UserError(
            f"the tokenizer of {checkpoint} begins a text with token {first}, but its model knows {known} tokens; "
            "restore the tokenizer that belongs to the model"
        )
    return int(first)


class _Watch:
    """Leaves logits as they are, once it is sure that they are numbers, and tells how far the text is."""

    def __init__(self, checkpoint: Path, progress: Progress, *, done: int, total: int) -> None:
        self._checkpoint, self._progress, self._done, self._total = checkpoint, progress, done, total

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if scores.isnan().any() or scores.isposinf().any():
            raise UserError(
                f"the logits of {self._checkpoint} are not finite where it writes; compute in another type "
                "(--compute-dtype float32), or look for NaN in the weights"
            )
        self._progress("writing text", self._done + input_ids.numel() + len(input_ids), self._total)
        return scores


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Everything that torch draws inside follows from the seed, and nothing that it draws afterwards."""
    kind = {} if device.type == "cpu" else {"device_type": device.type}
    with torch.random.fork_rng([] if device.type == "cpu" else [device], **kind):
        torch.manual_seed(seed)
        yield


@contextmanager
def _in_memory(checkpoint: Path, device: torch.device) -> Iterator[None]:
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise UserError(
            f"{device} has no room for all of {checkpoint} at once, as it takes to write a text; name one with "
            "--calibration DATA, on which layers are run one at a time"
        ) from None
