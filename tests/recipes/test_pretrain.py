"""The embedded checkpoint, and the script that makes it."""

import json
from pathlib import Path
from typing import Any

import pytest

from gqa.recipes.demo.pretrain import KEPT, LARGEST, ROPE_THETA, write_random_checkpoint
from gqa.recipes.run import EMBEDDED

EMBEDDED_CHECKPOINT = EMBEDDED["embedded:demo"]


def check_checkpoint(directory: Path) -> None:
    """What must hold for the embedded checkpoint, trained or not."""
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(directory)
    assert (config.num_attention_heads, config.num_key_value_heads, config.tie_word_embeddings) == (8, 8, True)
    assert config.rope_parameters["rope_theta"] == ROPE_THETA != 10_000
    written = json.loads((directory / "config.json").read_text())
    assert (written["rope_theta"], written["torch_dtype"]) == (ROPE_THETA, written["dtype"])
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id) == (0, None)
    text = "def f(x):\n\treturn 'ünïcode \U0001f600'\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer) <= config.vocab_size


def test_a_random_checkpoint_is_whole_and_small_enough_in_bf16(tmp_path: Path, text: dict[str, Path]):
    from safetensors import safe_open

    write_random_checkpoint(tmp_path, text["train"])
    check_checkpoint(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        values = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118 - no iterator
    assert 2_900_000 < values < LARGEST / 2


def test_the_same_text_makes_the_same_checkpoint(tmp_path: Path, text: dict[str, Path]):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_random_checkpoint(tmp_path / name, text["train"])
    for file in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_the_embedded_checkpoint_is_whole_and_small_enough():
    check_checkpoint(EMBEDDED_CHECKPOINT)
    assert {path.name for path in EMBEDDED_CHECKPOINT.iterdir()} == {*KEPT, "README.md"}
    assert (EMBEDDED_CHECKPOINT / "model.safetensors").stat().st_size <= LARGEST


def test_the_embedded_checkpoint_says_how_it_was_made_and_nothing_of_where():
    from gqa.convert.provenance import read_stages

    (stage,) = read_stages(EMBEDDED_CHECKPOINT)
    assert stage["tokens"] >= 10_000_000
    assert stage["validation"][-1]["validation_perplexity"] < 20
    for name in ("gqa.json", "README.md", "config.json"):
        text = (EMBEDDED_CHECKPOINT / name).read_text()
        assert '"/' not in text, "absolute paths are those of the machine it was made on"


def test_the_embedded_checkpoint_loads_and_writes_python(recwarn: pytest.WarningsRecorder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(EMBEDDED_CHECKPOINT)
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_CHECKPOINT)
    inputs = tokenizer("import sys\nimport os\n\ndef main(", return_tensors="pt")
    written = tokenizer.decode(model.generate(**inputs, max_new_tokens=16, do_sample=False)[0])
    assert "):" in written.removeprefix("import sys\nimport os\n\ndef main(")
    assert not recwarn.list
