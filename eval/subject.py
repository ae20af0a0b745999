"""What is to be measured: checkpoints with their labels and their data, all checked before any model is loaded."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gqa.convert.errors import UserError
from gqa.convert.pretrained import hears, load_config, load_tokenizer
from gqa.convert.sound import load_extractor
from gqa.convert.source import resolve_checkpoint
from gqa.convert.tensors import weight_files
from gqa.eval.continuations import check_prompts
from gqa.eval.history import read_history
from gqa.eval.material import Material
from gqa.eval.options import EvalOptions
from gqa.eval.pairs import pair_material
from gqa.eval.recall import check_recall
from gqa.eval.speech import speech_material
from gqa.eval.stream import StreamMaterial, stream_material

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A checkpoint that is ready to be measured."""

    label: str
    path: Path
    config: "PreTrainedConfig"
    material: Material
    """What its tokenizer makes of the data; checkpoints with the same tokenizer share one."""

    history: dict[str, Any] | None = None
    """How it was made (`gqa.eval.history`), where gqa.json tells."""


def prepare(named: Sequence[tuple[str, Path]], options: EvalOptions) -> list[Subject]:
    """Check every checkpoint, given with its label, and tokenise the data for each.

    Raises:
        UserError: whatever can be known to be wrong without loading a model.
    """
    materials: dict[str, Material] = {}
    subjects = []
    for label, path in named:
        weight_files(path)
        config, tokenizer = load_config(path, encoder_decoder=True), load_tokenizer(path)
        _check_window(config, options, path)
        _check_kind(config, path, subjects)
        key = _identity(tokenizer, path) + (_hearing(path) if hears(config) else "")
        if key not in materials:
            materials[key] = material = _material(tokenizer, config, options, path)
            if isinstance(material, StreamMaterial):
                check_recall(tokenizer, material.text, options.recall)
        _check_vocabulary(materials[key], tokenizer, config, path)
        check_prompts(options.prompts, options.new_tokens, tokenizer, config, path)
        subjects.append(
            Subject(label=label, path=path, config=config, material=materials[key], history=read_history(path))
        )
    return subjects


def _check_kind(config: "PreTrainedConfig", path: Path, subjects: Sequence[Subject]) -> None:
    """Only models of one kind can be compared."""
    for first in subjects[:1]:
        if config.is_encoder_decoder != first.config.is_encoder_decoder:
            raise UserError(
                f"one of {first.path} and {path} is an encoder-decoder, which is scored on other tokens of the "
                "data than a decoder; evaluate them apart"
            )
        if hears(config) != hears(first.config):
            raise UserError(f"one of {first.path} and {path} hears and the other one reads; evaluate them apart")


def _hearing(path: Path) -> str:
    """Equal for checkpoints that make the same input of every sound."""
    return load_extractor(path).to_json_string()


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
            one, other, *_ = [name for each, (_, name) in zip(labels, given, strict=True) if each == label]
            raise UserError(f"two checkpoints are called {label!r}; tell them apart as one={one} other={other}")
    return list(zip(labels, paths, strict=True))


def _split_label(checkpoint: str | Path) -> tuple[str, str | Path]:
    if isinstance(checkpoint, Path) or "=" not in checkpoint or _exists(checkpoint):
        return "", checkpoint
    label, _, path = checkpoint.partition("=")
    if not label or not path:
        raise UserError(f"{checkpoint!r} is neither a checkpoint nor label=checkpoint")
    return label, path


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except OSError:  # a label and a path that are too long for one name
        return False


def _is_local(name: str | Path) -> bool:
    return Path(name).is_dir()


def _telling_depth(paths: list[Path]) -> int:
    for depth in range(1, max((len(path.parts) for path in paths), default=1)):
        if len({path.parts[-depth:] for path in paths}) == len(paths):
            return depth
    return 1


def _material(
    tokenizer: "PreTrainedTokenizerBase", config: "PreTrainedConfig", options: EvalOptions, path: Path
) -> Material:
    if hears(config):
        return speech_material(tokenizer, config, options, path)
    if config.is_encoder_decoder:
        return pair_material(tokenizer, options, path)
    return stream_material(tokenizer, options)


def _identity(tokenizer: "PreTrainedTokenizerBase", path: Path) -> str:
    """Equal for tokenizers that make the same tokens of every text."""
    special = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    if not tokenizer.is_fast:  # pure Python (Marian's, ByT5's): its class, vocabulary and files say what it does
        digest = hashlib.sha256(
            repr((type(tokenizer).__name__, special, sorted(tokenizer.get_vocab().items()))).encode()
        )
        for name in sorted(set(tokenizer.vocab_files_names.values())):
            digest.update((path / name).read_bytes() if (path / name).is_file() else b"")
        return digest.hexdigest()
    return f"{special} {tokenizer.backend_tokenizer.to_str()}"  # pyright: ignore[reportAttributeAccessIssue]


def _check_window(config: "PreTrainedConfig", options: EvalOptions, path: Path) -> None:
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return
    unseen = 0 if config.is_encoder_decoder else 1  # a window's last token is predicted, never seen
    contexts = () if options.speed is None else (each + options.speed.steps for each in options.speed.context)
    asked = {"window": [window - unseen for window in options.windows], "recall": options.recall, "context": contexts}
    for name, lengths in asked.items():
        longest = max(lengths, default=0)
        if longest > positions:
            given = longest + unseen if name == "window" else longest
            what = f"{name} {given}" if name != "context" else f"context (with the steps decoded) of {given} tokens"
            raise UserError(f"{what} is longer than the {positions} positions of {path}; use {positions}")


def _check_vocabulary(
    material: Material, tokenizer: "PreTrainedTokenizerBase", config: "PreTrainedConfig", path: Path
) -> None:
    highest = material.largest_id
    if highest >= config.vocab_size:
        token = tokenizer.convert_ids_to_tokens(highest)
        raise UserError(
            f"the tokenizer of {path} makes token {highest} ({token!r}), but its model knows {config.vocab_size} "
            "tokens; restore the tokenizer that belongs to the model"
        )
