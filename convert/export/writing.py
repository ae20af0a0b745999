"""A checkpoint becomes one GGUF file: described first, then its tensors one at a time; whole or not at all."""

import importlib.util
import struct
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gqa.convert.checkpoint import COMPUTED
from gqa.convert.directory import check_space, current_umask, disk_errors
from gqa.convert.errors import UserError, first_line
from gqa.convert.export.architectures import Architecture, architecture_for, describe, head_dim, names
from gqa.convert.export.latent import MODEL_TYPE as LATENT
from gqa.convert.export.latent import latent_pieces
from gqa.convert.export.options import ExportOptions
from gqa.convert.export.piece import Piece, stored_dtype
from gqa.convert.export.vocabulary import add_vocabulary
from gqa.convert.pretrained import check_complete, damage
from gqa.convert.skeleton import class_of
from gqa.convert.source import read_config
from gqa.convert.tensors import TensorEntry, read_entries

if TYPE_CHECKING:
    import torch
    from gguf import GGUFWriter
    from transformers import PreTrainedConfig


def export_gguf(options: ExportOptions, advance: Callable[[int], None] = lambda _: None) -> int:
    """Write the file.

    Args:
        advance: called with numbers of bytes written.

    Returns:
        Its size in bytes.

    Raises:
        UserError: the package gguf is missing, the checkpoint is damaged or none that llama.cpp computes as it is
            meant, or the output can't be written.
    """
    if importlib.util.find_spec("gguf") is None:
        raise UserError("gqa-export needs the package gguf; install it with pip install 'gqa[gguf]'")
    with disk_errors(options.output):
        _check_output(options)
    config = _configuration(options.directory)
    architecture = architecture_for(config)
    pieces = _pieces(config, architecture, options)
    check_space(options.output, sum(piece.nbytes(options) for piece in pieces.values()))
    unfinished = options.output.with_name(f".{options.output.name}.partial")
    try:
        with disk_errors(options.output):
            _write(unfinished, options, config, architecture, pieces, advance)
            unfinished.chmod(0o666 & ~current_umask())
            unfinished.replace(options.output)
    finally:
        unfinished.unlink(missing_ok=True)
    return options.output.stat().st_size


def _check_output(options: ExportOptions) -> None:
    output = options.output
    if output.suffix != ".gguf":  # so that no file of a checkpoint is ever replaced
        raise UserError(f"the output {output} does not end in .gguf; name a file that does")
    if output.is_dir():
        raise UserError(f"the output {output} is a directory; name a file, {output / 'model.gguf'} say")
    if output.exists() and not options.overwrite:
        raise UserError(f"the output {output} exists; choose another, or replace it with --overwrite")
    if not output.parent.is_dir():
        raise UserError(f"there is no directory {output.parent} to write {output.name} into")


def _configuration(checkpoint: Path) -> "PreTrainedConfig":
    """As transformers reads it, so that what config.json leaves out is what it computes with."""
    from transformers import AutoConfig

    told = read_config(checkpoint)
    with damage(f"transformers can't read {checkpoint / 'config.json'}"):
        return AutoConfig.for_model(**told)


def _check_fit(config: "PreTrainedConfig", entries: Mapping[str, TensorEntry], checkpoint: Path) -> None:
    """Refuse tensors that are not those of the class, or of another shape: the sizes in the file are config.json's."""
    import torch

    model = class_of(config, checkpoint, torch.float32)
    base = f"{model.base_model_prefix}."  # which a model that was saved without its head leaves out
    wanted = {name: tuple(item.shape) for name, item in model.state_dict().items()}
    found = {
        name if name.startswith((base, "lm_head.")) else base + name: entry.shape for name, entry in entries.items()
    }
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    check_complete(
        checkpoint,
        mismatched={name for name in wanted.keys() & found.keys() if wanted[name] != found[name]},
        missing=wanted.keys() - found.keys() - tied,
        unexpected=found.keys() - wanted.keys(),
    )


def _pieces(config: "PreTrainedConfig", architecture: Architecture, options: ExportOptions) -> dict[str, Piece]:
    """What is written, by its name in the file."""
    name_in_file = names(config, architecture)
    written: dict[str, Piece] = {}
    on_disk = read_entries(options.directory)
    entries = {name: entry for name, entry in on_disk.items() if not name.endswith(COMPUTED)}
    _check_fit(config, entries, options.directory)
    for name, entry in entries.items():
        make = partial(arranged, name, config=config, architecture=architecture)
        piece = Piece(name=name, source=name, entry=entry, shape=entry.shape, make=make)
        for one in latent_pieces(piece, config, options) if config.model_type == LATENT else [piece]:
            new = name_in_file(one.name)
            if new is None:
                raise UserError(f"llama.cpp has no place for tensor {name} in a {config.model_type}")
            written[new] = one
    return written


def _write(
    file: Path,
    options: ExportOptions,
    config: "PreTrainedConfig",
    architecture: Architecture,
    pieces: dict[str, Piece],
    advance: Callable[[int], None],
) -> None:
    import gguf
    import torch

    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH[architecture.name]])
    try:
        dtypes = {new: stored_dtype(piece.entry, piece.shape, options) for new, piece in pieces.items()}
        matrices = [dtypes[new] for new, piece in pieces.items() if len(piece.shape) > 1]
        kinds = {torch.float32: "ALL_F32", torch.float16: "MOSTLY_F16", torch.bfloat16: "MOSTLY_BF16"}
        writer.add_file_type(gguf.LlamaFileType[kinds[max(matrices, key=matrices.count)]])
        writer.add_name(options.directory.resolve().name)
        describe(writer, config, architecture)
        add_vocabulary(writer, options.directory, config.vocab_size, options.pre)
        for new, piece in pieces.items():
            _announce(writer, new, piece.shape, dtypes[new])
        writer.write_header_to_file()
        _write_settings(writer, options.directory)
        writer.write_ti_data_to_file()
        for new, piece in pieces.items():
            tensor = piece.make(piece.entry.load()).to(dtypes[new]).contiguous()
            writer.write_tensor_data(_as_numpy(tensor))
            advance(piece.entry.nbytes if piece.name == piece.source else 0)
    finally:
        writer.close()


def _write_settings(writer: "GGUFWriter", checkpoint: Path) -> None:
    """Write what was described, sizes and tokenizer."""
    try:
        writer.write_kv_data_to_file()
    except (struct.error, ArithmeticError, ValueError, AttributeError) as error:
        raise UserError(
            f"config.json or the tokenizer of {checkpoint} says what no GGUF can hold ({first_line(error)}); mend it"
        ) from None


def arranged(
    name: str, tensor: "torch.Tensor", config: "PreTrainedConfig", architecture: Architecture
) -> "torch.Tensor":
    """The rows of queries and keys as llama.cpp pairs them, where that is not as transformers does.

    Half a head apart, [heads, 2, head_dim / 2, ...], becomes side by side, [heads, head_dim / 2, 2, ...].
    """
    if not architecture.interleaved or not name.rpartition(".")[0].endswith((".q_proj", ".k_proj")):
        return tensor
    halves = tensor.reshape(-1, 2, head_dim(config) // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


def _announce(writer: "GGUFWriter", name: str, shape: tuple[int, ...], dtype: "torch.dtype") -> None:
    import gguf
    import numpy as np
    import torch

    nbytes = torch.Size(shape).numel() * dtype.itemsize
    if dtype == torch.bfloat16:  # numpy has none, so its rows are bytes
        rows = (*shape[:-1], shape[-1] * 2)
        writer.add_tensor_info(name, rows, np.dtype(np.uint8), nbytes, raw_dtype=gguf.GGMLQuantizationType.BF16)
    else:
        kind = np.float16 if dtype == torch.float16 else np.float32
        writer.add_tensor_info(name, shape, np.dtype(kind), nbytes)


def _as_numpy(tensor: "torch.Tensor") -> Any:
    import torch

    return (tensor.view(torch.uint8) if tensor.dtype == torch.bfloat16 else tensor).numpy()
