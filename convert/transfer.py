"""Moving bytes between files inside the kernel, so that what does not change never passes through Python."""

import errno
import os
from collections.abc import Callable

_STEP = 64 << 20  # bytes a call: large enough to run at disk speed, small enough for progress and Ctrl-C
_FOLIO = 64 << 10  # bytes that Linux moves at once inside such a call: a pipe's worth
_UNSUPPORTED = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSOCK, errno.EPERM, errno.EBADF}


def copy_range(
    source: int, offset: int, target: int, position: int, count: int, advance: Callable[[int], None]
) -> None:
    """Copy `count` bytes at `offset` of the file descriptor `source` to `position` of `target`.

    Uses copy_file_range (a reflink where the file system shares blocks), sendfile where that is refused, and plain
    reads and writes where neither works. A short first step brings the target to a multiple of what the kernel moves
    at once, so that the file system caches each move as one large page: that takes a quarter of the time off.

    Args:
        advance: called with the number of bytes after each step.

    Raises:
        OSError: reading or writing fails, or the source ends early (`errno` EIO).
    """
    copiers = [_copy_file_range, _sendfile, _read_write]
    while count:
        try:
            copied = copiers[0](source, offset, target, position, min(count, -position % _FOLIO or _STEP))
        except OSError as error:
            if error.errno not in _UNSUPPORTED or len(copiers) == 1:
                raise
            del copiers[0]
            continue
        if copied == 0:
            raise OSError(errno.EIO, "the source file ended while it was being copied")
        offset, position, count = offset + copied, position + copied, count - copied
        advance(copied)


def write_at(target: int, position: int, data: memoryview) -> None:
    """Write the whole of `data` to `position` of `target`; the system call may take less than it is given."""
    while data:
        written = os.pwrite(target, data, position)
        position, data = position + written, data[written:]


def _copy_file_range(source: int, offset: int, target: int, position: int, count: int) -> int:
    if not hasattr(os, "copy_file_range"):
        raise OSError(errno.ENOSYS, "no copy_file_range on this system")
    return os.copy_file_range(source, target, count, offset, position)


def _sendfile(source: int, offset: int, target: int, position: int, count: int) -> int:
    if not hasattr(os, "sendfile"):
        raise OSError(errno.ENOSYS, "no sendfile on this system")
    os.lseek(target, position, os.SEEK_SET)
    return os.sendfile(target, source, offset, count)


def _read_write(source: int, offset: int, target: int, position: int, count: int) -> int:
    data = os.pread(source, min(count, 8 << 20), offset)
    write_at(target, position, memoryview(data))
    return len(data)
