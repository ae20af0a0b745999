"""Conversions from disk to disk: bytes that move untouched, every source format, shards, side files, provenance."""

import errno
import hashlib
import json
import mmap
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from gqa.convert.cli import app
from gqa.convert.errors import UserError
from gqa.convert.plan import ConvertOptions, plan_conversion
from gqa.convert.rewrite import convert, default_output
from gqa.convert.tensors import read_entries
from gqa.convert.writer import plan_shards

KV = ("k_proj", "v_proj")


def digest(path: Path) -> dict[str, str]:
    return {item.name: hashlib.sha256(item.read_bytes()).hexdigest() for item in sorted(path.iterdir())}


def test_mean_is_the_mean_and_all_else_is_untouched(checkpoint, tmp_path, state_of):
    before, source = state_of(checkpoint), digest(checkpoint)
    convert(checkpoint, tmp_path / "out", ConvertOptions(groups=2))
    after = state_of(tmp_path / "out")
    assert digest(checkpoint) == source
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        if not any(part in name for part in KV):
            assert torch.equal(tensor, before[name]), name
            continue
        for group in range(2):
            heads = [before[name][head * 8 : head * 8 + 8].double() for head in range(group * 4, group * 4 + 4)]
            assert torch.equal(tensor[group * 8 : group * 8 + 8], (torch.stack(heads).sum(dim=0) / 4).float()), name


def test_first_keeps_the_first_head(checkpoint, tmp_path, state_of):
    convert(checkpoint, tmp_path / "out", ConvertOptions(groups=2, method="first"))
    before, after = state_of(checkpoint), state_of(tmp_path / "out")
    for name in (name for name in after if any(part in name for part in KV)):
        assert torch.equal(after[name], torch.cat([before[name][:8], before[name][32:40]]))


def test_random_is_a_function_of_the_seed_and_the_layer(checkpoint, tmp_path, state_of):
    outputs = {}
    for label, seed in (("a", 0), ("b", 0), ("c", 1)):
        convert(checkpoint, tmp_path / label, ConvertOptions(groups=2, method="random", seed=seed))
        outputs[label] = state_of(tmp_path / label)
    names = [f"model.layers.{layer}.self_attn.{part}.weight" for layer in range(2) for part in KV]
    for name in names:
        assert torch.equal(outputs["a"][name], outputs["b"][name])
        assert not torch.equal(outputs["a"][name], outputs["c"][name])
    assert len({outputs["a"][name].sum().item() for name in names}) == len(names)
    scale = state_of(checkpoint)[names[0]].std().item()
    assert outputs["a"][names[0]].std().item() == pytest.approx(scale, rel=0.15)


def test_every_source_format_gives_the_same_file(llama, checkpoint, tmp_path, state_of):
    state = state_of(checkpoint)
    shards = tmp_path / "shards"
    llama.model().float().save_pretrained(shards, max_shard_size="40KB")
    pickled, pickled_shards = tmp_path / "pickled", tmp_path / "pickled-shards"
    for path in (pickled, pickled_shards):
        path.mkdir()
        (path / "config.json").write_text((checkpoint / "config.json").read_text())
    torch.save(state, pickled / "pytorch_model.bin")
    names = sorted(state)
    parts = {"pytorch_model-1.bin": names[::2], "pytorch_model-2.bin": names[1::2]}
    for file, part in parts.items():
        torch.save({name: state[name] for name in part}, pickled_shards / file)
    weight_map = {name: file for file, part in parts.items() for name in part}
    (pickled_shards / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    convert(checkpoint, tmp_path / "expected", ConvertOptions(groups=2))
    expected = state_of(tmp_path / "expected")
    for source in (shards, pickled, pickled_shards):
        output = tmp_path / f"{source.name}-out"
        convert(source, output, ConvertOptions(groups=2))
        assert sorted(item.name for item in output.iterdir() if "token" not in item.name) == [
            "config.json",
            *(["generation_config.json"] if source == shards else []),
            "gqa.json",
            "model.safetensors",
        ]
        converted = state_of(output)
        assert converted.keys() == expected.keys()
        assert all(torch.equal(converted[name], expected[name]) for name in expected)


def test_tensors_that_share_storage_in_a_pickle_are_both_written(named, tmp_path, load, logits_of, state_of):
    model = named("llama-tied").model()
    model.save_pretrained(tmp_path / "ckpt")
    (tmp_path / "ckpt" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "ckpt" / "pytorch_model.bin")
    convert(tmp_path / "ckpt", tmp_path / "out", ConvertOptions(groups=4))
    state = state_of(tmp_path / "out")
    assert torch.equal(state["lm_head.weight"], state["model.embed_tokens.weight"])
    assert logits_of(load(tmp_path / "out")).isfinite().all()


def test_shards_stay_below_the_bound(checkpoint, tmp_path, load, logits_of):
    convert(checkpoint, tmp_path / "one", ConvertOptions(groups=2))
    convert(checkpoint, tmp_path / "many", ConvertOptions(groups=2, max_shard_size="30KB"))
    files = sorted((tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 3
    assert all(f"-of-{len(files):05d}" in file.name for file in files)
    for file in files:
        tensors = load_file(file)
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= 30_000
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {name: file.name for file in files for name in load_file(file)}
    assert index["metadata"]["total_size"] == sum(t.nbytes for file in files for t in load_file(file).values())
    assert torch.equal(logits_of(load(tmp_path / "many")), logits_of(load(tmp_path / "one")))


def test_a_tensor_larger_than_a_shard_gets_its_own(checkpoint):
    plan = plan_conversion(checkpoint, ConvertOptions(groups=2))
    shards = plan_shards(plan.tensors, 1)
    assert [len(shard) for shard in shards] == [1] * len(plan.tensors)


def test_mixed_dtypes_stay_aligned_and_loadable(checkpoint, tmp_path, state_of):
    from safetensors.torch import save_file

    state = state_of(checkpoint)
    mixed = {name: tensor.half() if "mlp" in name else tensor for name, tensor in state.items()}
    mixed["odd"] = torch.arange(3, dtype=torch.uint8)
    (checkpoint / "model.safetensors").unlink()
    save_file(mixed, checkpoint / "model.safetensors")
    convert(checkpoint, tmp_path / "out", ConvertOptions(groups=2))
    after = state_of(tmp_path / "out")
    assert {name: tensor.dtype for name, tensor in after.items()} == {name: t.dtype for name, t in mixed.items()}
    assert torch.equal(after["odd"], mixed["odd"])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_casting(checkpoint, tmp_path, state_of, load, dtype):
    convert(checkpoint, tmp_path / "out", ConvertOptions(groups=2, dtype=dtype))
    convert(checkpoint, tmp_path / "plain", ConvertOptions(groups=2))
    wanted, plain, cast = getattr(torch, dtype), state_of(tmp_path / "plain"), state_of(tmp_path / "out")
    assert all(torch.equal(tensor, plain[name].to(wanted)) for name, tensor in cast.items())
    assert load(tmp_path / "out").dtype == wanted
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["dtype"], config["torch_dtype"]) == (dtype, dtype)


def test_casting_up_merges_in_the_wider_dtype(checkpoint, tmp_path, state_of):
    convert(checkpoint, tmp_path / "half", ConvertOptions(groups=4, dtype="bfloat16"))
    convert(tmp_path / "half", tmp_path / "out", ConvertOptions(groups=2, dtype="float32"))
    half, out = state_of(tmp_path / "half"), state_of(tmp_path / "out")
    name = "model.layers.0.self_attn.k_proj.weight"
    assert torch.equal(out[name], half[name].double().view(2, 2, 8, 48).mean(1).view(16, 48).float())


def test_casting_in_pieces(checkpoint, tmp_path, state_of, monkeypatch):
    convert(checkpoint, tmp_path / "whole", ConvertOptions(groups=2, dtype="bfloat16"))
    monkeypatch.setattr("gqa.convert.writer._CAST_ELEMENTS", 7)
    convert(checkpoint, tmp_path / "pieces", ConvertOptions(groups=2, dtype="bfloat16"))
    assert digest(tmp_path / "whole")["model.safetensors"] == digest(tmp_path / "pieces")["model.safetensors"]


def unsupported(*arguments):
    raise OSError(errno.EXDEV, "not between these file systems")


@pytest.mark.parametrize("refused", [["_copy_file_range"], ["_copy_file_range", "_sendfile"]])
def test_the_same_bytes_where_the_kernel_does_not_copy(checkpoint, tmp_path, monkeypatch, refused):
    convert(checkpoint, tmp_path / "kernel", ConvertOptions(groups=2))
    for name in refused:
        monkeypatch.setattr(f"gqa.convert.transfer.{name}", unsupported)
    convert(checkpoint, tmp_path / "plain", ConvertOptions(groups=2))
    assert digest(tmp_path / "kernel")["model.safetensors"] == digest(tmp_path / "plain")["model.safetensors"]


def test_copies_lie_in_their_pages_as_in_the_source(checkpoint, tmp_path):
    convert(checkpoint, tmp_path / "out", ConvertOptions(groups=2))
    before, after = read_entries(checkpoint), read_entries(tmp_path / "out")
    first = next(name for name in after if not any(part in name for part in KV))
    assert after[first].offset % mmap.PAGESIZE == before[first].offset % mmap.PAGESIZE
    assert all(entry.offset % entry.dtype.itemsize == 0 for entry in after.values())


def test_side_files_are_copied_byte_for_byte(checkpoint, tmp_path):
    (checkpoint / "optimizer.pt").write_bytes(b"not wanted")
    (checkpoint / "pytorch_model.bin").write_bytes(b"not wanted")
    (checkpoint / ".cache").mkdir()
    (checkpoint / "additional_chat_templates").mkdir()
    (checkpoint / "additional_chat_templates" / "tool.jinja").write_text("{{ tool }}")
    convert(checkpoint, tmp_path / "out", ConvertOptions(groups=2))
    names = {"tokenizer.json", "tokenizer.model", "chat_template.jinja", "LICENSE", "generation_config.json"}
    assert {item.name for item in (tmp_path / "out").iterdir()} == names | {
        "additional_chat_templates",
        "config.json",
        "gqa.json",
        "model.safetensors",
    }
    for name in (*names, "additional_chat_templates/tool.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (checkpoint / name).read_bytes()


def test_a_snapshot_of_the_hub_is_links_into_its_blobs(checkpoint, tmp_path):
    snapshot, blobs = tmp_path / "hub" / "snapshots" / "abc", tmp_path / "hub" / "blobs"
    folder = snapshot / "additional_chat_templates"
    blobs.mkdir(parents=True)
    folder.mkdir(parents=True)
    (blobs / "template").write_text("{{ tool }}")
    (folder / "tool.jinja").symlink_to("../../../blobs/template")
    for path in checkpoint.iterdir():
        (blobs / path.name).write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    convert(snapshot, tmp_path / "out", ConvertOptions(groups=2))
    assert (tmp_path / "out" / "additional_chat_templates" / "tool.jinja").read_text() == "{{ tool }}"


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_modes_follow_the_umask(checkpoint, tmp_path, umask):
    (checkpoint / "tokenizer.json").chmod(0o600)
    previous = os.umask(umask)
    try:
        convert(checkpoint, tmp_path / "out", ConvertOptions(groups=2))
    finally:
        os.umask(previous)
    modes = {stat.S_IMODE(item.stat().st_mode) for item in (tmp_path / "out").iterdir()}
    assert modes == {0o666 & ~umask}
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o777 & ~umask


def test_old_checkpoints_lose_what_classes_now_compute(checkpoint, tmp_path, state_of):
    from safetensors.torch import save_file

    state = state_of(checkpoint)
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    (checkpoint / "model.safetensors").unlink()
    save_file(state | extra, checkpoint / "model.safetensors")
    convert(checkpoint, tmp_path / "out", ConvertOptions(groups=2))
    assert state_of(tmp_path / "out").keys() == state.keys()


def test_names_without_the_base_model_prefix(checkpoint, tmp_path, state_of):
    from safetensors.torch import save_file

    bare = {
        name.removeprefix("model."): tensor for name, tensor in state_of(checkpoint).items() if name != "lm_head.weight"
    }
    convert(checkpoint, tmp_path / "full", ConvertOptions(groups=2))
    (checkpoint / "model.safetensors").unlink()
    save_file(bare, checkpoint / "model.safetensors")
    convert(checkpoint, tmp_path / "out", ConvertOptions(groups=2))
    full, out = state_of(tmp_path / "full"), state_of(tmp_path / "out")
    assert out.keys() == bare.keys()
    assert all(torch.equal(tensor, full[f"model.{name}"]) for name, tensor in out.items())


def test_hub_cache_links_are_followed(checkpoint, tmp_path, state_of):
    repository = tmp_path / "models--org--name"
    (repository / "blobs").mkdir(parents=True)
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for file in checkpoint.iterdir():
        blob = repository / "blobs" / digest(checkpoint)[file.name]
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", blob.name))
    convert(snapshot, tmp_path / "out", ConvertOptions(groups=2))
    assert not any(item.is_symlink() for item in (tmp_path / "out").iterdir())
    assert len(state_of(tmp_path / "out")) == len(state_of(checkpoint))


def test_overwrite_replaces_the_whole_directory(checkpoint, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "stale.safetensors").write_text("stale")
    with pytest.raises(UserError, match="exists"):
        convert(checkpoint, output, ConvertOptions(groups=2))
    assert (output / "stale.safetensors").exists()
    convert(checkpoint, output, ConvertOptions(groups=2), overwrite=True)
    assert not (output / "stale.safetensors").exists()
    assert {item.name for item in tmp_path.iterdir()} == {"ckpt", "out"}


def test_a_failed_overwrite_keeps_the_old_directory(checkpoint, tmp_path, monkeypatch):
    output = tmp_path / "out"
    convert(checkpoint, output, ConvertOptions(groups=4))
    before = digest(output)
    monkeypatch.setattr("gqa.convert.rewrite.write_stages", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        convert(checkpoint, output, ConvertOptions(groups=2), overwrite=True)
    assert digest(output) == before
    assert {item.name for item in tmp_path.iterdir()} == {"ckpt", "out"}


def test_default_output_stands_beside_the_input(tmp_path, monkeypatch):
    ckpt = tmp_path / "ckpt"
    ckpt.mkdir()
    assert default_output(f"{ckpt}/", 8) == tmp_path / "ckpt-gqa8"
    assert default_output(str(ckpt), 1) == tmp_path / "ckpt-mqa"
    assert default_output("org/name", 2) == Path("name-gqa2")
    monkeypatch.chdir(ckpt)
    assert default_output(".", 2) == tmp_path / "ckpt-gqa2"


def test_command_line(checkpoint, tmp_path):
    result = CliRunner().invoke(app, ["-g", "2", str(checkpoint), "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["output"] == str(tmp_path / "ckpt-gqa2")
    assert report["cache_bytes_per_token_before"] == 2 * 2 * 8 * 8 * 4  # K and V, layers, heads, head dim, float32
    assert report["cache_bytes_per_token_after"] == 2 * 2 * 2 * 8 * 4
    assert report["parameters_saved"] == 2 * 2 * 6 * 8 * 48
    rewritten = CliRunner().invoke(app, ["-g", "2", "--method", "lowrank", "--dry-run", str(checkpoint), "--json"])
    assert json.loads(rewritten.stdout)["parameters_saved"] == report["parameters_saved"]  # q and o keep their size
    assert len(report["layers"]) == 2
    assert (tmp_path / "ckpt-gqa2" / "config.json").is_file()


def test_dry_run_writes_nothing(checkpoint, tmp_path):
    result = CliRunner().invoke(app, ["-g", "1", str(checkpoint), "--dry-run"])
    assert result.exit_code == 0
    assert "8 -> 1" in result.stdout
    assert {item.name for item in tmp_path.iterdir()} == {"ckpt"}


def test_quiet_prints_nothing(checkpoint):
    result = CliRunner().invoke(app, ["-g", "2", str(checkpoint), "--quiet"])
    assert (result.exit_code, result.output) == (0, "")


SLOW = """
import time, gqa.convert.writer as writer
from gqa.convert.cli import main
copy = writer.copy_range
def slow(*arguments):
    print("writing", flush=True)
    time.sleep(0.5)
    copy(*arguments)
writer.copy_range = slow
main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_leave_nothing_behind(checkpoint, tmp_path, number, code):
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, "-g", "2", str(checkpoint)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    assert any(item.name.endswith(".partial") for item in tmp_path.iterdir())
    time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in errors
    assert {item.name for item in tmp_path.iterdir()} == {"ckpt"}
