"""A checkpoint from nothing: random weights for any configuration, and a byte-level BPE tokenizer of its vocabulary.

A decoder's tokenizer has one special token, the end of text, id 0, which pads as well. There is no beginning-of-text
token: packed documents never see the one before, so none is ever learnt. An encoder-decoder's is laid out as T5's:
padding, which starts every target too, is id 0, the end of text id 1, and sentinels come last, the first one behind
the others.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

SPECIAL_TOKENS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
"""What a decoder's configuration must say for the tokenizer made here."""

T5_TOKENS: dict[str, Any] = {"eos_token_id": 1, "pad_token_id": 0, "decoder_start_token_id": 0}
"""What an encoder-decoder's must say."""

_PADDING = "<pad>"


def write_random_checkpoint(
    directory: Path,
    text: Path,
    config: "PreTrainedConfig",
    *,
    end_of_text: str = "<eos>",
    words: Any = None,
    sentinels: int = 0,
) -> None:
    """A randomly initialised model in fp32, and a tokenizer trained on the jsonl file `text`.

    Args:
        directory: an existing directory.
        text: a document a line as `{"text": ...}`.
        config: the model's, with `SPECIAL_TOKENS` or `T5_TOKENS`; its `vocab_size` is the tokenizer's.
        end_of_text: the special token's name.
        words: what cuts text into words before the merges, a pre-tokenizer of `tokenizers` that ends in bytes [default:
            GPT-2's]. Name both where transformers has a tokenizer class for the model's type: it overrides the file.
        sentinels: how many of the vocabulary's tokens are `<extra_id_0>` and so on, for span corruption.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    torch.manual_seed(0)
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    kind.from_config(config).save_pretrained(directory)
    written = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    # transformers 5 saves the angle and the dtype in its own spelling only; older readers would take their defaults.
    rope = written.get("rope_parameters") or {}
    both = {"torch_dtype": written["dtype"], **{key: rope[key] for key in ("rope_theta",) if key in rope}}
    _write_json(directory / "config.json", written | both)
    tokens = T5_TOKENS if config.is_encoder_decoder else dict.fromkeys(("eos_token_id", "pad_token_id"), 0)
    _write_json(directory / "generation_config.json", tokens)
    special = [_PADDING, end_of_text] if config.is_encoder_decoder else [end_of_text]
    tokenizer = _trained_tokenizer(text, written["vocab_size"] - sentinels, special, words)
    tokenizer.add_special_tokens([f"<extra_id_{number}>" for number in reversed(range(sentinels))])
    if config.is_encoder_decoder:
        _close_texts(tokenizer, end_of_text)
    tokenizer.save(str(directory / "tokenizer.json"))
    # written by hand, so that transformers 4 and 5 both read it
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": end_of_text,
        "pad_token": special[0],
        "clean_up_tokenization_spaces": False,
        "model_max_length": written.get("max_position_embeddings") or written["n_positions"],
    }
    _write_json(directory / "tokenizer_config.json", settings)


def _close_texts(tokenizer: Any, end_of_text: str) -> None:
    from tokenizers import processors

    known = [(end_of_text, tokenizer.token_to_id(end_of_text))]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {end_of_text}", special_tokens=known)


def _trained_tokenizer(text: Path, vocabulary: int, special: list[str], words: Any) -> Any:
    """A byte-level BPE of `tokenizers`, trained on the jsonl file `text`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer: Any = Tokenizer(models.BPE())  # Any: the stubs know neither attribute
    tokenizer.pre_tokenizer = words or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,  # the first tokens, so their ids are 0, 1
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    with text.open(encoding="utf-8") as lines:
        tokenizer.train_from_iterator((json.loads(line)["text"] for line in lines), trainer)
    return tokenizer


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
