"""Every input that can't be converted: one sentence on stderr, exit code 2, nothing left behind or changed."""

import json
import os
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from gqa.convert.cli import app


def tree(path: Path) -> dict[str, bytes]:
    return {str(item.relative_to(path)): item.read_bytes() for item in path.rglob("*") if item.is_file()}


@pytest.fixture
def refuse(tmp_path):
    """Run the command, which must refuse with exactly this message, and check that it left no trace."""

    def run(*arguments, says):
        before = tree(tmp_path)
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 2, (result.output, result.exception)
        assert result.stdout == ""
        assert result.stderr.count("\n") == 1
        assert says in result.stderr
        assert result.stderr.startswith("Error: ")
        assert "Traceback" not in result.stderr
        assert tree(tmp_path) == before

    return run


def edit_config(checkpoint, **changes):
    config = json.loads((checkpoint / "config.json").read_text())
    for key, value in changes.items():
        if value is None:
            config.pop(key, None)
        else:
            config[key] = value
    (checkpoint / "config.json").write_text(json.dumps(config))


def edit_tensors(checkpoint, edit):
    tensors = load_file(checkpoint / "model.safetensors")
    edit(tensors)
    (checkpoint / "model.safetensors").unlink()
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})


K_PROJ = "model.layers.1.self_attn.k_proj.weight"


def test_no_such_directory(refuse, tmp_path):
    refuse("-g", 2, tmp_path / "nothing", says=f"no such directory: {tmp_path / 'nothing'}")


def test_a_file(refuse, checkpoint):
    refuse("-g", 2, checkpoint / "model.safetensors", says="is a file; name the checkpoint's directory")


def test_hub_id_that_can_not_be_had(refuse, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refuse("-g", 2, "nobody/nothing-at-all", says="nobody/nothing-at-all is neither a directory here nor to be had")


def test_no_config(refuse, checkpoint):
    (checkpoint / "config.json").unlink()
    refuse("-g", 2, checkpoint, says="has no config.json")


@pytest.mark.parametrize(
    ("text", "says"), [("{", "is not JSON"), ("[]", "holds a list"), ("\xff", "is not JSON"), ("{}", "no model_type")]
)
def test_config_of_another_kind(refuse, checkpoint, text, says):
    (checkpoint / "config.json").write_text(text, encoding="latin-1")
    refuse("-g", 2, checkpoint, says=says)


def test_unknown_model_type(refuse, checkpoint):
    edit_config(checkpoint, model_type="lama")
    refuse("-g", 2, checkpoint, says="unsupported model type 'lama' (did you mean 'llama'?); gqa-convert --list-famil")


def test_layers_of_different_query_heads(refuse, checkpoint):
    edit_config(checkpoint, per_layer_config={"1": {"num_attention_heads": 4}})
    refuse("-g", 2, checkpoint, says="layers differ in their heads (per_layer_config in config.json); none is merged")
    edit_config(checkpoint, per_layer_config=None, head_dim=[4, 8])
    refuse("-g", 2, checkpoint, says="layers differ in their heads (head_dim in config.json); none is merged")


@pytest.mark.parametrize("key", ["num_key_value_heads", "num_key_value_heads_per_layer"])
def test_a_list_of_kv_heads_that_the_tensors_do_not_have(refuse, checkpoint, key):
    edit_config(checkpoint, num_key_value_heads=None)
    edit_config(checkpoint, **{key: [4, 8]})
    refuse("-g", 2, checkpoint, says="k_proj.weight has shape [64, 48], but config.json implies [32, 48]")


def test_layers_whose_tensors_differ_in_their_heads(refuse, checkpoint):
    def halved(tensors):
        tensors[K_PROJ] = tensors[K_PROJ][:32].clone()

    edit_tensors(checkpoint, halved)
    refuse("-g", 2, checkpoint, says=f"tensor {K_PROJ} has shape [32, 48], but config.json implies [64, 48]")


def test_refused_model_type(refuse, checkpoint):
    edit_config(checkpoint, model_type="deepseek_v3")
    refuse("-g", 2, checkpoint, says="deepseek_v3 can't be converted: its attention already caches one small latent")


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("hidden_size", None, "config.json has no hidden_size"),
        ("num_attention_heads", "8", "num_attention_heads is '8', not a positive integer"),
        ("num_hidden_layers", 0, "num_hidden_layers is 0, not a positive integer"),
        ("num_key_value_heads", 3, "8 query heads do not divide among 3 KV heads"),
        ("num_hidden_layers", 1, "tensors model.layers.1.self_attn.*, but config.json says num_hidden_layers is 1"),
        ("num_hidden_layers", 3, "tensor model.layers.2.self_attn.k_proj.weight is missing"),
        ("num_key_value_heads", 4, "has shape [64, 48], but config.json implies [32, 48]"),
        ("quantization_config", {"quant_method": "gptq"}, "is quantised (quantization_config in config.json)"),
        (
            "auto_map",
            {"AutoModelForCausalLM": "x.Y"},
            "brings its own code (auto_map in config.json), which is never run",
        ),
    ],
)
def test_config_that_does_not_fit(refuse, checkpoint, key, value, says):
    edit_config(checkpoint, **{key: value})
    refuse("-g", 2, checkpoint, says=says)


def test_missing_optional_tensor_in_one_layer(refuse, named, tmp_path):
    named("llama-bias").model().save_pretrained(tmp_path / "ckpt")
    edit_tensors(tmp_path / "ckpt", lambda tensors: tensors.pop("model.layers.0.self_attn.v_proj.bias"))
    refuse("-g", 2, tmp_path / "ckpt", says="tensor model.layers.0.self_attn.v_proj.bias is missing")


@pytest.mark.parametrize(
    ("groups", "says"),
    [
        (3, "8 KV heads do not divide into 3 groups; choose one of 1, 2, 4"),
        (16, "groups is 16, but the checkpoint has only 8 KV heads; choose one of 1, 2, 4"),
        (8, "already has 8 KV heads, so there is nothing to do; choose one of 1, 2, 4"),
        (0, "groups is 0; it must be at least 1"),
    ],
)
def test_groups_that_do_not_fit(refuse, checkpoint, groups, says):
    refuse("-g", groups, checkpoint, says=says)


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--method", "meen", "unknown method 'meen' (did you mean 'mean'?); known: aligned, first, "),
        ("--dtype", "bfloat", "unknown dtype 'bfloat' (did you mean 'bfloat16'?)"),
        ("--max-shard-size", "huge", "max_shard_size is 'huge'; write a size such as 5GB or 500MB"),
    ],
)
def test_options_of_no_meaning(refuse, checkpoint, option, value, says):
    refuse("-g", 2, checkpoint, option, value, says=says)


def test_missing_and_unknown_options(checkpoint):
    for arguments, says in ([], "Missing argument"), ([str(checkpoint)], "--groups"), (["--grups", "2"], "--groups"):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 2
        assert says in result.stderr


def test_output_exists(refuse, checkpoint, tmp_path):
    (tmp_path / "out").mkdir()
    refuse("-g", 2, checkpoint, "-o", tmp_path / "out", says="exists; choose another with --output, or replace it")


def test_output_is_a_file(refuse, checkpoint, tmp_path):
    (tmp_path / "out").write_text("precious")
    refuse("-g", 2, checkpoint, "-o", tmp_path / "out", "--overwrite", says="is not a directory; --overwrite replaces")


@pytest.mark.parametrize("place", [".", "inside", ".."])
def test_output_is_or_touches_the_input(refuse, checkpoint, place):
    refuse("-g", 2, checkpoint, "-o", checkpoint / place, "--overwrite", says="is the input")


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


def test_disk_too_small(refuse, checkpoint, monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    refuse("-g", 2, checkpoint, says="GB free, the output needs")


def test_disk_full_while_writing(refuse, checkpoint, monkeypatch):
    import errno

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("gqa.convert.writer.copy_range", full)
    refuse("-g", 2, checkpoint, says="is full; what was being written is removed: free some space and run again")


@pytest.fixture
def as_nobody():
    """Permissions mean nothing to root, so that root gives up being root for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_checkpoint(checkpoint, tmp_path):
    """The checkpoint where every user can reach it."""
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o755)
        shutil.copytree(checkpoint, path / "ckpt")
        for file in (path / "ckpt").iterdir():
            file.chmod(0o644)
        yield path / "ckpt"


def test_no_permission_to_write(open_checkpoint, as_nobody):
    if os.geteuid() == open_checkpoint.stat().st_uid:
        open_checkpoint.parent.chmod(0o555)
    result = CliRunner().invoke(app, ["-g", "2", str(open_checkpoint)])
    assert result.exit_code == 2
    assert f"no permission to write into {open_checkpoint.parent}" in result.stderr


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_no_permission_to_read(open_checkpoint, name, request):
    (open_checkpoint / name).chmod(0)
    request.getfixturevalue("as_nobody")
    result = CliRunner().invoke(app, ["-g", "2", str(open_checkpoint)])
    assert result.exit_code == 2
    assert result.stderr == f"Error: no permission to read {open_checkpoint / name}\n"
