"""Where decoded images are kept: in memory, or in a file on disk that the next run finds again."""

import contextlib
import functools
import hashlib
import json
import math
import os
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline import downloads, files, system_memory
from pipeline.data import cache_folders
from pipeline.data.cache_folders import LOCK, PIXELS, RECORDS, STATE
from pipeline.data.pixels import digest
from pipeline.errors import InputError

READ, UNREADABLE = 1, 2  # states of an image, 0 until it is decoded
RECORD = np.dtype(
    [("state", "u1"), ("digest", "S16"), ("is_reduced", "?"), ("is_wide", "?"), ("low", "<f8"), ("high", "<f8")]
)
_in_use = {}  # path of a folder of the cache -> the lock by which this process uses its images, closed afterwards
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
        if folder in _in_use:  # such as by an earlier cell of a notebook, for which this one must not wait
            _in_use.pop(folder).close()
        is_waiting, self.is_corrupt = False, False
        try:
            while not (
                (cache_folders.is_complete(folder) and self._opened(count, size, shared=True))
                or self._opened(count, size, shared=False)
            ):
                if not is_waiting:
                    does = "uses corrupt images of" if self.is_corrupt else "is reading the same images into"
                    print(f"Waiting for another process, which {does} {folder}")
                is_waiting = True
                time.sleep(1)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise cache_folders.unwritable(folder, error) from error

    def _opened(self, count, size, shared):
        """Opens the folder, alone or, if all images are there, with others; returns whether that was possible."""
        with contextlib.ExitStack() as entered:
            self.lock, _ = cache_folders.locked(self.folder, shared)
            if self.lock is None:
                return False
            entered.enter_context(self.lock)
            self.is_complete = self._read_state(count)
            if shared and not self.is_complete:
                return False
            if not shared:
                if not self.is_complete:
                    cache_folders.make_room(self.folder, count * self.size_of_image)
                (self.folder / PIXELS).touch()
            self.file = entered.enter_context(open(self.folder / PIXELS, "r+b", buffering=0))
            if not shared:
                files.allocate(self.file, count * self.size_of_image)
            self.array = np.asarray(np.memmap(self.folder / PIXELS, "uint8", "r", shape=(count, 3, *size)))
            if not self._is_intact():
                if shared:
                    self.is_corrupt = True
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
            raise cache_folders.unwritable(self.folder, error) from error

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
            raise cache_folders.unwritable(self.folder, error) from error

    def finish(self, value_range: tuple[float, float] | None) -> None:
        try:
            with files.open_atomic(self.folder / STATE) as file:
                file.write(json.dumps({"value range": value_range}).encode())
        except OSError as error:
            raise cache_folders.unwritable(self.folder, error) from error
        super().finish(value_range)

    def remove(self) -> None:
        self.is_complete = False
        del self.array  # on Windows a file that is mapped cannot be removed
        self.file.close()
        cache_folders.remove(self.folder, self.lock)

    def close(self) -> None:
        self.file.close()
        if self.is_complete and os.name == "posix":  # nobody removes the images while they are used
            with contextlib.suppress(BlockingIOError):  # another process may come first, which removes nothing
                files.lock(self.lock, shared=True)
            weakref.finalize(self.array.base, self.lock.close)
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
        return bool(self.paths) and (self.images_in == "disk" or (self.images_in == "auto" and is_large))

    def folder(self, size: tuple[int, int]) -> Path:
        """The folder of the cache for these files as images of this height and width; it need not exist."""
        user = os.getuid() if hasattr(os, "getuid") else 0  # who may not write to the folder of another one
        key = hashlib.blake2b(repr((1, user, tuple(size), self.fit)).encode() + self._files, digest_size=12)
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
        what, space = f"{count:,} images at {size[0]}×{size[1]} pixels", cache_folders.space(_bytes(count, size))
        if not self.is_disk(size):
            print(f"Reading {what}: {space} of memory")
            return Memory(count, size)
        folder = self.folder(size)
        if cache_folders.is_complete(folder):
            print(f"Found {what}, decoded by an earlier run: {space} on disk, in {folder}")
        else:
            print(f"Reading {what}: {space} on disk, in {folder}")
        return Disk(folder, count, size)


def _bytes(count, size):
    """What the pixels of images take."""
    return 3 * math.prod(size) * count
