"""Bytes moved between files by every means there is, and copies that end with the work that they run beside."""

import errno
import random
import time
from dataclasses import replace
from threading import Event

import pytest
import torch

from gqa.convert import transfer
from gqa.convert.tensors import read_entries
from gqa.convert.transfer import copy_range
from gqa.convert.writer import OutputTensor, plan_shards, write_shards


def unsupported(*arguments):
    raise OSError(errno.ENOSYS, "not on this system")


@pytest.mark.parametrize("refused", [[], ["_copy_file_range"], ["_copy_file_range", "_sendfile"]])
def test_a_range_lands_where_it_is_told_to(tmp_path, monkeypatch, refused):
    for name in refused:
        monkeypatch.setattr(transfer, name, unsupported)
    monkeypatch.setattr(transfer, "_STEP", 256)
    monkeypatch.setattr(transfer, "_FOLIO", 64)
    draw = random.Random(0)
    data = draw.randbytes(10_000)
    (tmp_path / "source").write_bytes(data)
    expected = bytearray(20_000)
    (tmp_path / "target").write_bytes(expected)
    with (tmp_path / "source").open("rb") as source, (tmp_path / "target").open("r+b") as target:
        for _ in range(50):
            offset, position, count = draw.randrange(5000), draw.randrange(15_000), draw.randrange(5000)
            steps: list[int] = []
            copy_range(source.fileno(), offset, target.fileno(), position, count, steps.append)
            expected[position : position + count] = data[offset : offset + count]
            assert (sum(steps), max(steps, default=0) <= 256) == (count, True)
    assert (tmp_path / "target").read_bytes() == expected


def test_a_source_that_ends_early_is_an_error(tmp_path):
    (tmp_path / "source").write_bytes(b"short")
    with (
        (tmp_path / "source").open("rb") as source,
        (tmp_path / "target").open("wb") as target,
        pytest.raises(OSError, match="ended while it was being copied") as raised,
    ):
        copy_range(source.fileno(), 0, target.fileno(), 0, 6, lambda _: None)
    assert raised.value.errno == errno.EIO


@pytest.fixture
def half_produced(tmp_path):
    """A tensor of 4 MB to copy, and one to produce."""
    from safetensors.torch import save_file

    save_file({"copied": torch.arange(1 << 20, dtype=torch.int32)}, tmp_path / "model.safetensors")
    entry = read_entries(tmp_path)["copied"]
    return [
        OutputTensor(name="copied", dtype=entry.dtype, shape=entry.shape, source=entry),
        OutputTensor(name="produced", dtype=torch.float32, shape=(3,), source=None),
    ]


def test_what_is_produced_is_made_beside_the_copying(half_produced, tmp_path):
    """Here the copying waits for the tensor to be made; one after the other they would wait for ever."""
    from safetensors.torch import load_file

    made, counts = Event(), []

    def produce(name: str) -> torch.Tensor:
        made.set()
        return torch.ones(3)

    def advance(nbytes: int) -> None:
        assert made.wait(timeout=60)
        counts.append(nbytes)

    (tmp_path / "out").mkdir()
    write_shards(tmp_path / "out", plan_shards(half_produced, 1 << 30), produce, advance)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(written["produced"], torch.ones(3))
    assert torch.equal(written["copied"], torch.arange(1 << 20, dtype=torch.int32))
    assert sum(counts) == sum(tensor.nbytes for tensor in half_produced)


def test_copying_stops_when_the_production_fails(half_produced, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "_STEP", 4096)
    failed, steps = Event(), []

    def produce(name: str) -> torch.Tensor:
        failed.set()
        raise ZeroDivisionError

    def advance(nbytes: int) -> None:
        assert failed.wait(timeout=60)
        steps.append(nbytes)
        time.sleep(0.001)

    (tmp_path / "out").mkdir()
    with pytest.raises(ZeroDivisionError):
        write_shards(tmp_path / "out", plan_shards(half_produced, 1 << 30), produce, advance)
    assert 0 < sum(steps) < half_produced[0].nbytes


def test_production_stops_when_the_copying_fails(half_produced, tmp_path, monkeypatch):
    failed, made = Event(), []
    copied, produced = half_produced
    many = [copied, *(replace(produced, name=str(number)) for number in range(1000))]

    def full(*arguments):
        failed.set()
        raise OSError(errno.ENOSPC, "No space left on device")

    def produce(name: str) -> torch.Tensor:
        assert failed.wait(timeout=60)
        made.append(name)
        time.sleep(0.001)
        return torch.ones(3)

    monkeypatch.setattr("gqa.convert.writer.copy_range", full)
    (tmp_path / "out").mkdir()
    with pytest.raises(OSError, match="No space left"):
        write_shards(tmp_path / "out", plan_shards(many, 1 << 30), produce, lambda _: None)
    assert len(made) < 1000
