"""The record of files in gqa.json: what it holds, and what it notices."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gqa.convert.manifest import feed_sample, record_files, record_whole, same_sample
from gqa.convert.plan import ConvertOptions
from gqa.convert.rewrite import convert


def test_a_conversion_records_all_that_it_wrote(checkpoint, tmp_path):
    convert(checkpoint, tmp_path / "out", ConvertOptions(groups=2, max_shard_size="20kB"))
    files = json.loads((tmp_path / "out" / "gqa.json").read_text())["stages"][-1]["files"]
    assert files.keys() == {path.name for path in (tmp_path / "out").iterdir()} - {"gqa.json"}
    for name, record in files.items():
        data = (tmp_path / "out" / name).read_bytes()
        assert record == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_folders_are_recorded_and_hidden_files_are_not(tmp_path):
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "tool.jinja").write_text("x")
    (tmp_path / ".cache").write_text("x")
    (tmp_path / "gqa.json").write_text("x")
    assert list(record_files(tmp_path, leave_out="gqa.json")) == ["templates/tool.jinja"]


@pytest.fixture
def large(tmp_path: Path, monkeypatch) -> Path:
    """A file of 3 MiB where those beyond 2 MiB are sampled."""
    monkeypatch.setattr("gqa.convert.manifest.WHOLE_BYTES", 2 << 20)
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(range(256)) * (3 << 12))
    return path


def test_a_large_file_is_sampled(large, tmp_path):
    record = record_files(tmp_path, leave_out="gqa.json")[large.name]
    assert record.keys() == {"size", "sampled_sha256"}
    assert same_sample(large, record)
    for position in (0, 3 << 19, (3 << 20) - 1):  # the first block, one in the middle, the last
        data = bytearray(large.read_bytes())
        data[position] ^= 1
        large.with_name("other").write_bytes(data)
        assert same_sample(large.with_name("other"), record) == (position == 3 << 19)  # between two blocks
    large.write_bytes(large.read_bytes()[:-1])
    assert not same_sample(large, record)


def test_every_tensor_has_its_part_in_the_sample(tmp_path, monkeypatch):
    monkeypatch.setattr("gqa.convert.manifest.WHOLE_BYTES", 1 << 20)
    path, place = tmp_path / "model.safetensors", torch.Generator().manual_seed(0)
    tensors = {f"t.{index:02}": torch.randn(99, 1024, generator=place) for index in range(40)}
    save_file(tensors, path)
    record = record_files(tmp_path, leave_out="gqa.json")[path.name]
    assert record.keys() == {"size", "sampled_sha256"}
    for name, tensor in tensors.items():
        for number in (0, -1):
            other = tensor.flatten().clone()
            other[number] += 1
            save_file(tensors | {name: other.view_as(tensor)}, tmp_path / "other.safetensors")
            assert not same_sample(tmp_path / "other.safetensors", record)


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"[1]",
        b'{"a": {"data_offsets": [0, 1e999]}}',
        b'{"a": {"data_offsets": [-9, 12345678901234567890123]}}',
        b'{"a": {"data_offsets": ["x", 1]}}',
        b"[" * 100_000,
    ],
)
def test_a_header_that_is_damaged_is_sampled_too(tmp_path, header):
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(1 << 16))
    digests = [hashlib.sha256(), hashlib.sha256()]
    for digest in digests:
        feed_sample(digest, path)
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert digests[0].digest() != digests[1].digest()


def test_the_whole_hash_comes_with_its_progress(large):
    seen: list[int] = []
    record = record_whole(large, seen.append)
    assert record == {"size": 3 << 20, "sha256": hashlib.sha256(large.read_bytes()).hexdigest()}
    assert sum(seen) == 3 << 20
