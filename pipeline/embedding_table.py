"""A folder of Parquet files with the embedding and the class of each image, which grows until all are in it."""

import os
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from pyarrow import compute, parquet

from pipeline import files
from pipeline.errors import InputError
from pipeline.finished_run import RESULTS

LINE_SECONDS = 30.0  # between lines of progress
PART = re.compile(r"part-(\d{6,})\.parquet")
IGNORED = re.compile(r"\..*|desktop\.ini|Thumbs\.db", re.IGNORECASE)  # what systems leave, and the lock
RUN = b"run"  # in the metadata of each file: the checksums of the run's results


class EmbeddingTable:
    """A folder of Parquet files.

    Its columns are `path`; `class`, a name or `"unknown"`; `share` and `distance`, as in `classifier.Answer`;
    `embedding`, a list of float32 of one length; and `error`. Either `error` is null, or the others but `path` are.
    Files are written atomically, by one process at a time. Images with an error are missing again when the folder is
    opened.

    Args:
        folder: path; it need not exist.
        run_folder: path of the run that embeds.

    Attributes:
        unreadable: int, the number of images with an error.

    Raises:
        InputError: if the folder has files of another run, or others, or another process writes to it.
    """

    def __init__(self, folder: str | os.PathLike, run_folder: str | os.PathLike):
        self.folder, self.unreadable, self.known = Path(folder), 0, set()
        self.run = " ".join(str(files.checksum(Path(run_folder, name))) for name in RESULTS).encode()
        rule, numbers = "OUT.parquet must be a new folder, or one of the same run and of this command", [0]
        try:
            self.folder.mkdir(exist_ok=True)
            for name in sorted(os.listdir(self.folder)):  # before anything is changed
                if not IGNORED.fullmatch(name) and not PART.fullmatch(name):
                    raise InputError(f"{rule}. Received: {str(folder)!r}, which has {name!r}")
            self.lock = open(self.folder / ".lock", "a+b")
            files.lock(self.lock)
            files.remove_partial_files(self.folder)
            for path in sorted(self.folder.iterdir()):
                if part := PART.fullmatch(path.name):
                    numbers.append(int(part[1]))
                    self._open(path, rule)
        except BlockingIOError as error:
            raise InputError(f"OUT.parquet must not be in use by another process. Received: {str(folder)!r}") from error
        except (OSError, pyarrow.ArrowException) as error:
            raise InputError(f"{rule}. Received: {str(folder)!r} ({error})") from error
        self.number = max(numbers) + 1

    def _open(self, path, rule):
        if (parquet.read_schema(path).metadata or {}).get(RUN) != self.run:
            raise InputError(f"{rule}. Received: {path}, of another run or of a changed one")
        table = parquet.read_table(path, columns=["path", "error"])  # embeddings of millions take gigabytes
        if table["error"].null_count < len(table):
            table = parquet.read_table(path)
            table = table.filter(compute.is_null(table["error"]))
            with files.atomic_path(path) as written:
                parquet.write_table(table, written)
        self.known.update(table["path"].to_pylist())

    def missing(self, paths: Sequence[str]) -> list[str]:
        """Those of some paths that are not in the table yet, each once, in their order."""
        return [path for path in dict.fromkeys(paths) if _text(path) not in self.known]

    def write(self, parts: Iterable[dict[str, Any]], total: int) -> None:
        """Writes a file for each of several parts, and prints the progress.

        Args:
            parts: dicts of arrays of one length, with the columns; `error` is `""` for images that could be read.
            total: int, the number of images in all parts.

        Raises:
            InputError: if the disk is full.
        """
        done, began, last_line = 0, time.monotonic(), time.monotonic()
        for part in parts:
            table = self._table(part)
            try:
                with files.atomic_path(self.folder / f"part-{self.number:06d}.parquet") as path:
                    parquet.write_table(table, path)
            except OSError as error:
                rule = "OUT.parquet must be writable, on a disk with free space; the same command continues"
                raise InputError(f"{rule}. Received: {error}") from error
            self.number, self.unreadable = self.number + 1, self.unreadable + len(table) - table["error"].null_count
            done += len(table)
            if (now := time.monotonic()) - last_line > LINE_SECONDS and done < total:
                speed, last_line = done / (now - began), now
                left = f"{speed:,.0f} a second, {(total - done) / speed / 60:,.0f} min left"
                print(f"Embedding: {done:,} of {total:,} images, {left}")

    def _table(self, part):
        is_wrong = np.asarray(part["error"]) != ""
        embeddings = np.asarray(part["embedding"], "float32")
        size = embeddings.shape[1]
        lists = pyarrow.FixedSizeListArray.from_arrays(
            pyarrow.array(embeddings.reshape(-1)), size, mask=pyarrow.array(is_wrong)
        )
        columns = {
            "path": pyarrow.array([_text(path) for path in part["path"]], "string"),
            "class": pyarrow.array([*part["class"]], "string", mask=is_wrong),
            "share": pyarrow.array(np.asarray(part["share"], "float32"), mask=is_wrong),
            "distance": pyarrow.array(np.asarray(part["distance"], "float32"), mask=is_wrong),
            "embedding": lists,
            "error": pyarrow.array([*part["error"]], "string", mask=~is_wrong),
        }
        return pyarrow.table(columns, metadata={RUN: self.run})


def _text(path):
    """A path as UTF-8, in which bytes that are none are escaped."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
