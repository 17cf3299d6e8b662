"""Atomic writes: after a crash, a power cut or a full disk, a file is complete or unchanged. Locks and checksums."""

import contextlib
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import InputError

PARTIAL = ".part."  # prefix of a file that is being written


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary path to write to; the file is flushed to disk, then renamed to `path`.

    If the block raises, the temporary file is removed and `path` stays as it was.

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
            os.fsync(file.fileno())
        os.replace(temporary, path)
        if os.name == "posix":  # the rename is on disk only once the folder is
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def open_atomic(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Opens a binary file for writing with `atomic_path`."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        yield file


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a UTF-8 text file atomically.

    Raises:
        InputError: if the file cannot be written.
    """
    try:
        with open_atomic(path) as file:
            file.write(text.encode("utf-8"))
    except OSError as error:
        raise InputError(f"`RUN_FOLDER` must stay writable, on a disk with free space. Received: {error}") from error


def remove_partial_files(folder: str | os.PathLike) -> None:
    """Removes temporary files that a killed process left in a folder."""
    for path in Path(folder).glob(PARTIAL + "*"):
        path.unlink()


def checksum(path: str | os.PathLike) -> int:
    """CRC-32 of a file's content, 0 if there is no such file."""
    return zlib.crc32(Path(path).read_bytes()) if Path(path).is_file() else 0


def lock(file: BinaryIO) -> None:
    """Locks an open file until it is closed or the process ends.

    Raises:
        BlockingIOError: if another process has locked it.
    """
    if os.name == "posix":
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        import msvcrt

        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError(str(error)) from error
