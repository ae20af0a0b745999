"""Recall: samples are what they say they are, likelihoods those of whole texts, and a model that copies has it all."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from gqa.convert.errors import UserError
from gqa.eval import recall
from gqa.eval.halves import Halves
from gqa.eval.options import EvalOptions
from gqa.eval.recall import PAIRS, check_recall, recall_at
from gqa.eval.text import tokenise

LENGTH = 360


@pytest.fixture(scope="module")
def tokenizer(make_tokenizer):
    return make_tokenizer(adds_bos=True)


@pytest.fixture(scope="module")
def text(tokenizer, texts):
    return tokenise(texts, tokenizer, EvalOptions(data="unread"))


@pytest.fixture(scope="module")
def model(make_checkpoint):
    return AutoModelForCausalLM.from_pretrained(make_checkpoint(max_position_embeddings=512)).eval()


def test_a_sample_holds_every_pair_once_and_asks_for_one(tokenizer, text):
    seen = set()
    for number in range(2 * PAIRS):
        sample = recall._sample(tokenizer, text, LENGTH, number)
        words = tokenizer.decode(sample.prompt, skip_special_tokens=True)
        values = [tokenizer.decode(value) for value in sample.values]
        assert len({*values}) == PAIRS
        key = words.splitlines()[-1]
        assert words.endswith(f"\n{key}")
        assert key.endswith(" =")
        assert words.count(f"\n{key}") == 2
        assert f"\n{key}{values[sample.right]}" in words
        assert sample.prompt[0] == tokenizer.bos_token_id
        assert len(sample.prompt) + max(map(len, sample.values)) == LENGTH
        seen.add(sample.right)
    assert seen == set(range(PAIRS))


def test_the_length_that_is_named_is_enough(tokenizer, text):
    with pytest.raises(
        UserError, match=r"recall at 20 tokens has no room for its 8 pairs, which take \d+; take more"
    ) as caught:
        check_recall(tokenizer, text, [LENGTH, 20])
    enough = int(str(caught.value).partition("which take ")[2].partition(";")[0])
    check_recall(tokenizer, text, [enough])
    for number in range(recall.SAMPLES):
        recall._sample(tokenizer, text, enough, number)
    with pytest.raises(UserError, match=r"needs as much text, and the data has \d+; take less"):
        check_recall(tokenizer, text, [len(text.ids) + 2 * enough])


def test_samples_are_the_same_again_and_others_at_other_lengths(tokenizer, text):
    one, again, other = (recall._sample(tokenizer, text, length, 3) for length in (LENGTH, LENGTH, LENGTH - 1))
    assert one == again
    assert one.values != other.values


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gemma2"])
def test_likelihoods_are_those_of_the_whole_texts(make_checkpoint, tokenizer, text, name):
    window = {"sliding_window": 32} if name == "gemma2" else {}
    path = make_checkpoint(name, model_type=name, max_position_embeddings=512, **window)
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    sample = recall._sample(tokenizer, text, LENGTH, 0)
    found = recall._likelihoods(Halves(model), sample)
    for value, likelihood in zip(sample.values, found, strict=True):
        ids = torch.tensor([sample.prompt + value])
        with torch.no_grad():
            scores = model(input_ids=ids).logits[0, len(sample.prompt) - 1 : -1].log_softmax(-1)
        assert float(scores.gather(1, torch.tensor(value)[:, None]).sum()) == pytest.approx(likelihood, rel=1e-4)


def test_a_model_that_copies_finds_everything_and_a_random_one_guesses(model, tokenizer, text, monkeypatch):
    (found,) = recall_at(model, tokenizer, text, [LENGTH], samples=8)
    assert (found.length, found.samples, found.chance) == (LENGTH, 8, 1 / 8)
    assert found.accuracy < 1
    exact = SimpleNamespace(right=lambda _, sample: np.where(np.arange(PAIRS) == sample.right, -1.0, -9.0))
    monkeypatch.setattr(recall, "_likelihoods", exact.right)
    (found,) = recall_at(model, tokenizer, text, [LENGTH], samples=8)
    assert (found.accuracy, found.accuracy_standard_error) == (1, 0)
    assert found.choice_nll == pytest.approx(math.log(1 + 7 * math.exp(-8)))
    monkeypatch.setattr(recall, "_likelihoods", lambda *_: np.zeros(PAIRS))
    (found,) = recall_at(model, tokenizer, text, [LENGTH], samples=8)
    assert found.accuracy == 0  # a tie is not found
    assert found.choice_nll == pytest.approx(math.log(8))
