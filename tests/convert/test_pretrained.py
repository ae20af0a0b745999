"""Configurations and tokenizers as transformers reads them, and the sentence for each that it can't."""

import json
from pathlib import Path

import pytest

from gqa.convert.errors import UserError
from gqa.convert.pretrained import load_config, load_tokenizer


@pytest.fixture
def broken(make_checkpoint) -> Path:
    """A checkpoint that the test may break."""
    return make_checkpoint()


def change_config(checkpoint: Path, **values) -> None:
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "llamma"}, r"'llamma' is unknown to transformers .did you mean 'llama'.."),
        ({"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}, "needs its own code to run"),
        ({"model_type": None}, "None is unknown to transformers"),
        ({"model_type": "t5"}, "is a t5, which is no causal language model"),
        ({"hidden_size": "wide"}, "config.json of .* can't be used: .*hidden_size"),
        ({"id2label": 3}, "config.json of .* can't be used: .*'int' object"),
        ({"dtype": []}, "config.json of .* can't be used: .*index out of range"),
    ],
)
def test_a_config_that_transformers_cannot_use_is_an_error(broken, values, message):
    change_config(broken, **values)
    with pytest.raises(UserError, match=message):
        load_config(broken)


def test_a_model_without_attention_is_an_error(broken):
    (broken / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(UserError, match="is a mamba, which has no attention heads to compare"):
        load_config(broken)


def test_the_tokenizer_is_the_checkpoints_own(broken, make_tokenizer, texts):
    assert load_tokenizer(broken)(texts)["input_ids"] == make_tokenizer()(texts)["input_ids"]


@pytest.mark.parametrize("content", ["{", '{"model": {}}', '{"added_tokens": [], "model": {"type": "Unheard"}}'])
def test_a_damaged_tokenizer_is_an_error(broken, content):
    (broken / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"the tokenizer of .* can't be loaded"):
        load_tokenizer(broken)


@pytest.mark.parametrize("load", [load_config, load_tokenizer])
def test_a_bug_is_not_blamed_on_the_files(broken, load, monkeypatch):
    def fails(*arguments, **settings):
        raise AssertionError("a bug")

    for loader in ("AutoConfig", "AutoTokenizer"):
        monkeypatch.setattr(f"transformers.{loader}.from_pretrained", fails)
    with pytest.raises(AssertionError, match="a bug"):
        load(broken)


def test_no_tokenizer_is_an_error(broken):
    for path in broken.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UserError, match=r"the tokenizer of .* can't be loaded"):
        load_tokenizer(broken)


def test_settings_without_a_vocabulary_are_no_tokenizer(broken):
    (broken / "tokenizer.json").unlink()
    (broken / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    with pytest.raises(UserError, match=r"has no tokenizer; copy tokenizer\.json"):
        load_tokenizer(broken)
