"""Moving bytes between files inside the kernel, so that what does not change never passes through Python."""

import errno
import os
from collections.abc import Callable

_STEP = 64 << 20  # bytes a call: large enough to run at disk speed, small enough for progress and Ctrl-C
_UNSUPPORTED = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF}


def copy_range(source: int, offset: int, count: int, target: int, advance: Callable[[int], None]) -> None:
    """Append `count` bytes of the file descriptor `source` from `offset` to `target`, at its current position.

    Uses copy_file_range (a reflink where the file system shares blocks), sendfile where that is refused, and plain
    reads and writes where neither works.

    Args:
        advance: called with the number of bytes after each step.

    Raises:
        OSError: reading or writing fails, or the source ends early (`errno` EIO).
    """
    copiers = [_copy_file_range, _sendfile, _read_write]
    while count:
        try:
            copied = copiers[0](source, target, min(count, _STEP), offset)
        except OSError as error:
            if error.errno not in _UNSUPPORTED or len(copiers) == 1:
                raise
            del copiers[0]
            continue
        if copied == 0:
            raise OSError(errno.EIO, "the source file ended while it was being copied")
        offset += copied
        count -= copied
        advance(copied)


def write_all(target: int, data: memoryview) -> None:
    """Write the whole of `data`; the system call may take less than it is given."""
    while data:
        data = data[os.write(target, data) :]


def _copy_file_range(source: int, target: int, count: int, offset: int) -> int:
    if not hasattr(os, "copy_file_range"):
        raise OSError(errno.ENOSYS, "no copy_file_range on this system")
    return os.copy_file_range(source, target, count, offset)


def _sendfile(source: int, target: int, count: int, offset: int) -> int:
    if not hasattr(os, "sendfile"):
        raise OSError(errno.ENOSYS, "no sendfile on this system")
    return os.sendfile(target, source, offset, count)


def _read_write(source: int, target: int, count: int, offset: int) -> int:
    data = os.pread(source, min(count, 8 << 20), offset)
    write_all(target, memoryview(data))
    return len(data)
