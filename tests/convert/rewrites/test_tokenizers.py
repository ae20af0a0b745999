"""Tokenizers of rewritten checkpoints: the ids of a text are what they were, whatever the model type is now."""

import json
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, XGLMTokenizer

from gqa.convert.errors import UserError
from gqa.convert.plan import ConvertOptions
from gqa.convert.rewrite import convert

ODD = "Zwölf  Boxkämpfer\n\n\t jagen 🦊  don't <|endoftext|>x </s>  \u200b１２３ e\u0301"
SPECIAL = " <madeupword3>y <|extratoken_1|> <s><pad>  <unk> <mask> 漢字"
SPECIAL_TO_ALL = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    made.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "</s>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([ODD * 3], trainer)
    return made


@pytest.fixture(scope="session")
def xglm_tokenizer() -> XGLMTokenizer:
    """fairseq's order: <s>, <pad>, </s> and <unk>, then the pieces, then seven words that nobody made up."""
    learner = Tokenizer(models.Unigram())
    learner.normalizer = normalizers.Replace(Regex(" {2,}"), " ")  # pyright: ignore[reportAttributeAccessIssue]
    learner.pre_tokenizer = pre_tokenizers.Metaspace()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.UnigramTrainer(vocab_size=120, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    learner.train_from_iterator([ODD] * 5, trainer)
    pieces = [(piece, score) for piece, score in json.loads(learner.to_str())["model"]["vocab"] if piece != "<unk>"]
    return XGLMTokenizer(vocab=[*((token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")), *pieces])


def check_same(before: Path, after: Path) -> None:
    """Both directories' tokenizers do the same with a text, a pair of texts and a batch, and say the same of it."""
    one, other = AutoTokenizer.from_pretrained(before), AutoTokenizer.from_pretrained(after)
    text = ODD + SPECIAL
    ids = one(text)["input_ids"]
    assert other(text)["input_ids"] == ids
    for given in ({"add_special_tokens": False}, {"text_pair": ODD}, {"truncation": True, "max_length": 7}):
        assert other(text, **given)["input_ids"] == one(text, **given)["input_ids"], given
    for skip in (False, True):
        assert other.decode(ids, skip_special_tokens=skip) == one.decode(ids, skip_special_tokens=skip)
    if one.pad_token is not None:
        assert other([text, "x"], padding=True)["input_ids"] == one([text, "x"], padding=True)["input_ids"]
    assert other.get_vocab() == one.get_vocab()
    assert other.special_tokens_map == one.special_tokens_map
    assert sorted(other.all_special_ids) == sorted(one.all_special_ids)
    assert (other.model_max_length, other.padding_side) == (one.model_max_length, one.padding_side)


_END = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
_ADDED = {
    key: {"__type": "AddedToken", "content": token, "lstrip": False, "normalized": True, "rstrip": False}
    for key, token in SPECIAL_TO_ALL.items()
}


@pytest.mark.parametrize("files", ["tokenizer.json", "vocab.json"])
@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("gpt2", None),
        ("gpt2", {"model_max_length": 1024}),
        ("gpt_neo", {"tokenizer_class": "GPT2Tokenizer", "model_max_length": 2048, **_END}),
        ("gpt_neox", {"tokenizer_class": "GPTNeoXTokenizer", "add_prefix_space": False, **_END}),
        ("gpt_neox-sequential", {"tokenizer_class": "GPTNeoXTokenizer", **_END, "pad_token": "<pad>"}),
        ("gpt_neox", {"tokenizer_class": "GPTNeoXTokenizerFast", "add_prefix_space": True, **_END}),
        ("gptj", {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, **_END}),
        ("codegen", {"tokenizer_class": "CodeGenTokenizer", "padding_side": "left", **_END}),
        ("codegen", {"tokenizer_class": "CodeGenTokenizer", "add_bos_token": True, **_END}),
        ("opt", {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "bos_token": "</s>", "pad_token": "<pad>"}),
        ("opt", {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "errors": "replace", **_ADDED}),
    ],
)
def test_tokenizers_survive_another_model_type(name, config, files, saved, tokenizer, tmp_path):
    checkpoint = saved(name, vocab_size=310)
    if files == "vocab.json":
        tokenizer.model.save(str(checkpoint))
    else:
        tokenizer.save(str(checkpoint / "tokenizer.json"))
    if config is not None:
        (checkpoint / "tokenizer_config.json").write_text(json.dumps(config))
    if name in ("gptj", "codegen"):
        (checkpoint / "added_tokens.json").write_text('{"<|extratoken_1|>": 300, "<|extratoken_2|>": 301}')
        (checkpoint / "special_tokens_map.json").write_text(json.dumps(_END))
    convert(checkpoint, tmp_path / "out", ConvertOptions(groups=1))
    check_same(checkpoint, tmp_path / "out")
    generation = "generation_config.json"
    assert (tmp_path / "out" / generation).read_bytes() == (checkpoint / generation).read_bytes()


@pytest.mark.parametrize("config", ["as saved", "of transformers 4", "no class", "none"])
def test_the_unigram_tokenizer_of_xglm_survives_too(config, saved, xglm_tokenizer, tmp_path):
    checkpoint = saved("xglm", vocab_size=310)
    xglm_tokenizer.save_pretrained(checkpoint)
    path = checkpoint / "tokenizer_config.json"
    said = json.loads(path.read_text())
    if config == "of transformers 4":
        said["additional_special_tokens"] = said.pop("extra_special_tokens")
    if config == "no class":
        del said["tokenizer_class"]
    path.write_text(json.dumps(said))
    if config == "none":
        path.unlink()
    assert xglm_tokenizer("x")["input_ids"][0] == xglm_tokenizer.eos_token_id  # what it begins every text with
    assert len({*xglm_tokenizer(ODD)["input_ids"]}) > 20
    convert(checkpoint, tmp_path / "out", ConvertOptions(groups=1))
    check_same(checkpoint, tmp_path / "out")


def test_a_vocabulary_that_the_class_does_not_read_is_a_sentence(saved, xglm_tokenizer, tmp_path):
    checkpoint = saved("xglm", vocab_size=310)
    xglm_tokenizer.save_pretrained(checkpoint)
    (checkpoint / "tokenizer.json").rename(checkpoint / "sentencepiece.bpe.model")
    with pytest.raises(UserError, match=r"XGLMTokenizer of transformers reads tokenizer\.json, not sentence"):
        convert(checkpoint, tmp_path / "out", ConvertOptions(groups=1))
    assert not (tmp_path / "out").exists()


def test_a_damaged_tokenizer_is_a_sentence(saved, tmp_path):
    checkpoint = saved("gpt2")
    (checkpoint / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"the tokenizer of .* can't be loaded"):
        convert(checkpoint, tmp_path / "out", ConvertOptions(groups=1))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("text", "sentence"), [("{oops", "is not JSON"), ("[]", "holds a list, not a JSON object")])
def test_damaged_settings_of_a_tokenizer_are_a_sentence(text, sentence, saved, tokenizer, tmp_path):
    checkpoint = saved("gpt_neox")
    tokenizer.save(str(checkpoint / "tokenizer.json"))
    (checkpoint / "tokenizer_config.json").write_text(text)
    with pytest.raises(UserError, match=rf"tokenizer_config\.json of the checkpoint {sentence}"):
        convert(checkpoint, tmp_path / "out", ConvertOptions(groups=2))
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.name]
