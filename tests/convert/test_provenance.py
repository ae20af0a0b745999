"""What gqa.json says of a conversion, and the fingerprints by which checkpoints are known."""

import os

import torch

from gqa.convert.plan import ConvertOptions
from gqa.convert.provenance import fingerprint, read_stages
from gqa.convert.rewrite import convert


def test_provenance_tells_what_was_done_and_chains(checkpoint, tmp_path):
    convert(checkpoint, tmp_path / "four", ConvertOptions(groups=4))
    convert(tmp_path / "four", tmp_path / "two", ConvertOptions(groups=2, method="first"))
    first, second = read_stages(tmp_path / "two")
    assert read_stages(tmp_path / "four") == [first]
    assert first["source"] == {"path": str(checkpoint), "fingerprint": fingerprint(checkpoint)}
    assert second["source"]["fingerprint"] == fingerprint(tmp_path / "four") != fingerprint(tmp_path / "two")
    assert (second["method"], second["num_heads"]) == ("first", 8)
    assert (second["kv_heads_before"], second["kv_heads_after"]) == ([4, 4], [2, 2])
    assert first["versions"]["torch"] == torch.__version__


def test_the_fingerprint_sees_weights_and_configuration(checkpoint):
    before = fingerprint(checkpoint)
    assert fingerprint(checkpoint) == before
    with (checkpoint / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    changed = fingerprint(checkpoint)
    assert changed != before
    (checkpoint / "config.json").write_text((checkpoint / "config.json").read_text() + " ")
    assert fingerprint(checkpoint) not in (before, changed)


def test_checkpoints_that_differ_in_their_kv_heads_alone_have_fingerprints_of_their_own(make_checkpoint, tmp_path):
    large = make_checkpoint(hidden_size=64, intermediate_size=4096, num_attention_heads=8, num_key_value_heads=8)
    for method in ("mean", "first", "random"):
        convert(large, tmp_path / method, ConvertOptions(groups=1, method=method))
    assert len({fingerprint(tmp_path / method) for method in ("mean", "first", "random")}) == 3
