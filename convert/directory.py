"""Output directories that appear whole or not at all."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gqa.convert.errors import UserError


def check_output(output: Path, inputs: list[Path], *, overwrite: bool) -> None:
    """Refuse an output that exists (unless `overwrite`), lies inside an input or holds one.

    Raises:
        UserError: with the path and what to do.
    """
    resolved = output.resolve()
    for path in (item.resolve() for item in inputs):
        if resolved == path or resolved.is_relative_to(path) or path.is_relative_to(resolved):
            raise UserError(
                f"the output {output} is the input {path}, inside it, or around it; choose another with --output"
            )
    with disk_errors(output):
        _check_place(output, overwrite=overwrite)


def _check_place(output: Path, *, overwrite: bool) -> None:
    if output.is_symlink() or output.exists():
        if not overwrite:
            raise UserError(f"the output {output} exists; choose another with --output, or replace it with --overwrite")
        if output.is_symlink() or not output.is_dir():
            raise UserError(f"the output {output} is not a directory; --overwrite replaces directories only")
        _check_replaceable(output)
    parent = _existing_parent(output)
    if not parent.is_dir():
        raise UserError(f"{parent} is not a directory, so {output} can't be made; choose another place with --output")
    if not os.access(parent, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise UserError(f"no permission to write into {parent}; choose another place with --output")


def check_space(output: Path, needed: int) -> None:
    """Refuse to start what the disk can't hold.

    Raises:
        UserError: with both sizes.
    """
    parent = _existing_parent(output)
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise UserError(
            f"{parent} has {free / 1e9:.1f} GB free, the output needs {needed / 1e9:.1f} GB; free some space"
        )


@contextmanager
def disk_errors(output: Path) -> Iterator[None]:
    """Turn the errors that disks and permissions cause into sentences."""
    try:
        yield
    except PermissionError as error:
        raise UserError(f"no permission for {error.filename or output}; nothing was written") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"the disk of {output} is full; what was being written is removed: free some space and run again"
            ) from None
        if error.errno == errno.EIO:
            raise UserError(f"a file could not be read or written ({error}); nothing was kept") from None
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(f"the name {output} is too long for the disk; choose a shorter one") from None
        if error.errno in (errno.EBUSY, errno.EXDEV):
            raise _irreplaceable(output) from None
        raise


@contextmanager
def atomic_directory(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty directory beside `target` that becomes `target` when the block ends well.

    On any exception, Ctrl-C and SIGTERM included, it is removed and `target` stays as it was, as do the directories
    around it. With `overwrite` the old directory is moved aside first and deleted only after the new one is in place.

    Raises:
        UserError: `target` is a directory that can't be replaced.
    """
    if overwrite:
        _check_replaceable(target)
    with made_parents(target):
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
        work.chmod(0o777 & ~current_umask())
        try:
            yield work
            sync_tree(work)
            if overwrite and target.exists():
                _replace(target, work)
            else:
                work.rename(target)
        finally:
            shutil.rmtree(work, ignore_errors=True)


@contextmanager
def made_parents(target: Path) -> Iterator[None]:
    """Make the directories that `target` lies in, for as long as there is something in them."""
    missing = [parent for parent in target.parents if not parent.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for parent in missing:
            with suppress(OSError):  # it is not empty, or was never made
                parent.rmdir()


def _replace(target: Path, work: Path) -> None:
    """Put `work` in the place of `target`, which comes back if that fails."""
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
    aside = old / target.name
    try:
        target.rename(aside)
        work.rename(target)
    except BaseException:
        if os.path.lexists(aside) and not os.path.lexists(target):
            aside.rename(target)
        shutil.rmtree(old)
        raise
    shutil.rmtree(old)


def _check_replaceable(output: Path) -> None:
    """Paths would lead nowhere from a working directory that was moved aside."""
    if output.is_mount() or Path.cwd().is_relative_to(output.resolve()):
        raise _irreplaceable(output)


def _irreplaceable(output: Path) -> UserError:
    return UserError(
        f"the output {output} can't be replaced, as it is a mount point, in use, or where this command runs; choose "
        "another, or run it elsewhere"
    )


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace `path` by a file of `content`, so that a reader sees the old file or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    temporary.replace(path)


def current_umask() -> int:
    """The process's umask; it can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sync_tree(directory: Path) -> None:
    """Flush the directory's own entry, so that the rename that follows is not reordered before its files."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _existing_parent(path: Path) -> Path:
    for parent in path.absolute().parents:
        if parent.exists():
            return parent
    raise AssertionError("the root exists")
