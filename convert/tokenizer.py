"""The tokenizer of a checkpoint whose model type changes: said outright, so that no class has to be guessed from it.

AutoTokenizer takes the class from the model type where nothing else names one, builds a tokenizer from a vocabulary and
merges as that class does, and adds tokens that it thinks belong there. So what the original's tokenizer does in the end
is written as `tokenizer.json`, under the class that does just what stands in it and that every version knows.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gqa.convert.errors import UserError
from gqa.convert.pretrained import load_tokenizer, quiet_transformers
from gqa.convert.source import read_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "sentencepiece.bpe.model")
_CONFIG = "tokenizer_config.json"
_EXTRA = {"additional_special_tokens", "extra_special_tokens"}
_KEPT = ("chat_template", "model_max_length", *sorted(_EXTRA))


def write_tokenizer(checkpoint: Path, work: Path) -> None:
    """Write the tokenizer of `checkpoint`, if it has one, into `work`, where its files are copied already.

    Raises:
        UserError: its files are damaged, or not those that its class reads.
    """
    found = [name for name in _VOCABULARIES if (checkpoint / name).is_file()]
    if not found:
        return
    if "auto_map" in _read(work / _CONFIG):  # code of its own reads it, and lies beside it as before
        return
    quiet_transformers()
    tokenizer = load_tokenizer(checkpoint)
    _check_read(checkpoint, tokenizer, found)
    config = _read(work / _CONFIG)
    if tokenizer.is_fast:
        backend = tokenizer.backend_tokenizer  # pyright: ignore[reportAttributeAccessIssue]
        (work / "tokenizer.json").write_text(backend.to_str(pretty=True), encoding="utf-8")
        config = _config(tokenizer, config)
    else:
        config = config | {"tokenizer_class": type(tokenizer).__name__}
    _write(work / _CONFIG, config)


def name_tokenizer(config: Mapping[str, Any], work: Path, name: str) -> None:
    """Say of what class the tokenizer in `work` is, where there is one and nothing says it; its files stay as they are.

    Args:
        config: config.json of the original, which may say it too.
        work: where the files are.
        name: the class that the model type would have said.

    Raises:
        UserError: its settings are damaged.
    """
    said = _read(work / _CONFIG)
    if "tokenizer_class" in said or config.get("tokenizer_class"):
        return
    if any((work / vocabulary).is_file() for vocabulary in _VOCABULARIES):
        _write(work / _CONFIG, said | {"tokenizer_class": name})


def _check_read(checkpoint: Path, tokenizer: "PreTrainedTokenizerBase", found: list[str]) -> None:
    """Refuse a vocabulary that the class passes over: it makes a tokenizer that knows no words, in silence."""
    reads = set(tokenizer.vocab_files_names.values()) | ({"tokenizer.json"} if tokenizer.is_fast else set())
    if reads.isdisjoint(found):
        raise UserError(
            f"{checkpoint}: {type(tokenizer).__name__} of transformers reads {', '.join(sorted(reads))}, not "
            f"{', '.join(found)}; convert a copy that has the one, as transformers 4 writes it, or neither"
        )


def _read(path: Path) -> dict[str, Any]:
    return read_object(path, f"{path.name} of the checkpoint") if path.is_file() else {}


def _write(path: Path, config: dict[str, Any]) -> None:
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _config(tokenizer: "PreTrainedTokenizerBase", config: dict[str, Any]) -> dict[str, Any]:
    """What stands beside `tokenizer.json`: settings of the caller's side, and nothing that would change the ids."""
    said = {key: config[key] for key in _KEPT if key in config}
    if tokenizer.extra_special_tokens and not _EXTRA & said.keys():  # its class has some of its own accord
        said["additional_special_tokens"] = list(tokenizer.extra_special_tokens)  # as transformers 4 and 5 read it
    return {
        **said,
        **{key: str(token) for key, token in tokenizer.special_tokens_map.items() if isinstance(token, str)},
        "padding_side": tokenizer.padding_side,
        "truncation_side": tokenizer.truncation_side,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": bool(tokenizer.clean_up_tokenization_spaces),
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
