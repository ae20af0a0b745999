"""Checkpoints by name: directories, and repositories fetched over HTTP from a server with the Hub's endpoints."""

import subprocess
import sys
from pathlib import Path

import pytest

from gqa.convert.errors import UserError
from gqa.convert.source import read_config, resolve_checkpoint, wanted_files


def test_directories_win_over_hub_ids(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    checkpoint.rename(tmp_path / "org" / "name")
    assert resolve_checkpoint("org/name") == Path("org/name")
    assert read_config(resolve_checkpoint("org/name"))["model_type"] == "llama"


def test_a_path_is_no_hub_id():
    with pytest.raises(UserError, match="no such directory: org/name"):
        resolve_checkpoint("./org/name")


def test_wanted_files():
    files = [
        ".gitattributes",
        "LICENSE",
        "README.md",
        "additional_chat_templates/tool.jinja",
        "config.json",
        "consolidated.safetensors",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "onnx/model.onnx",
        "original/consolidated.00.pth",
        "pytorch_model.bin",
        "tf_model.h5",
        "tokenizer.model",
    ]
    wanted = {"LICENSE", "README.md", "additional_chat_templates/tool.jinja", "config.json", "tokenizer.model"}
    shards = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"}
    assert set(wanted_files(files)) == wanted | shards
    assert set(wanted_files(set(files) - shards)) == wanted | {"pytorch_model.bin"}


def test_a_hub_id_is_fetched_and_converted(hub, environment, tmp_path, checkpoint, state_of):
    files = {item.name: item.read_bytes() for item in checkpoint.iterdir()} | {"tf_model.h5": b"not wanted"}
    hub.add("org/tiny", files)
    command = [sys.executable, "-m", "gqa.convert", "-g", "2", "org/tiny"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not any("tf_model.h5" in line for line in hub.asked)
    assert state_of(tmp_path / "tiny-gqa2").keys() == state_of(checkpoint).keys()
    offline = environment | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, "--dry-run"], cwd=tmp_path, env=offline, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    missing = [*command[:-1], "org/missing"]
    done = subprocess.run(missing, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: org/missing is neither a directory here nor to be had from the Hub: ")
    assert done.stderr.count("\n") == 1
