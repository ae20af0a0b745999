"""Outputs that appear whole or not at all, wherever they were to go: what was there stays, and nothing is left over."""

import errno
import os
from pathlib import Path

import pytest
from edits import edit_tensors

from gqa.convert.directory import atomic_directory, check_output, disk_errors
from gqa.convert.errors import UserError

IRREPLACEABLE = "can't be replaced, as it is a mount point, in use, or where this command runs; choose another"


@pytest.mark.parametrize("place", [".", "../here", "..", "absolute"])
def test_the_working_directory_is_not_replaced(refuse, checkpoint, tmp_path, monkeypatch, place):
    here = tmp_path / "around" / "here"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    refuse("-g", 2, checkpoint, "-o", here if place == "absolute" else place, "--overwrite", says=IRREPLACEABLE)
    assert list(tmp_path.rglob(".*")) == []


@pytest.mark.parametrize("mount", [path for path in ("/proc", "/dev", "/Volumes") if os.path.ismount(path)])
def test_a_mount_point_is_not_replaced(mount):
    with pytest.raises(UserError, match=IRREPLACEABLE):
        check_output(Path(mount), [], overwrite=True)
    with pytest.raises(UserError, match=IRREPLACEABLE), atomic_directory(Path(mount), overwrite=True):
        pytest.fail("it began")


@pytest.mark.parametrize("failing", [1, 2])
@pytest.mark.parametrize("number", [errno.EBUSY, errno.EXDEV])
def test_an_output_that_can_not_be_replaced_stays(tmp_path, monkeypatch, failing, number):
    target, calls, rename = tmp_path / "out", [], Path.rename
    target.mkdir()
    (target / "precious").write_text("old")

    def sometimes(self, other):
        calls.append(other)
        if len(calls) == failing:
            raise OSError(number, os.strerror(number), str(self))
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", sometimes)
    with (
        pytest.raises(UserError, match=f"the output {target} {IRREPLACEABLE}"),
        disk_errors(target),
        atomic_directory(target, overwrite=True) as work,
    ):
        (work / "new").write_text("new")
    assert [path.relative_to(tmp_path) for path in sorted(tmp_path.rglob("*"))] == [Path("out"), Path("out/precious")]


def test_an_interrupt_between_old_and_new_brings_the_old_back(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to("out")  # which leads nowhere while it is moved aside
    rename = Path.rename

    def interrupted(self, other):
        if self.name.endswith(".partial"):
            raise KeyboardInterrupt
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", interrupted)
    for name in ("out", "link"):
        with pytest.raises(KeyboardInterrupt), atomic_directory(tmp_path / name, overwrite=True):
            pass
    assert {path.name for path in tmp_path.iterdir()} == {"out", "link"}
    assert (tmp_path / "link").resolve() == tmp_path / "out"


def test_directories_made_for_an_output_that_failed_are_removed(refuse, checkpoint, tmp_path):
    def damaged(tensors):
        tensors["model.layers.1.self_attn.k_proj.weight"][0, 0] = float("nan")

    edit_tensors(checkpoint, damaged)
    (tmp_path / "there").mkdir()
    refuse("-g", 2, checkpoint, "-o", tmp_path / "there" / "new" / "deep" / "out", says="holds NaN or infinity")
    assert list((tmp_path / "there").iterdir()) == []


def test_directories_made_for_an_output_stay_with_what_others_put_there(tmp_path):
    def broken_off():
        with atomic_directory(tmp_path / "new" / "deep" / "out"):
            (tmp_path / "new" / "mine").write_text("precious")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken_off()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["mine"]


@pytest.mark.parametrize("inside", ["out", "deep/out"])
def test_a_place_inside_a_file(refuse, checkpoint, tmp_path, inside):
    file = tmp_path / "file"
    file.write_text("precious")
    refuse("-g", 2, checkpoint, "-o", file / inside, says=f"{file} is not a directory, so {file / inside} can't be")


def test_an_input_whose_name_is_too_long(refuse, checkpoint):
    refuse("-g", 2, "a" * 300, says=f"{'a' * 60}... can't be looked up (File name too long); name another path")


@pytest.mark.parametrize("name", ["a" * 245, "a" * 255, "a" * 256, "ü" * 123, f"{'a' * 256}/out"])
def test_a_name_that_is_too_long(refuse, checkpoint, tmp_path, name):
    refuse("-g", 2, checkpoint, "-o", tmp_path / name, says=f"{name} is too long for the disk; choose a shorter one")
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt"]
