"""A checkpoint from nothing: random weights for any configuration, and a byte-level BPE tokenizer of its vocabulary.

Its tokenizer's only special token is the end of text, id 0, which pads as well. There is no beginning-of-text token:
packed documents never see the one before, so none is ever learnt.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

SPECIAL_TOKENS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
"""What a configuration must say for the tokenizer made here."""


def write_random_checkpoint(
    directory: Path, text: Path, config: "PreTrainedConfig", *, end_of_text: str = "<eos>", words: Any = None
) -> None:
    """A randomly initialised model in fp32, and a tokenizer trained on the jsonl file `text`.

    Args:
        directory: an existing directory.
        text: a document a line as `{"text": ...}`.
        config: the model's, with `SPECIAL_TOKENS` and rotary positions; its `vocab_size` is the tokenizer's.
        end_of_text: the special token's name.
        words: what cuts text into words before the merges, a pre-tokenizer of `tokenizers` that ends in bytes [default:
            GPT-2's]. Name both where transformers has a tokenizer class for the model's type: it overrides the file.
    """
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    written = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    # transformers 5 saves the angle and the dtype in its own spelling only; older readers would take their defaults.
    both = written | {"rope_theta": written["rope_parameters"]["rope_theta"], "torch_dtype": written["dtype"]}
    _write_json(directory / "config.json", both)
    generation = {name: written[name] for name in ("eos_token_id", "pad_token_id")}
    _write_json(directory / "generation_config.json", generation)
    tokenizer = _trained_tokenizer(text, written["vocab_size"], end_of_text, words)
    tokenizer.save(str(directory / "tokenizer.json"))
    # written by hand, so that transformers 4 and 5 both read it
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": end_of_text,
        "pad_token": end_of_text,
        "clean_up_tokenization_spaces": False,
        "model_max_length": written["max_position_embeddings"],
    }
    _write_json(directory / "tokenizer_config.json", settings)


def _trained_tokenizer(text: Path, vocabulary: int, end_of_text: str, words: Any) -> Any:
    """A byte-level BPE of `tokenizers`, trained on the jsonl file `text`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer: Any = Tokenizer(models.BPE())  # Any: the stubs know neither attribute
    tokenizer.pre_tokenizer = words or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[end_of_text],  # the first token, so its id is 0
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    with text.open(encoding="utf-8") as lines:
        tokenizer.train_from_iterator((json.loads(line)["text"] for line in lines), trainer)
    return tokenizer


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
