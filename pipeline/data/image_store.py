"""Where decoded images are kept: in memory, or in a file on disk that the next run finds again."""

import contextlib
import functools
import hashlib
import json
import math
import os
import re
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline import downloads, files, system_memory
from pipeline.data.pixels import digest
from pipeline.errors import InputError

READ, UNREADABLE = 1, 2  # states of an image, 0 until it is decoded
RECORD = np.dtype(
    [("state", "u1"), ("digest", "S16"), ("is_reduced", "?"), ("is_wide", "?"), ("low", "<f8"), ("high", "<f8")]
)
PIXELS, RECORDS, STATE, LOCK = "pixels", "records", "state.json", "lock"  # the files of a data set in the cache
_in_use = {}  # path of a folder of the cache -> the open file of its lock, while this process uses its images
CHECKED = 64  # images whose checksums are compared when a file is found again


class Memory:
    """Decoded images in memory.

    Args:
        count: int.
        size: `(height, width)` in pixels.

    Attributes:
        array: uint8, shape `(count, 3, height, width)`.
        records: what is known about each image, `RECORD`, shape `(count,)`.
        value_range: the range of 16-bit images with which they have been decoded, None until then.
        is_complete: bool, whether all have been decoded.

    Raises:
        InputError: if there is not enough memory.
    """

    def __init__(self, count: int, size: tuple[int, int]):
        self.records, self.value_range, self.is_complete = np.zeros(count, RECORD), None, False
        try:
            self.array = np.empty((count, 3, *size), "uint8")
        except MemoryError as error:
            raise InputError(
                f'`IMAGE_SIZE` must be small enough for the images to fit into memory, unless IMAGES_IN is "disk". '
                f"Received: {count:,} images of {size[0]}×{size[1]} pixels ({error})"
            ) from error

    def write(self, number: int, pixels: np.ndarray) -> None:
        """Stores the pixels of an image; may be called by several threads."""
        self.array[number] = pixels

    def save(self, numbers: Sequence[int]) -> None:
        """Makes what is known about some images, in ascending order, last longer than this process."""

    def finish(self, value_range: tuple[float, float] | None) -> None:
        """Marks the images as complete."""
        self.value_range, self.is_complete = value_range, True

    def remove(self) -> None:
        """Removes what has been stored."""

    def close(self) -> None:
        """Ends writing; the array can still be read."""


class Disk(Memory):
    """Decoded images in a folder of the cache; a run that was interrupted while it wrote them continues there.

    Pixels are on disk before the records that say so. One process at a time writes; another one waits.

    Args:
        folder: path of the data set's folder in the cache.
        count, size: as in `Memory`.

    Raises:
        InputError: if the folder cannot be written, or the disk is full.
    """

    def __init__(self, folder: Path, count: int, size: tuple[int, int]):
        self.folder, self.size_of_image = folder, _bytes(1, size)
        self.records, self.value_range, self.mutex = np.zeros(count, RECORD), None, threading.Lock()
        earlier = _in_use.pop(folder, None)  # of this process, such as of an earlier cell of a notebook
        if earlier:
            earlier.close()
        try:
            if not (is_complete(folder) and self._opened(count, size, shared=True)):
                self._opened(count, size, shared=False)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise _unwritable(folder, error) from error

    def _opened(self, count, size, shared):
        """Opens the folder, alone or, if all images are there, with others; returns whether that was possible."""
        with contextlib.ExitStack() as entered:
            self.lock = entered.enter_context(_locked(self.folder, shared))
            self.is_complete = self._read_state(count)
            if shared and not self.is_complete:
                return False
            if not shared:
                if not self.is_complete:
                    _make_room(self.folder, count * self.size_of_image)
                (self.folder / PIXELS).touch()
            self.file = entered.enter_context(open(self.folder / PIXELS, "r+b", buffering=0))
            if not shared:
                files.allocate(self.file, count * self.size_of_image)
            self.array = np.asarray(np.memmap(self.folder / PIXELS, "uint8", "r", shape=(count, 3, *size)))
            if not self._is_intact():
                if shared:
                    return False
                print(f"Warning: the decoded images in {self.folder} are corrupt, and are decoded again.")
                self._forget(count)
            os.utime(self.folder / LOCK)
            entered.pop_all()  # they stay open until `close`
        return True

    def write(self, number: int, pixels: np.ndarray) -> None:
        left = memoryview(np.ascontiguousarray(pixels)).cast("B")
        try:
            with self.mutex:
                self.file.seek(number * self.size_of_image)
                while left:
                    left = left[self.file.write(left) :]
        except OSError as error:
            raise _unwritable(self.folder, error) from error

    def save(self, numbers: Sequence[int]) -> None:
        first, last = numbers[0], numbers[-1] + 1
        try:
            os.fsync(self.file.fileno())
            with open(self.folder / RECORDS, "r+b") as file:
                file.seek(first * RECORD.itemsize)
                file.write(self.records[first:last].tobytes())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise _unwritable(self.folder, error) from error

    def finish(self, value_range: tuple[float, float] | None) -> None:
        try:
            with files.open_atomic(self.folder / STATE) as file:
                file.write(json.dumps({"value range": value_range}).encode())
        except OSError as error:
            raise _unwritable(self.folder, error) from error
        super().finish(value_range)

    def remove(self) -> None:
        del self.array  # on Windows a file that is mapped cannot be removed
        self.file.close()
        _remove(self.folder, self.lock)

    def close(self) -> None:
        self.file.close()
        if self.is_complete and os.name == "posix":  # until this process ends, no other one may remove the images
            files.lock(self.lock, shared=True)
            _in_use[self.folder] = self.lock
        else:
            self.lock.close()

    def _read_state(self, count):
        """Reads what an earlier process has written; returns whether it has finished."""
        try:
            records = np.fromfile(self.folder / RECORDS, RECORD)
            if len(records) != count or (self.folder / PIXELS).stat().st_size != count * self.size_of_image:
                raise ValueError
        except (OSError, ValueError):
            self._forget(count)
            return False
        self.records = records
        try:
            self.value_range = json.loads((self.folder / STATE).read_text())["value range"]
            self.value_range = self.value_range and tuple(self.value_range)
            return True
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _forget(self, count):
        """Marks all images as not decoded yet, on disk too."""
        self.records, self.value_range, self.is_complete = np.zeros(count, RECORD), None, False
        (self.folder / STATE).unlink(missing_ok=True)
        (self.folder / RECORDS).write_bytes(self.records.tobytes())

    def _is_intact(self):
        """Whether some of the images have the pixels that were written."""
        read = np.flatnonzero(self.records["state"] == READ)
        some = read[np.linspace(0, len(read) - 1, min(CHECKED, len(read)), dtype=int)] if len(read) else []
        known = self.records["digest"]
        return all(np.array(digest(self.array[number]), known.dtype) == known[number] for number in some)


class Place:
    """Where the decoded images of some files go: into memory, or into a folder of the cache.

    Args:
        paths: paths of the image files.
        fit: how they are resized.
        images_in: `"memory"`, `"disk"`, or `"auto"`, which is memory if the images fit into half of what is free.
        cache: path of the folder for decoded images, or `"auto"`, which is in the folder of Keras' downloads.
    """

    def __init__(self, paths: Sequence[os.PathLike], fit: str, images_in: str, cache: str):
        self.paths, self.fit, self.images_in = paths, fit, images_in
        self.cache = Path(cache) if cache != "auto" else downloads.cache_folder() / "decoded_images"
        self.free = system_memory.free_memory()

    def is_disk(self, size: tuple[int, int]) -> bool:
        """Whether images of this height and width go to the disk."""
        is_large = self.free is not None and _bytes(len(self.paths), size) > self.free / 2
        return self.images_in == "disk" or (self.images_in == "auto" and is_large)

    def folder(self, size: tuple[int, int]) -> Path:
        """The folder of the cache for these files as images of this height and width; it need not exist."""
        key = hashlib.blake2b(repr((1, tuple(size), self.fit)).encode() + self._files, digest_size=12)
        return self.cache / key.hexdigest()

    @functools.cached_property
    def _files(self):
        """A checksum of the files' names, sizes and times, which are asked for once: on a network that takes long."""
        try:
            common = os.path.commonpath([os.path.dirname(path) for path in self.paths])
        except ValueError:  # relative and absolute paths, or of several drives
            common = ""
        key = hashlib.blake2b()
        for path in self.paths:
            try:
                status = os.stat(path)
                details = status.st_size, status.st_mtime_ns
            except OSError:  # named when it is read
                details = None
            key.update(os.fsencode(str(path)[len(common) :]) + repr(details).encode() + b"\0")
        return key.digest()

    def opened(self, size: tuple[int, int]) -> Memory:
        """Prints where the images go and the space that they take.

        Args:
            size: `(height, width)` in pixels, of the decoded images.

        Returns:
            `Memory` or `Disk`.

        Raises:
            InputError: if there is not enough space.
        """
        count = len(self.paths)
        what, space = f"{count:,} images at {size[0]}×{size[1]} pixels", _space(_bytes(count, size))
        if not self.is_disk(size):
            print(f"Reading {what}: {space} of memory")
            return Memory(count, size)
        folder = self.folder(size)
        if is_complete(folder):
            print(f"Found {what}, decoded by an earlier run: {space} on disk, in {folder}")
        else:
            print(f"Reading {what}: {space} on disk, in {folder}")
        return Disk(folder, count, size)


def is_complete(folder: Path) -> bool:
    """Whether a folder of the cache has all of its images."""
    return (folder / STATE).exists()


def _locked(folder, shared=False, waits=True):
    """The open file of a folder's lock, or None if another process has locked it and nobody waits."""
    announced = False
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            file = open(folder / LOCK, "a+b")
        except FileNotFoundError:  # another process has removed the folder
            continue
        try:
            if not files.lock(file, shared) and not waits:
                file.close()  # there are no locks here: another process may write into the folder
                return None
            if os.path.samestat(os.fstat(file.fileno()), os.stat(folder / LOCK)):
                return file
        except FileNotFoundError:
            pass
        except BlockingIOError:
            if not waits:
                file.close()
                return None
            if not announced:
                print(f"Waiting for another process, which is reading the same images into {folder}")
            announced = True
            time.sleep(1)
        file.close()


def _remove(folder, lock):
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


def _make_room(folder, needed):
    """Removes other data sets, the one not used for longest first, until the cache leaves half of the disk free.

    Half of what would be free without the cache; what only just fits on the disk is accepted too. What another process
    writes or uses stays.
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
        if lock := _locked(oldest, waits=False):
            print(f"Removing the decoded images of another data set, {_space(sizes[place])}: {oldest}")
            with contextlib.suppress(OSError):
                _remove(oldest, lock)
            free += sizes[place] - _taken(oldest)
    if needed > free:
        raise InputError(
            f"`CACHE_FOLDER` must be on a disk with enough free space for the decoded images, {_space(needed)}, or "
            f"IMAGE_SIZE smaller. Received: {str(folder.parent)!r}, with {_space(free)} free"
        )


def _last_used(folder):
    """When a data set was last used; 0 if the folder is not one of this cache."""
    if not re.fullmatch("[0-9a-f]{24}", folder.name) or not (folder / RECORDS).exists():
        return 0
    with contextlib.suppress(OSError):
        return (folder / LOCK).stat().st_mtime
    return 0


def _bytes(count, size):
    """What the pixels of images take."""
    return 3 * math.prod(size) * count


def _taken(folder):
    """Bytes of disk that the files of a folder take."""
    taken = 0
    with contextlib.suppress(OSError):  # removed meanwhile, or of another user
        for path in folder.iterdir():
            status = path.stat()
            taken += status.st_blocks * 512 if hasattr(status, "st_blocks") else status.st_size
    return taken


def _unwritable(folder, error):
    return InputError(
        "`CACHE_FOLDER` must be a writable folder on a disk with free space, to keep the decoded images. Received: "
        f"{str(folder.parent)!r} ({error})"
    )


def _space(size):
    return f"{size / 2**20:,.0f} MiB" if size < 10 * 2**30 else f"{size / 2**30:,.0f} GiB"
