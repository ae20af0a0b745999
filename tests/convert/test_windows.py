"""Windows drawn from text: from all over it, disjoint, documents apart, and a sentence when there is too little."""

from collections import Counter

import pytest
import torch

from gqa.convert import windows
from gqa.convert.errors import UserError
from gqa.convert.windows import draw_windows, sample_passages

EOS, BOS = 0, 1


def lines(count: int, length: int = 40) -> list[str]:
    """Documents that can be told apart: each is one character that no other has."""
    return [chr(0x4E00 + number) * length for number in range(count)]


@pytest.fixture
def characters(make_tokenizer, monkeypatch):
    """The tokenizer, and a way back from windows to the documents of `lines` that they hold."""
    tokenizer = make_tokenizer()

    def documents(ids: torch.Tensor) -> set[str]:
        return {character for row in tokenizer.batch_decode(ids) for character in row if "一" <= character <= "鿿"}

    return tokenizer, documents


def test_a_sample_is_spread_evenly_over_the_data():
    counts = Counter(
        passage.document * 4 // 1000
        for seed in range(40)
        for passage in sample_passages((str(number) for number in range(1000)), characters=60, seed=seed)
    )
    assert counts.keys() == {0, 1, 2, 3}
    assert max(counts.values()) < 1.3 * min(counts.values())


def test_a_sample_is_as_large_as_asked_and_no_larger():
    passages = sample_passages(lines(500), characters=1000, seed=0)
    assert sum(len(passage.text) for passage in passages) == 1000
    assert len(sample_passages(lines(5), characters=1000, seed=0)) == 5


def test_the_order_is_random_and_the_seeds():
    first, again, other = (sample_passages(lines(50), characters=10**6, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert sorted(passage.document for passage in first) == list(range(50))
    assert [passage.document for passage in first] != list(range(50))


def test_long_documents_are_cut_and_keep_their_number(monkeypatch):
    monkeypatch.setattr(windows, "_LONGEST", 10)
    passages = sample_passages(["a" * 25, "b" * 5], characters=10**6, seed=0)
    assert sorted((passage.document, passage.text) for passage in passages) == [
        (0, "a" * 5),
        (0, "a" * 10),
        (0, "a" * 10),
        (1, "b" * 5),
    ]


def test_the_passages_of_a_single_document_count_as_documents(monkeypatch):
    monkeypatch.setattr(windows, "_LONGEST", 10)
    passages = sample_passages(["a" * 25], characters=10**6, seed=0)
    assert sorted(passage.document for passage in passages) == [0, 1, 2]


def test_endless_data_are_read_no_further_than_needed(monkeypatch):
    monkeypatch.setattr(windows, "_READ_AT_MOST", 100)
    read = 0

    def endless():
        nonlocal read
        while True:
            read += 1
            yield "ten chars."

    sample_passages(endless(), characters=50, seed=0)
    assert read == 10


def test_windows_are_the_documents_closed_and_joined(make_tokenizer):
    tokenizer = make_tokenizer()
    texts = ["one two", "three", "four five six"]
    train, held_out = draw_windows(texts, tokenizer, length=4, counts=(2, 0), seed=3)
    assert train.shape == (2, 4)
    assert held_out.shape == (0, 4)
    assert train.dtype == held_out.dtype == torch.int64
    passages = sample_passages(texts, characters=10**6, seed=3)
    joined = [
        token
        for passage in passages
        for token in [*tokenizer(passage.text, add_special_tokens=False)["input_ids"], EOS]
    ]
    cut = [joined[start : start + 4] for start in range(0, len(joined) - 3, 4)]
    assert all(row in cut for row in train.tolist())
    assert train[0].tolist() != train[1].tolist()


def test_no_document_is_on_both_sides(characters):
    tokenizer, documents = characters
    train, held_out = draw_windows(lines(60), tokenizer, length=32, counts=(40, 12), seed=0)
    assert train.shape == (40, 32)
    assert held_out.shape == (12, 32)
    assert not documents(train) & documents(held_out)
    assert documents(held_out)


def test_passages_of_a_long_document_stay_on_one_side(characters, monkeypatch):
    monkeypatch.setattr(windows, "_LONGEST", 8)
    tokenizer, documents = characters
    train, held_out = draw_windows(lines(30), tokenizer, length=16, counts=(40, 20), seed=0)
    assert not documents(train) & documents(held_out)


def test_windows_come_from_all_over_the_text(characters):
    tokenizer, documents = characters
    train, _ = draw_windows(lines(4000), tokenizer, length=16, counts=(50, 0), seed=0)
    numbers = [ord(character) - 0x4E00 for character in documents(train)]
    assert all(any(low <= number < low + 1000 for number in numbers) for low in range(0, 4000, 1000))


def test_windows_are_a_function_of_the_seed(characters):
    tokenizer, _ = characters
    first, again, other = (
        draw_windows(lines(60), tokenizer, length=32, counts=(20, 4), seed=seed)[0] for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_bos_token_stands_before_every_window(make_tokenizer):
    train, held_out = draw_windows(lines(60), make_tokenizer(adds_bos=True), length=32, counts=(20, 4), seed=0)
    for ids in (train, held_out):
        assert ids.shape[1] == 32
        assert (ids[:, 0] == BOS).all()
        assert not (ids[:, 1:] == BOS).any()


def test_a_single_long_document_gives_both_sides(make_tokenizer, monkeypatch):
    monkeypatch.setattr(windows, "_LONGEST", 100)
    train, held_out = draw_windows(["".join(lines(100))], make_tokenizer(), length=16, counts=(20, 5), seed=0)
    assert (len(train), len(held_out)) == (20, 5)


@pytest.mark.parametrize(("texts", "said"), [(["ab"] * 7, "21 tokens in 7"), (["\0" * 500], "501 tokens in 1")])
def test_too_little_text_says_how_much_there_is(make_tokenizer, texts, said):
    with pytest.raises(UserError, match=f"{said} documents, too few for 8 windows of 32 tokens and 2 held out"):
        draw_windows(texts, make_tokenizer(), length=32, counts=(8, 2), seed=0)
