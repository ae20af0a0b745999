"""Checkpoints by name: directories, and repositories fetched over HTTP from a server with the Hub's endpoints."""

import hashlib
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gqa.convert.errors import UserError
from gqa.convert.source import read_config, resolve_checkpoint, wanted_files

COMMIT = "0123456789abcdef0123456789abcdef01234567"


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


@pytest.fixture
def hub(checkpoint):
    """A server with one repository, `org/tiny`, which holds the checkpoint and a file that nobody wants."""
    files = {item.name: item.read_bytes() for item in checkpoint.iterdir()} | {"tf_model.h5": b"not wanted"}
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, *, body: bool):
            path = self.path.partition("?")[0]
            asked.append(path)
            name = path.rpartition("/")[2]
            if path.startswith("/api/models/org/tiny/tree/"):
                listed = [{"type": "file", "path": name, "size": len(data), "oid": "0"} for name, data in files.items()]
                self.reply(json.dumps(listed).encode(), body)
            elif path.startswith("/api/models/org/tiny"):
                info = {"id": "org/tiny", "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
                self.reply(json.dumps(info).encode(), body)
            elif path.startswith("/org/tiny/resolve/") and name in files:
                self.reply(files[name], body, ETag=f'"{hashlib.sha1(files[name]).hexdigest()}"')
            else:
                self.send_error(404)

        def reply(self, data: bytes, body: bool, **headers: str):
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("X-Repo-Commit", COMMIT)
            for key, value in headers.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, format, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_a_hub_id_is_fetched_and_converted(hub, tmp_path, checkpoint, state_of):
    endpoint, asked = hub
    environment = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-m", "gqa.convert", "-g", "2", "org/tiny"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not any("tf_model.h5" in path for path in asked)
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
