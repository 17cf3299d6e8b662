"""The lock of a run folder: one process at a time trains in it or changes its references."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline import files
from pipeline.errors import InputError

_locks = {}  # path of a folder -> its lock file, open as long as the folder is locked


def lock(folder: str | os.PathLike, seconds: float = 0) -> bool:
    """Locks a folder until `unlock`, or until the process ends, however it ends.

    Args:
        folder: path of an existing folder.
        seconds: float, how long to wait for another process.

    Returns:
        Whether the file system has locks.

    Raises:
        InputError: if another process has locked it.
    """
    last = time.monotonic() + seconds
    while True:
        file = open(Path(folder) / ".lock", "a+b")
        try:
            is_locked = files.lock(file)
            break
        except BlockingIOError as error:
            file.close()
            if time.monotonic() >= last:
                raise InputError(
                    f"`RUN_FOLDER` must not be in use by another process. Received: {str(folder)!r}, in which a "
                    "process is active; wait for it, or choose another folder."
                ) from error
        time.sleep(0.1)
    _locks[os.path.realpath(folder)] = file
    return is_locked


def unlock(folder: str | os.PathLike) -> None:
    """Releases a folder, if this process has locked it."""
    file = _locks.pop(os.path.realpath(folder), None)
    if file:
        file.close()


@contextlib.contextmanager
def locked(folder: str | os.PathLike, seconds: float) -> Iterator[None]:
    """Locks a folder as `lock` does, for the length of a block."""
    lock(folder, seconds)
    try:
        yield
    finally:
        unlock(folder)


def check_not_in_use(folder: str | os.PathLike) -> None:
    """Raises InputError if another process has locked a folder; leaves it unlocked."""
    if (Path(folder) / ".lock").exists() and os.path.realpath(folder) not in _locks:
        lock(folder)
        unlock(folder)
