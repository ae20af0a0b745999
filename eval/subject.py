"""What is to be measured: checkpoints with their labels, text and windows, all checked before any model is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gqa.convert.data import read_documents
from gqa.convert.errors import UserError
from gqa.convert.pretrained import load_config, load_tokenizer
from gqa.convert.source import resolve_checkpoint
from gqa.convert.tensors import weight_files
from gqa.eval.estimate import Sample, choose_sample
from gqa.eval.options import EvalOptions
from gqa.eval.perplexity import Window, token_windows
from gqa.eval.text import TokenText, tokenise

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Material:
    """What a tokenizer makes of the data; checkpoints with the same tokenizer share one."""

    text: TokenText
    windows: list[Window]
    sample: Sample

    @property
    def num_documents(self) -> int:
        """Documents that the windows reach."""
        return len(np.unique(self.text.document))


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A checkpoint that is ready to be measured."""

    label: str
    path: Path
    config: "PreTrainedConfig"
    material: Material


def prepare(named: Sequence[tuple[str, Path]], options: EvalOptions) -> list[Subject]:
    """Check every checkpoint, given with its label, and tokenise the data for each.

    Raises:
        UserError: whatever can be known to be wrong without loading a model.
    """
    materials: dict[str, Material] = {}
    subjects = []
    for label, path in named:
        weight_files(path)
        config, tokenizer = load_config(path), load_tokenizer(path)
        _check_window(config, options, path)
        key = _identity(tokenizer, path)
        if key not in materials:
            materials[key] = _material(tokenizer, options)
        _check_vocabulary(materials[key].text, tokenizer, config, path)
        subjects.append(Subject(label=label, path=path, config=config, material=materials[key]))
    return subjects


def name_checkpoints(checkpoints: Sequence[str | Path]) -> list[tuple[str, Path]]:
    """A label and a directory for each checkpoint.

    `label=path` gives the label; otherwise it is the directory's name, with as many of its parents as tell it from the
    others, or the Hub id.

    Raises:
        UserError: one is not there, or two have the same label.
    """
    given = [_split_label(checkpoint) for checkpoint in checkpoints]
    paths = [resolve_checkpoint(name) for _, name in given]
    unnamed = [
        path.resolve() for (label, name), path in zip(given, paths, strict=True) if not label and _is_local(name)
    ]
    depth = _telling_depth(unnamed)
    labels = [
        label or ("/".join(path.resolve().parts[-depth:]) if _is_local(name) else str(name))
        for (label, name), path in zip(given, paths, strict=True)
    ]
    for label in labels:
        if labels.count(label) > 1:
            raise UserError(f"two checkpoints are called {label!r}; tell them apart as one={label} other={label}")
    return list(zip(labels, paths, strict=True))


def _split_label(checkpoint: str | Path) -> tuple[str, str | Path]:
    if isinstance(checkpoint, Path) or "=" not in checkpoint or Path(checkpoint).exists():
        return "", checkpoint
    label, _, path = checkpoint.partition("=")
    if not label or not path:
        raise UserError(f"{checkpoint!r} is neither a checkpoint nor label=checkpoint")
    return label, path


def _is_local(name: str | Path) -> bool:
    return Path(name).is_dir()


def _telling_depth(paths: list[Path]) -> int:
    for depth in range(1, max((len(path.parts) for path in paths), default=1)):
        if len({path.parts[-depth:] for path in paths}) == len(paths):
            return depth
    return 1


def _material(tokenizer: "PreTrainedTokenizerBase", options: EvalOptions) -> Material:
    documents = read_documents(
        options.data, text_column=options.text_column, subset=options.subset, split=options.split
    )
    text = tokenise(documents, tokenizer, options)
    windows = [
        window
        for start, end in text.sequences
        for window in token_windows(
            end - start,
            window=options.window,
            stride=options.stride,
            prefix=text.bos is not None,
            offset=start,
        )
    ]
    if text.longest < 2:
        raise UserError(f"every document in {options.data} is shorter than two tokens; use longer texts")
    if not windows:
        raise UserError(f"max_tokens {options.max_tokens} leaves nothing to predict; take more")
    window_of = np.full(len(text.ids), -1)
    for index, window in enumerate(windows):
        window_of[window.first : window.end] = index
    return Material(text=text, windows=windows, sample=choose_sample(window_of, text.document, text.num_bytes))


def _identity(tokenizer: "PreTrainedTokenizerBase", path: Path) -> str:
    """Equal for tokenizers that make the same tokens of every text; pure Python ones are told apart by their path."""
    if not tokenizer.is_fast:
        return str(path)
    special = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    return f"{special} {tokenizer.backend_tokenizer.to_str()}"  # pyright: ignore[reportAttributeAccessIssue]


def _check_window(config: "PreTrainedConfig", options: EvalOptions, path: Path) -> None:
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and options.window - 1 > positions:  # the last token is predicted, never seen
        raise UserError(f"window {options.window} is longer than the {positions} positions of {path}; use {positions}")


def _check_vocabulary(
    text: TokenText, tokenizer: "PreTrainedTokenizerBase", config: "PreTrainedConfig", path: Path
) -> None:
    highest = max(int(text.ids.max()), text.bos or 0)
    if highest >= config.vocab_size:
        token = tokenizer.convert_ids_to_tokens(highest)
        raise UserError(
            f"the tokenizer of {path} makes token {highest} ({token!r}), but its model knows {config.vocab_size} "
            "tokens; restore the tokenizer that belongs to the model"
        )
