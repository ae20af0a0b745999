"""For every floor: tiny real checkpoints with a byte-level tokenizer, made on disk, and a little text."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

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


@pytest.fixture
def calibration_text(tmp_path: Path, texts: list[str]) -> Path:
    """A .jsonl file of many short documents, no two the same."""
    path = tmp_path / "text.jsonl"
    rows = [{"text": f"{number}: {text}"} for number in range(40) for text in texts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


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


T5_SIZES: dict[str, Any] = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
BART_SIZES: dict[str, Any] = {
    "d_model": 32,
    "max_position_embeddings": 128,
    "bos_token_id": BOS,
    "forced_eos_token_id": None,
    **{f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in
       {"layers": 2, "attention_heads": 4, "ffn_dim": 48}.items()},
}  # fmt: skip
SENTINELS = [f"<extra_id_{number}>" for number in range(20)]


@pytest.fixture(scope="session")
def make_encoder_decoder(
    tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Callable[..., PreTrainedTokenizerFast]
) -> Callable[..., Path]:
    """Write a random encoder-decoder to disk, without dropout; a t5's tokenizer has sentinels and closes texts."""

    def make(name: str = "tiny", *, model_type: str = "t5", seed: int = 0, **config: Any) -> Path:
        path = tmp_path_factory.mktemp("checkpoint") / name
        is_t5 = "t5" in model_type
        sizes = (T5_SIZES | {"dropout_rate": 0.0}) if is_t5 else (BART_SIZES | {"dropout": 0.0})
        ids = {"eos_token_id": EOS, "pad_token_id": 2, "decoder_start_token_id": 2}
        torch.manual_seed(seed)
        settings = {"vocab_size": 350, **ids, **sizes, **config}
        model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(model_type, **settings))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, mean=0.5 if parameter.ndim == 1 else 0.0, std=0.25)
        model.save_pretrained(path)
        special = {"additional_special_tokens": SENTINELS} if is_t5 else {}
        tokenizer = make_tokenizer(**special)
        closed = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", EOS)])
        tokenizer.backend_tokenizer.post_processor = closed
        tokenizer.save_pretrained(path)
        return path

    return make


WHISPER_TOKENS = ("<|startoftranscript|>", "<|en|>", "<|de|>", "<|transcribe|>", "<|translate|>", "<|notimestamps|>")
RATE, BINS = 16000, 8


@pytest.fixture(scope="session")
def make_whisper(
    tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Callable[..., PreTrainedTokenizerFast]
) -> Callable[..., Path]:
    """Write a random Whisper that hears one second to disk, without dropout, with Whisper's own tokenizer."""

    def make(name: str = "whisper", *, seed: int = 0, **config: Any) -> Path:
        path = tmp_path_factory.mktemp("checkpoint") / name
        bpe = json.loads(make_tokenizer().backend_tokenizer.to_str())["model"]
        vocabulary = {token: number for token, number in bpe["vocab"].items() if number > BOS}
        special = {token: 320 + number for number, token in enumerate(("<|endoftext|>", *WHISPER_TOKENS))}
        merges = [tuple(pair) for pair in bpe["merges"]]
        tokenizer = WhisperTokenizer(vocabulary | special, merges, language="en", task="transcribe")
        tokenizer.save_pretrained(path)
        WhisperFeatureExtractor(feature_size=BINS, chunk_length=1).save_pretrained(path)
        end, start = (tokenizer.convert_tokens_to_ids(token) for token in ("<|endoftext|>", WHISPER_TOKENS[0]))
        ids = {"eos_token_id": end, "bos_token_id": end, "pad_token_id": end, "decoder_start_token_id": start}
        hearing = {"num_mel_bins": BINS, "max_source_positions": 50, "max_target_positions": 64, "dropout": 0.0}
        sizes = {key: value for key, value in BART_SIZES.items() if "layers" in key or "heads" in key or "dim" in key}
        torch.manual_seed(seed)
        settings: dict[str, Any] = {"vocab_size": 330, "d_model": 32, **ids, **hearing, **sizes, **config}
        model = WhisperForConditionalGeneration(WhisperConfig(**settings))
        for parameter in filter(lambda parameter: parameter.requires_grad, model.parameters()):
            torch.nn.init.normal_(parameter, mean=0.5 if parameter.ndim == 1 else 0.0, std=0.25)
        model.save_pretrained(path)
        return path

    return make


@pytest.fixture(scope="session")
def write_sound() -> Callable[..., None]:
    """Write so many seconds of a chord to a sound file, of the kind that its name says."""

    def write(path: Path, seconds: float = 0.5, *, pitch: float = 440.0, rate: int = RATE, channels: int = 1) -> None:
        time = np.arange(round(seconds * rate)) / rate
        chord = sum(np.sin(2 * np.pi * pitch * harmonic * time) / harmonic for harmonic in (1, 2, 3)) / 4
        soundfile.write(path, np.stack([chord] * channels, axis=1), rate)

    return write


@pytest.fixture
def speech(tmp_path: Path, texts: list[str], write_sound: Callable[..., None]) -> Path:
    """A .jsonl file of recordings, with their transcripts, that lie in a folder beside it."""
    (tmp_path / "clips").mkdir()
    rows = []
    for number, text in enumerate(texts[:3] + texts[4:5]):
        write_sound(tmp_path / "clips" / f"{number}.wav", 0.3 + 0.2 * number, pitch=220.0 * (number + 1))
        rows.append({"audio": f"clips/{number}.wav", "text": text[:30]})
    (tmp_path / "speech.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "speech.jsonl"
