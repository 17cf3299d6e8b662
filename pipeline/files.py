"""Atomic writes: after a crash, a power cut or a full disk, a file is complete or unchanged. Locks and checksums."""

import contextlib
import errno
import os
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import InputError

PARTIAL = ".part."  # prefix of a file that is being written
UNSUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL, errno.EBADF)  # by a file system
HELD = (errno.EACCES, errno.EPERM, errno.EBUSY, errno.ETXTBSY)  # by a virus scanner, a backup or a synchronisation
# The disk, the terminal or the network behind them; or the system's limit of open files.
DEVICE_FAILED = (errno.EIO, errno.ENODEV, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE)
HELD_SECONDS = 5.0  # how long to wait for a file that another program holds open


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary path to write to; the file is flushed to disk, then renamed to `path`.

    If the block raises, the temporary file is removed and `path` stays as it was. If another program holds `path` open,
    the rename is tried again for a few seconds.

    Args:
        path: path of the final file.

    Yields:
        Path of the temporary file: the same folder and suffix.

    Raises:
        OSError: if the file cannot be flushed or renamed.
    """
    path = Path(path)
    temporary = path.with_name(PARTIAL + path.name)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            _fsync(file.fileno())
        _replace(temporary, path)
        if os.name == "posix":  # the rename is on disk only once the folder is
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                _fsync(folder)
            finally:
                os.close(folder)
    except BaseException:
        with contextlib.suppress(OSError):  # which would hide the first error
            temporary.unlink(missing_ok=True)
        raise


def is_held(error: BaseException | None) -> bool:
    """Whether an error of writing a file may be that another program holds it open, so that a later try may succeed."""
    return isinstance(error, OSError) and error.errno in HELD


def _fsync(descriptor):
    """Flushes a file or a folder to disk, where the file system can: some network file systems cannot for folders."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def _replace(temporary, path):
    """Renames a file; while another program holds the target open, tries again for HELD_SECONDS."""
    last = time.monotonic() + HELD_SECONDS
    while True:
        try:
            os.replace(temporary, path)
            return
        except OSError as error:
            if not is_held(error) or time.monotonic() >= last:
                raise
        time.sleep(0.1)


@contextlib.contextmanager
def open_atomic(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Opens a binary file for writing with `atomic_path`."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        yield file


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a UTF-8 text file atomically; bytes of a file name that are not UTF-8 become escape sequences.

    Raises:
        InputError: if the file cannot be written.
    """
    try:
        with open_atomic(path) as file:
            file.write(text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise InputError(f"`RUN_FOLDER` must stay writable, on a disk with free space. Received: {error}") from error


def remove_partial_files(folder: str | os.PathLike) -> None:
    """Removes temporary files that a killed process left in a folder."""
    for path in Path(folder).glob(PARTIAL + "*"):
        path.unlink()


def checksum(path: str | os.PathLike) -> int:
    """CRC-32 of a file's content, 0 if there is no such file."""
    return zlib.crc32(Path(path).read_bytes()) if Path(path).is_file() else 0


def allocate(file: BinaryIO, size: int) -> None:
    """Makes a file as large as it will be, so that a full disk shows now, as OSError, and not when it is written."""
    if os.fstat(file.fileno()).st_size == size:
        return
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    file.truncate(size)


def lock(file: BinaryIO, shared: bool = False) -> bool:
    """Locks an open file until it is closed or the process ends.

    Args:
        file: an open file.
        shared: bool, whether others may lock it as shared too; where the system cannot, the file is not locked.

    Returns:
        Whether the file system supports locks.

    Raises:
        BlockingIOError: if another process has locked it.
    """
    if os.name == "posix":
        import fcntl

        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in UNSUPPORTED:
                return False
            raise
    elif not shared:
        import msvcrt

        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError(str(error)) from error
    return True
