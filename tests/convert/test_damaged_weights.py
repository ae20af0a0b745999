"""Weights that are missing, damaged or not to be trusted: one sentence, and nothing left behind or changed."""

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from edits import edit_tensors
from safetensors.torch import load_file
from typer.testing import CliRunner

from gqa.convert.cli import app

K_PROJ = "model.layers.1.self_attn.k_proj.weight"


def test_missing_weights(refuse, checkpoint):
    (checkpoint / "model.safetensors").unlink()
    refuse("-g", 2, checkpoint, says="has no weights; looked for model.safetensors, ")


@pytest.fixture
def sharded(llama, tmp_path):
    llama.model().float().save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    return tmp_path / "sharded"


def edit_index(checkpoint, edit):
    path = checkpoint / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    edit(index)
    path.write_text(json.dumps(index))


def test_missing_shard(refuse, sharded):
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.unlink()
    refuse("-g", 2, sharded, says=f"shard {shard} is missing; download it again")


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_shard(refuse, sharded, keep):
    shard = sorted(sharded.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:keep])
    refuse("-g", 2, sharded, says=f"{shard} is truncated or")


def header_of(text: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\xff" * 64, "is truncated or not a safetensors file"),
        (header_of(b"not JSON at all"), "has a corrupt header"),
        (header_of(b'["list"]'), "has a corrupt header"),
        pytest.param(header_of(b'{"a":' + b"[" * 200_000), "has a corrupt header", id="deep"),
        (header_of(b'{"a": {"dtype": "F32"}}'), "has a corrupt header"),
        (header_of(b'{"a": {"dtype": "F4", "shape": [1], "data_offsets": [0, 1]}}', b"1"), "dtype F4"),
        (header_of(b'{"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 1]}}', b"1"), "has 1 bytes"),
        (header_of(b'{"a": {"dtype": "U8", "shape": [-1], "data_offsets": [0, -1]}}'), "has shape (-1,)"),
        (header_of(b'{"a": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}}', b"12"), "leaves a gap"),
        (header_of(b'{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}', b"12"), "its header describes"),
    ],
)
def test_corrupt_safetensors(refuse, checkpoint, content, says):
    (checkpoint / "model.safetensors").write_bytes(content)
    refuse("-g", 2, checkpoint, says=says)


def test_corrupt_index(refuse, sharded):
    (sharded / "model.safetensors.index.json").write_text('{"weight_map": 3}')
    refuse("-g", 2, sharded, says="weight_map does not map tensor names to file names")
    (sharded / "model.safetensors.index.json").write_text("nothing")
    refuse("-g", 2, sharded, says="is not a shard index")


def test_index_names_a_tensor_that_its_shard_lacks(refuse, sharded):
    edit_index(sharded, lambda index: index["weight_map"].update({"ghost": index["weight_map"]["lm_head.weight"]}))
    refuse("-g", 2, sharded, says="lacks tensor ghost, which model.safetensors.index.json says it holds")


@pytest.mark.parametrize("outside", ["../elsewhere.safetensors", "/etc/passwd", "sub/model.safetensors", ".."])
def test_index_that_points_outside(refuse, sharded, outside):
    edit_index(sharded, lambda index: index["weight_map"].update({K_PROJ: outside}))
    refuse("-g", 2, sharded, says=f"{outside!r} points outside the checkpoint's directory")


def test_weights_that_are_a_link_out(refuse, checkpoint, tmp_path):
    shutil.move(checkpoint / "model.safetensors", tmp_path / "elsewhere.safetensors")
    (checkpoint / "model.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    refuse("-g", 2, checkpoint, says="outside the checkpoint's directory; put the file itself there")


def test_side_file_that_is_a_link_out(refuse, checkpoint, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (checkpoint / "added_tokens.json").symlink_to(tmp_path / "secret")
    refuse("-g", 2, checkpoint, says="outside the checkpoint's directory; put the file itself there")


def test_folder_that_is_a_link_out(refuse, checkpoint, tmp_path):
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "id_rsa").write_text("secret")
    (checkpoint / "additional_chat_templates").symlink_to(tmp_path / "secrets")
    refuse("-g", 2, checkpoint, says="outside the checkpoint's directory; put the file itself there")


def test_side_file_that_is_a_link_to_nothing(refuse, checkpoint):
    (checkpoint / "NOTICE").symlink_to(checkpoint / "notice.txt")
    refuse("-g", 2, checkpoint, says="NOTICE is no file, or a link to nothing; download it again")


def test_missing_tensor(refuse, checkpoint):
    edit_tensors(checkpoint, lambda tensors: tensors.pop(K_PROJ))
    refuse("-g", 2, checkpoint, says=f"tensor {K_PROJ} is missing from the checkpoint")


def test_tensor_of_the_wrong_shape(refuse, checkpoint):
    edit_tensors(checkpoint, lambda tensors: tensors.update({K_PROJ: tensors[K_PROJ].T.contiguous()}))
    refuse("-g", 2, checkpoint, says=f"tensor {K_PROJ} has shape [48, 64], but config.json implies [64, 48]")


def test_tensor_of_the_wrong_dtype(refuse, checkpoint):
    edit_tensors(checkpoint, lambda tensors: tensors.update({K_PROJ: tensors[K_PROJ].to(torch.int8)}))
    refuse("-g", 2, checkpoint, says=f"tensor {K_PROJ} is torch.int8")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", [K_PROJ, K_PROJ.replace("k_proj", "v_proj")])
@pytest.mark.parametrize("method", ["mean", "first", "random"])
def test_damaged_weights(refuse, checkpoint, value, name, method):
    edit_tensors(checkpoint, lambda tensors: tensors[name][-1].fill_(value))
    refuse("-g", 2, checkpoint, "--method", method, says="of model.layers.1.self_attn.* holds NaN or infinity")


def test_huge_but_finite_weights_are_no_damage(checkpoint, tmp_path):
    edit_tensors(checkpoint, lambda tensors: tensors[K_PROJ].fill_(3e38))
    result = CliRunner().invoke(app, ["-g", "2", str(checkpoint), "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output


class Payload:
    """Pickles as a call, which a careless loader would make."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_pickle_with_code(refuse, checkpoint, tmp_path):
    (checkpoint / "model.safetensors").unlink()
    torch.save({"a": Payload(tmp_path / "executed")}, checkpoint / "pytorch_model.bin")
    refuse("-g", 2, checkpoint, says="holds more than tensors, which would need running its code")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is truncated or corrupt"),
        (b"PK\x03\x04 and then nothing", "is truncated or corrupt"),
    ],
)
def test_corrupt_pickle(refuse, checkpoint, content, says):
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(content)
    refuse("-g", 2, checkpoint, says=says)


def test_pickles_of_other_kinds(refuse, checkpoint):
    state = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    path = checkpoint / "pytorch_model.bin"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    refuse("-g", 2, checkpoint, says="is in torch's format from before 1.6")
    torch.save([1, 2], path)
    refuse("-g", 2, checkpoint, says="is not a state dict of tensors")
    torch.save({"a": state[K_PROJ].T}, path)
    refuse("-g", 2, checkpoint, says="tensor a is not contiguous")
    torch.save({"a": torch.zeros(2, dtype=torch.complex64)}, path)
    refuse("-g", 2, checkpoint, says="tensor a has dtype torch.complex64")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refuse("-g", 2, checkpoint, says="is truncated or corrupt")
