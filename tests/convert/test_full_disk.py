"""Disks that are full and files that are not to be read or written: one sentence, and nothing left behind."""

import os
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gqa.convert.cli import app


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
