"""A checkpoint from nothing, for a model type that has a tokenizer class of its own."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    Qwen2Config,
    Qwen2Tokenizer,
    T5Config,
)

from gqa.recipes.demo.scratch import SPECIAL_TOKENS, T5_TOKENS, write_random_checkpoint

CONFIG = Qwen2Config(
    vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=4, max_position_embeddings=256, tie_word_embeddings=True,
    rope_parameters={"rope_type": "default", "rope_theta": 50000.0}, **SPECIAL_TOKENS,
)  # fmt: skip


def test_transformers_reads_the_tokenizer_as_it_was_trained(tmp_path: Path, text: dict[str, Path]):
    words = Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
    write_random_checkpoint(tmp_path, text["train"], CONFIG, end_of_text="<|endoftext|>", words=words)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    document = json.loads(text["train"].read_text().splitlines()[0])["text"] + "\n\n  12's ünïcode"
    trained = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = tokenizer(document)["input_ids"]
    assert ids == trained.encode(document).ids
    assert tokenizer.decode(ids) == document
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 0)
    assert len(tokenizer) == trained.get_vocab_size() <= CONFIG.vocab_size, "a token beyond the model's embeddings"


def test_the_model_is_the_configuration_s_own_in_fp32(tmp_path: Path, text: dict[str, Path]):
    write_random_checkpoint(tmp_path, text["train"], CONFIG)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.config.rope_parameters["rope_theta"] == 50000.0
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.get_input_embeddings().weight.shape == (320, 32)
    assert "model.layers.0.self_attn.q_proj.bias" in model.state_dict()


def test_an_encoder_decoder_has_t5s_layout_of_tokens(tmp_path: Path, text: dict[str, Path]):
    sizes: dict[str, Any] = {"vocab_size": 330, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4}
    config = T5Config(n_positions=64, **sizes, **T5_TOKENS)  # pyright: ignore[reportCallIssue] - old, but everywhere
    write_random_checkpoint(tmp_path, text["train"], config, end_of_text="</s>", sentinels=10)
    tokenizer, model = AutoTokenizer.from_pretrained(tmp_path), AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.model_max_length) == (0, 1, 64)
    assert tokenizer("one\n two")["input_ids"][-1] == 1
    first, last = tokenizer.convert_tokens_to_ids(["<extra_id_0>", "<extra_id_9>"])
    assert len(tokenizer) - 1 == first == last + 9 < 330
    assert model.config.decoder_start_token_id == 0
    assert model(input_ids=torch.tensor([[first]]), labels=torch.tensor([[last]])).loss.isfinite()
