"""Calibration: windows of tokens from the user's text or the model's own, and what enters every layer on them.

The model is run layer by layer (`convert/staged.py`): in memory are one layer, the hidden states of all windows and
the layer's running moments, whatever the size of the model.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gqa.convert.checkpoint import Checkpoint, open_for
from gqa.convert.data import OWN_TEXT, read_documents
from gqa.convert.device import choose_device
from gqa.convert.errors import UserError, did_you_mean
from gqa.convert.moments import Moments, MomentSums, watched
from gqa.convert.own_text import own_windows
from gqa.convert.precision import HALVES, dtype_name, is_fast, stored_dtype
from gqa.convert.pretrained import load_config, load_tokenizer
from gqa.convert.seeds import check_seed
from gqa.convert.staged import StagedModel
from gqa.convert.windows import draw_windows

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_DTYPES = ("auto", "float32", "bfloat16", "float16")
_WINDOW = 2048  # tokens, unless the model is made for fewer
_TOKENS_AT_ONCE = 4096  # in a pass through a layer: enough to keep the machine busy
_WIDE = 1024  # hidden size from which the precision of a CPU's products is traded for their speed

Progress = Callable[[str, int, int], None]
"""called with what is being done, how much of it is done and how much there is"""


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """On what text, and how, a checkpoint is calibrated."""

    data: str
    """a text file, a .jsonl or .parquet file, a folder of these or a dataset on the Hub; "self": the model writes it"""
    text_column: str = "text"
    """the key or column that holds the text"""
    subset: str | None = None
    """of a dataset: its subset"""
    split: str = "train"
    """of a dataset: its split"""
    tokens: int = 65536
    """tokens to calibrate on, rounded up to whole windows"""
    held_out_tokens: int = 16384
    """tokens held out to check on, from documents of their own, beside those"""
    sequence_length: int | None = None
    """tokens of a window (default: 2048, or as many as the model is made for if these are fewer)"""
    seed: int = 0
    """draws the windows, or what the model writes"""
    device: str = "auto"
    """where to compute: auto (the accelerator where there is one), cpu, cuda, cuda:1, mps"""
    dtype: str = "auto"
    """what to compute in: float32, bfloat16 or float16; auto is the checkpoint's own where the device is fast at it"""

    def __post_init__(self) -> None:
        for name, least in (("tokens", 1), ("held_out_tokens", 0), ("sequence_length", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"calibration: {name} is {value}; it must be at least {least}")
        check_seed(self.seed)
        if self.data == OWN_TEXT:
            for name, usual in (("text_column", "text"), ("subset", None), ("split", "train")):
                if getattr(self, name) != usual:
                    raise UserError(
                        f"calibration: {name} is about text that is read; self is the model's, leave it out"
                    )
        if self.dtype not in _DTYPES:
            near = did_you_mean(self.dtype, _DTYPES)
            raise UserError(f"calibration: unknown dtype {self.dtype!r}{near}; known: {', '.join(_DTYPES)}")


def stage(
    checkpoint: Path,
    options: CalibrationOptions,
    *,
    groups: int | None = None,
    own_code: bool = False,
    opened: Checkpoint | None = None,
) -> StagedModel:
    """The checkpoint, ready to be run on the device and in the dtype that `options` name. See `StagedModel`.

    Raises:
        UserError: there is no such device, or the checkpoint can't be used.
    """
    device, dtype = _computed_in(checkpoint, options)
    return StagedModel(checkpoint, dtype=dtype, device=device, groups=groups, own_code=own_code, opened=opened)


def settled(checkpoint: Path, options: CalibrationOptions) -> dict[str, str | int]:
    """What `auto` and the defaults come to, for whoever wants the same again: device, dtype and tokens of a window.

    Raises:
        UserError: as `stage` and `calibration_windows`.
    """
    device, dtype = _computed_in(checkpoint, options)
    length = _window_length(checkpoint, _class_config(checkpoint), options)
    return {"device": str(device), "dtype": dtype_name(dtype), "sequence_length": length}


def calibration_windows(
    checkpoint: Path, options: CalibrationOptions, progress: Progress = lambda *_: None
) -> tuple[Tensor, Tensor]:
    """Token ids to calibrate on and others, of other documents, to check on: [n, length] and [m, length] int64.

    Windows are drawn from all over the data, see `draw_windows`, or written by the model, see `own_windows`.

    Raises:
        UserError: the data can't be read or hold too little text; the checkpoint has no tokenizer that fits it; the
            model can't write.
    """
    config = _class_config(checkpoint)
    length = _window_length(checkpoint, config, options)
    counts = math.ceil(options.tokens / length), math.ceil(options.held_out_tokens / length)
    if options.data == OWN_TEXT:
        device, dtype = _computed_in(checkpoint, options)
        written = own_windows(
            checkpoint,
            count=sum(counts),
            length=length,
            seed=options.seed,
            device=device,
            dtype=dtype,
            progress=progress,
        )
        train, held_out = written.split(counts)
    else:
        tokenizer = load_tokenizer(checkpoint)
        documents = read_documents(
            options.data, text_column=options.text_column, subset=options.subset, split=options.split
        )
        train, held_out = draw_windows(documents, tokenizer, length=length, counts=counts, seed=options.seed)
    if (highest := int(torch.cat([train, held_out]).max())) >= config.vocab_size:
        raise UserError(
            f"the tokenizer of {checkpoint} makes token {highest}, but its model knows {config.vocab_size} tokens; "
            "restore the tokenizer that belongs to the model"
        )
    return train, held_out


@torch.no_grad()
def layer_moments(
    staged: StagedModel, ids: Tensor, *, batch: int | None = None, progress: Progress = lambda *_: None
) -> Iterator[tuple[int, Moments]]:
    """Run the original model once over `ids`, and yield every layer with the moments of what enters its projections.

    Args:
        staged: the checkpoint.
        ids: [n, length] token ids. Their hidden states are held in host memory, in the model's dtype.
        batch: windows run through a layer at once; None: about 4096 tokens' worth.
        progress: told after every batch how many tokens have gone through how many layers.
    """
    count, length = ids.shape
    hidden = staged.embed(ids)  # [n, length, hidden_size]
    for layer in range(staged.num_layers):
        sums = MomentSums(staged.shape.hidden_size, staged.device)
        with staged.layer(layer) as run, watched(run.projection, sums):
            for rows in torch.arange(count).split(batch or max(1, _TOKENS_AT_ONCE // length)):
                part = slice(int(rows[0]), int(rows[-1]) + 1)
                hidden[part] = run(hidden[part])
                done = layer * count + part.stop
                progress(f"layer {layer + 1} of {staged.num_layers}", done * length, staged.num_layers * ids.numel())
        yield layer, sums.finish().checked(layer)


def _class_config(checkpoint: Path) -> "PreTrainedConfig":
    """The configuration of a class that runs the checkpoint, as it stands or rewritten."""
    opened = open_for(checkpoint, groups=None)
    return load_config(checkpoint, opened.config if opened.rewrite else None, wrapped=True)


def _window_length(checkpoint: Path, config: "PreTrainedConfig", options: CalibrationOptions) -> int:
    """Tokens of a window."""
    positions = getattr(config, "max_position_embeddings", None) or _WINDOW
    length = options.sequence_length or min(_WINDOW, positions)
    if length > positions:
        raise UserError(
            f"sequence length {length} is more than the {positions} positions of {checkpoint}; ask for less"
        )
    return length


def _computed_in(checkpoint: Path, options: CalibrationOptions) -> tuple[torch.device, torch.dtype]:
    """Where, and in what."""
    device = choose_device(options.device)
    return device, _own_dtype(checkpoint, device) if options.dtype == "auto" else getattr(torch, options.dtype)


def _own_dtype(checkpoint: Path, device: torch.device) -> torch.dtype:
    """The dtype that the weights are stored in where the device is fast at it and it pays, float32 elsewhere."""
    stored = stored_dtype(checkpoint)
    if stored not in HALVES:
        return torch.float32
    if device.type != "cpu":
        return stored
    wide = _class_config(checkpoint).hidden_size >= _WIDE
    return stored if wide and stored == torch.bfloat16 and is_fast(stored, device) else torch.float32
