"""Pairs: every one once an epoch, cut and padded so that nothing but their own tokens counts."""

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from gqa.convert.errors import UserError
from gqa.convert.pretrained import load_tokenizer
from gqa.uptrain.batches import IGNORED
from gqa.uptrain.pairs import PairSampler, PairStore
from gqa.uptrain.tokenise import Text
from gqa.uptrain.tokens import TokenStore, open_stores

LENGTHS = [(3, 2), (9, 1), (1, 7), (4, 4), (6, 3), (2, 2), (5, 9)]


def side(lengths: list[int], first: int) -> TokenStore:
    """Documents of these lengths; tokens name their own place."""
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    return TokenStore("key", np.arange(first, first + sum(lengths), dtype=np.uint16), starts, first + sum(lengths))


@pytest.fixture
def store() -> PairStore:
    sources, targets = zip(*LENGTHS, strict=True)
    return PairStore(side(list(sources), 100), side(list(targets), 200), (6, 5), 1, 0)


def test_every_pair_comes_once_an_epoch_in_another_order(store):
    sampler = PairSampler(store, 3, 0)
    taken = [int(pair) for step in range(14) for pair in sampler.samples(step)]
    epochs = [taken[start : start + 7] for start in range(0, 42, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert taken != [int(pair) for step in range(14) for pair in PairSampler(store, 3, 1).samples(step)]


def test_samples_do_not_depend_on_the_batch(store):
    small, large = PairSampler(store, 2, 0), PairSampler(store, 8, 0)
    assert [int(pair) for step in range(8) for pair in small.samples(step)] == [
        int(pair) for step in range(2) for pair in large.samples(step)
    ]


def test_the_heaviest_batch_is_the_one_whose_padding_is_the_longest(store):
    """Cut to 6 and 5 tokens, of which 1 to 4 of 7 pairs are taken, in any order, or all of them and one again."""
    sampler = PairSampler(store, 8, 0)
    for count in range(1, 9):
        pairs = sampler.heaviest(count)
        sizes = store.lengths[pairs].max(axis=0) * count
        others = [store.lengths[list(some)].max(axis=0) * count for some in combinations(range(7), min(count, 7))]
        assert sizes.sum() == max(other.sum() for other in others)
        assert len(sampler.batch(pairs).labels) == count


def test_a_batch_has_the_pairs_cut_and_padded(store):
    input_ids, mask, labels = (part.tolist() for part in store.read(np.array([1, 2, 6])))
    assert input_ids == [[103, 104, 105, 106, 107, 111], [112, 0, 0, 0, 0, 0], [125, 126, 127, 128, 129, 0]]
    assert mask == [[1] * 6, [1] + [0] * 5, [1] * 5 + [0]]
    pad = [IGNORED] * 4
    assert labels == [[202, *pad], [203, 204, 205, 206, 207], [219, 220, 221, 222, 223]]
    assert store.cut == (1, 2)


def test_tokens_and_targets_are_those_that_are_not_padding(store):
    sampler = PairSampler(store, 4, 3)
    total = 0
    for step in range(10):
        assert sampler.tokens_before(step) == total
        samples = sampler.samples(step)
        _, mask, labels = sampler.batch(samples)
        assert sampler.targets(samples) == int((labels != IGNORED).sum())
        total += int(mask.sum() + (labels != IGNORED).sum())
    assert sampler.tokens_per_sequence == sum(min(a, 6) + min(b, 5) for a, b in LENGTHS) / 7


def test_both_sides_hold_out_the_same_pairs(make_encoder_decoder, tmp_path: Path):
    checkpoint = make_encoder_decoder()
    data = tmp_path / "pairs.jsonl"
    pairs = [(f"source {number}", f"target {number % 7}") for number in range(60)]
    data.write_text("".join(json.dumps({"q": source, "a": target}) + "\n" for source, target in pairs))
    stores = [
        open_stores(Text(str(data), "q", None, "train", checkpoint, 0.3, kind, "a"), tmp_path, lambda _: None)
        for kind in ("sources", "targets")
    ]
    assert len({store.key for sides in stores for store in sides}) == 2
    (train, held_out), (train_targets, held_out_targets) = stores
    assert len(train.starts) == len(train_targets.starts) > 30
    assert len(held_out.starts) == len(held_out_targets.starts) == 60 - len(train.starts) > 5
    tokenizer = load_tokenizer(checkpoint)
    found = [
        (tokenizer.decode(read.input_ids[0], skip_special_tokens=True), tokenizer.decode(read.labels[0, :-1]))
        for store in (
            PairStore(train, train_targets, (99, 99), 1, 0),
            PairStore(held_out, held_out_targets, (99, 99), 1, 0),
        )
        for read in (store.read(np.array([number])) for number in range(len(store)))
    ]
    assert sorted(found) == sorted(pairs)


def test_a_side_without_a_token_is_an_error(make_checkpoint, tmp_path: Path):
    """Only of tokenizers that add nothing to a text."""
    data = tmp_path / "pairs.jsonl"
    data.write_text('{"source": "a", "target": "b"}\n{"source": "c", "target": ""}\n')
    text = Text(str(data), "source", None, "train", make_checkpoint(), 0.0, "targets", "target")
    with pytest.raises(UserError, match="a pair one of whose targets is without a token: 'c -> '; leave it out"):
        open_stores(text, tmp_path / "cache", lambda _: None)
