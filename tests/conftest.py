"""For every floor: tiny real checkpoints with a byte-level tokenizer, made on disk, and a little text."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

EOS, BOS = 0, 1

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on.\n",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich 🦊.\n" * 3,
    "A short one.",
    "def area(radius):\n    return 3.14159 * radius ** 2\n" * 6,
    "x",
    "Perplexity is the exponential of the mean negative log-likelihood. " * 4,
]


def pytest_configure() -> None:
    """Let Ctrl-C reach the commands that tests start, also where a shell runs the tests in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return list(TEXTS)


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    def make(*, adds_bos: bool = False, bos_token: str | None = "<bos>", **special: Any) -> PreTrainedTokenizerFast:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
        tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
        trainer = trainers.BpeTrainer(
            vocab_size=320,
            special_tokens=["<eos>", "<bos>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(TEXTS, trainer)
        if adds_bos:
            tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
                single="<bos> $A", special_tokens=[("<bos>", BOS)]
            )
        tokens = {"eos_token": "<eos>", "bos_token": bos_token} | special
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens)

    return make


@pytest.fixture(scope="session")
def make_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Callable[..., PreTrainedTokenizerFast]
) -> Callable[..., Path]:
    """Write a random checkpoint to disk; keywords go to its configuration."""

    def make(
        name: str = "tiny",
        *,
        model_type: str = "llama",
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        adds_bos: bool = False,
        **config: Any,
    ) -> Path:
        path = tmp_path_factory.mktemp("checkpoint") / name
        sizes: dict[str, Any] = {
            "vocab_size": 320,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 128,
            "eos_token_id": EOS,
            "bos_token_id": BOS,
            "pad_token_id": EOS,
        }
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **(sizes | config)))
        for parameter in model.parameters():  # large enough that tokens get very different probabilities
            torch.nn.init.normal_(parameter, mean=0.5 if parameter.ndim == 1 else 0.0, std=0.25)
        model.to(dtype).save_pretrained(path)
        make_tokenizer(adds_bos=adds_bos).save_pretrained(path)
        return path

    return make
