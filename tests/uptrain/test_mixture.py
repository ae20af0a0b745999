"""Mixtures: fixed shares, every text in epochs of its own, and any step known at once."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from gqa.convert.errors import UserError
from gqa.uptrain import uptrain
from gqa.uptrain.batches import Sampler
from gqa.uptrain.config import UptrainConfig
from gqa.uptrain.mixture import BLOCK, MixedSampler, MixedStore, shares_of_block
from gqa.uptrain.tokens import TokenStore

Configured = Callable[..., UptrainConfig]
LENGTH = 8


def store(first: int, tokens: int, documents: int) -> TokenStore:
    starts = np.linspace(0, tokens, documents, endpoint=False).astype(np.int64)
    return TokenStore(f"key{first}", np.arange(first, first + tokens, dtype=np.uint32), starts, first + tokens - 1)


@pytest.fixture
def parts() -> tuple[TokenStore, ...]:
    """Three rings of 40, 203 and 96 tokens, none of which has an id of another."""
    return store(0, 40, 3), store(1000, 203, 20), store(5000, 96, 1)


def mixed(parts: tuple[TokenStore, ...], *weights: float, batch_size: int = 10, seed: int = 0) -> MixedSampler:
    return MixedSampler(MixedStore(parts), LENGTH, batch_size, seed, weights)


def test_every_block_has_every_part_in_its_share(parts):
    sampler = mixed(parts, 0.5, 0.3, 0.2, batch_size=100)
    for block in range(2):
        starts = np.concatenate([sampler.samples(step) for step in range(block * 100, (block + 1) * 100)])
        found = np.bincount(np.searchsorted(sampler.store.begins, starts, side="right") - 1)
        assert found.tolist() == [5000, 3000, 2000]


def test_a_part_is_read_as_it_is_when_it_is_alone(parts):
    """The windows of a part, in the order in which they come, are those of a run on that part alone."""
    sampler = mixed(parts, 1, 2, 3)
    starts = np.concatenate([sampler.samples(step) for step in range(60)])
    chosen = np.searchsorted(sampler.store.begins, starts, side="right") - 1
    for number, part in enumerate(parts):
        alone = Sampler(part, LENGTH, 1, 0)
        mine = starts[chosen == number] - sampler.store.begins[number]
        assert mine.tolist() == [alone.samples(step)[0] for step in range(len(mine))]


def test_any_step_is_known_at_once_and_batch_sizes_agree(parts):
    one, ten = mixed(parts, 1, 2, 3, batch_size=1), mixed(parts, 1, 2, 3)
    far = 10**9
    assert ten.samples(far).tolist() == [one.samples(10 * far + number)[0] for number in range(10)]
    across = BLOCK // 10 - 1
    assert len(set(map(tuple, [ten.samples(across).tolist(), ten.samples(across + 1).tolist()]))) == 2
    assert mixed(parts, 1, 2, 3, seed=1).samples(0).tolist() != ten.samples(0).tolist()


def test_windows_labels_and_positions_are_those_of_the_part(parts):
    sampler = mixed(parts, 1, 1, 1)
    for start in sampler.samples(3):
        number = int(np.searchsorted(sampler.store.begins, start, side="right")) - 1
        alone = Sampler(parts[number], LENGTH, 1, 0)
        within = np.array([start - sampler.store.begins[number]])
        batch = sampler.batch(np.array([start]))
        for ours, theirs in zip(batch, alone.batch(within), strict=True):
            assert ours.tolist() == theirs.tolist()
        assert sampler.targets(np.array([start])) == alone.targets(within) == int((batch.labels >= 0).sum())


@pytest.mark.parametrize(
    ("weights", "shares"),
    [((1, 1), [5000, 5000]), ((1, 1, 1), [3334, 3333, 3333]), ((1e-9, 1), [1, 9999]), ((0.7, 0.3), [7000, 3000])],
)
def test_shares_add_up_and_none_is_nothing(weights: tuple[float, ...], shares: list[int]):
    assert shares_of_block(weights) == shares


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Text of one letter that the other data have not."""
    path = tmp_path / "other.jsonl"
    path.write_text("".join(json.dumps({"text": "z" * (20 + number)}) + "\n" for number in range(40)))
    return path


def test_a_run_on_a_mixture(configured: Configured, data: Path, other: Path, metrics_of, capfd, tmp_path: Path):
    changes: dict[str, Any] = {"data": (str(data), str(other)), "data_weights": (0.25, 0.75)}
    result = uptrain(configured(**changes, quiet=False))
    assert f"(25.0% {data}, 75.0% {other})" in capfd.readouterr().err
    recorded = json.loads((result.output / "gqa.json").read_text())["stages"][-1]["config"]
    assert recorded["data"] == [str(data), str(other)]
    with pytest.raises(UserError, match="it was started with data_weights"):
        uptrain(configured(**{**changes, "data_weights": (0.5, 0.5), "overwrite": False, "output": tmp_path / "again",
                              "run_dir": result.run_dir}))  # fmt: skip


def test_held_out_shares_of_all_parts_validate(configured: Configured, data: Path, other: Path):
    mixed = {"data": (str(data), str(other)), "validation_data": None, "validation_share": 0.3}
    first = uptrain(configured(**mixed, max_steps=1)).validation[0]["validation_loss"]
    alone = [
        uptrain(configured(**{**mixed, "data": str(name)}, max_steps=1, overwrite=True)).validation[0][
            "validation_loss"
        ]
        for name in (data, other)
    ]
    assert min(alone) < first < max(alone)


def test_one_data_in_a_list_is_that_data(configured: Configured, data: Path, metrics_of, tmp_path: Path):
    one, listed = uptrain(configured()), uptrain(configured(data=(str(data),), output=tmp_path / "listed"))
    assert metrics_of(one.run_dir) == metrics_of(listed.run_dir)


def test_each_of_several_data_has_its_own_subset_split_and_column(
    configured: Configured, data: Path, other: Path, metrics_of, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Two subsets of one dataset, in columns of two names, are trained on as files with the same texts are."""
    columns = {"small": ("train", "body", data), "large": ("more", "content", other)}

    def load_dataset(name: str, subset: str, *, split: str, streaming: bool) -> datasets.IterableDataset:
        assert (name, split, streaming) == ("org/name", columns[subset][0], True)
        rows = [{columns[subset][1]: json.loads(line)["text"]} for line in columns[subset][2].read_text().splitlines()]
        return datasets.IterableDataset.from_generator(lambda: iter(rows))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    of_each = {"subset": ("small", "large"), "split": ("train", "more"), "text_column": ("body", "content")}
    held_out = {"validation_data": None, "validation_share": 0.3}
    named = uptrain(configured(data=("org/name", "org/name"), **of_each, **held_out, output=tmp_path / "named"))
    filed = uptrain(configured(data=(str(data), str(other)), **held_out, output=tmp_path / "filed"))
    assert metrics_of(named.run_dir) == metrics_of(filed.run_dir)


def test_one_word_says_it_of_all(configured: Configured):
    sources = configured(data=("a", "b"), subset=("", "x"), split="test").sources
    assert [(source.subset, source.split, source.text_column) for source in sources] == [
        (None, "test", "text"),
        ("x", "test", "text"),
    ]
    assert [str(source) for source in sources] == ["a", "b (x)"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": ("a", "b"), "data_weights": (1.0,)}, "data_weights has 1 entries, and data 2"),
        ({"data": ("a", "b"), "data_weights": (1.0, 0.0)}, "data_weights must be above 0"),
        ({"data": ("a", "b"), "data_weights": (1.0, float("nan"))}, "data_weights must be above 0"),
        ({"data": ("a", "a")}, "data names one thing twice"),
        ({"data": ("a", "a"), "subset": ("x", "x")}, r"data names one thing twice: a \(x\), a \(x\)"),
        ({"data": ("a", "b"), "split": ("train",)}, "split has 1 entries, and data 2; give one for all, or one for"),
        ({"data": ()}, "data is empty"),
    ],
    ids=str,
)
def test_mixtures_that_make_no_sense(configured: Configured, changes: dict[str, Any], said: str):
    with pytest.raises(UserError, match=said):
        configured(**changes)


def test_the_least_text_is_not_lost(parts):
    counts = Counter(
        int(number)
        for step in range(BLOCK // 10)
        for number in np.searchsorted(mixed(parts, 1e-6, 1, 1).store.begins, mixed(parts, 1e-6, 1, 1).samples(step),
                                      side="right") - 1
    )  # fmt: skip
    assert counts[0] == 1
