"""Folders of the cache, each with the decoded images of one data set: locks, room for new ones, removal."""

import contextlib
import errno
import os
import re
import shutil
from pathlib import Path
from typing import BinaryIO

from pipeline import files
from pipeline.errors import InputError

PIXELS, RECORDS, STATE, LOCK = "pixels", "records", "state.json", "lock"  # the files of a folder


def is_complete(folder: Path) -> bool:
    """Whether a folder of the cache has all of its images."""
    return (folder / STATE).exists()


def locked(folder: Path, shared: bool = False) -> tuple[BinaryIO | None, bool]:
    """Locks a folder, which is created if it is missing.

    Args:
        folder: path.
        shared: bool, whether other processes may lock it as shared too.

    Returns:
        The open file of its lock, None if another process has locked it; and whether there are locks here.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            file = open(folder / LOCK, "a+b")
        except FileNotFoundError:  # another process has removed the folder
            continue
        try:
            has_locks = files.lock(file, shared)
            if os.path.samestat(os.fstat(file.fileno()), os.stat(folder / LOCK)):
                return file, has_locks
        except FileNotFoundError:
            pass
        except BlockingIOError:
            file.close()
            return None, True
        file.close()


def remove(folder: Path, lock: BinaryIO) -> None:
    """Removes a data set whose lock is held: its own files alone, the lock last."""
    for name in (PIXELS, STATE, RECORDS):
        with contextlib.suppress(FileNotFoundError):
            (folder / name).unlink()
    with contextlib.suppress(OSError):  # on Windows, an open file cannot be removed
        (folder / LOCK).unlink()
    lock.close()
    with contextlib.suppress(OSError):
        if os.name != "posix":
            (folder / LOCK).unlink(missing_ok=True)
        folder.rmdir()


def make_room(folder: Path, needed: int) -> None:
    """Removes other data sets, the one not used for longest first, until the cache leaves half of the disk free.

    Half of what would be free without the cache; what only just fits on the disk is accepted too. What another process
    writes or uses stays.

    Args:
        folder: path of the folder that needs room.
        needed: int, bytes.

    Raises:
        InputError: if the disk is too small.
    """
    others = sorted((used, each) for each in folder.parent.iterdir() if each != folder and (used := _last_used(each)))
    sizes = [_taken(each) for _, each in others]
    free = shutil.disk_usage(folder).free + _taken(folder)
    if needed > free + sum(sizes):
        others = []  # which would not help
    for place, (_, oldest) in enumerate(others):
        kept = sum(sizes[place:])
        if needed + kept <= (free + kept) / 2:
            break
        with contextlib.suppress(OSError):  # of another user
            lock, has_locks = locked(oldest)
            if lock and has_locks:
                print(f"Removing the decoded images of another data set, {space(sizes[place])}: {oldest}")
                remove(oldest, lock)
            elif lock:  # another process may write into the folder
                lock.close()
        free += sizes[place] - _taken(oldest)
    if needed > free:
        raise InputError(
            f"`CACHE_FOLDER` must be on a disk with enough free space for the decoded images, {space(needed)}, or "
            f"IMAGE_SIZE smaller. Received: {str(folder.parent)!r}, with {space(free)} free"
        )


def _last_used(folder):
    """When a data set was last used; 0 if the folder is not one of this cache."""
    if not re.fullmatch("[0-9a-f]{24}", folder.name) or not (folder / RECORDS).exists():
        return 0
    with contextlib.suppress(OSError):
        return (folder / LOCK).stat().st_mtime
    return 0


def _taken(folder):
    """Bytes of disk that the files of a folder take."""
    taken = 0
    with contextlib.suppress(OSError):  # removed meanwhile, or of another user
        for path in folder.iterdir():
            status = path.stat()
            taken += status.st_blocks * 512 if hasattr(status, "st_blocks") else status.st_size
    return taken


def unwritable(folder: Path, error: OSError) -> InputError:
    """The error of a folder that cannot be written or mapped into memory."""
    if error.errno == errno.ENOMEM:
        return InputError(
            "The limit of this process's virtual memory (`ulimit -v`) must be higher than the decoded images on disk, "
            f"which are mapped into it; IMAGE_SIZE may be smaller instead. Received: {error}"
        )
    return InputError(
        "`CACHE_FOLDER` must be a writable folder on a disk with free space, to keep the decoded images. Received: "
        f"{str(folder.parent)!r} ({error})"
    )


def space(size: int) -> str:
    """A size in bytes as text."""
    return f"{size / 2**20:,.0f} MiB" if size < 10 * 2**30 else f"{size / 2**30:,.0f} GiB"
