"""Which files are a checkpoint's weights, and tensors read back from them."""

import pytest
import torch
from safetensors.torch import load_file

from gqa.convert.errors import UserError
from gqa.convert.tensors import read_entries, weight_files


def test_weight_files_are_those_that_transformers_loads(checkpoint, llama, tmp_path):
    (checkpoint / "pytorch_model.bin").write_bytes(b"a copy that transformers leaves alone")
    assert weight_files(checkpoint) == [checkpoint / "model.safetensors"]
    llama.model().save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    assert set(weight_files(tmp_path / "shards")) == set((tmp_path / "shards").glob("*.safetensors"))
    weight_files(tmp_path / "shards")[0].unlink()
    with pytest.raises(UserError, match=r"-of-\d+\.safetensors is missing"):
        weight_files(tmp_path / "shards")


@pytest.mark.parametrize("pickled", [False, True])
def test_entries_read_what_was_written(checkpoint, pickled):
    state = load_file(checkpoint / "model.safetensors")
    state["empty"] = torch.empty(0, 3)
    state["scalar"] = torch.tensor(3.0)
    state["slice"] = torch.arange(10)[4:8] if pickled else torch.arange(4, 8)
    if pickled:
        (checkpoint / "model.safetensors").unlink()
        torch.save(state, checkpoint / "pytorch_model.bin")
    else:
        from safetensors.torch import save_file

        (checkpoint / "model.safetensors").unlink()
        save_file(state, checkpoint / "model.safetensors")
    entries = read_entries(checkpoint)
    assert entries.keys() == state.keys()
    for name, entry in entries.items():
        assert entry.dtype == state[name].dtype
        assert torch.equal(entry.load(), state[name]), name
        assert torch.equal(torch.cat([state[name].flatten()[:0], *entry.pieces(7)]), state[name].flatten())


def test_a_loaded_tensor_can_not_change_the_file(checkpoint):
    before = (checkpoint / "model.safetensors").read_bytes()
    read_entries(checkpoint)["lm_head.weight"].load().fill_(1)
    assert (checkpoint / "model.safetensors").read_bytes() == before
