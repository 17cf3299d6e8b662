"""A finished run as a classifier: the classes of new images, or that they are of no known class."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from pipeline import lock, references
from pipeline.data.image_files import quiet_pillow, reason, returning_errors
from pipeline.data.image_list import in_lines
from pipeline.data.pixels import rgb_pixels
from pipeline.errors import InputError
from pipeline.finished_run import constants_of_finished
from pipeline.neighbours import vote
from pipeline.references import UNKNOWN
from pipeline.settings.keras_settings import on_cpu
from pipeline.settings.options import STARTED_WITH

LOCK_SECONDS = 60.0  # how long to wait for another process that changes the references


class Answer(NamedTuple):
    """What an image shows.

    Attributes:
        class_name: str, or `"unknown"` if no reference is near enough.
        share: float above 0 and up to 1, of the votes of the nearest references; of an unknown image, those for the
            class that it would have.
        distance: float, to the nearest reference; Euclidean, between unit vectors, from 0 to 2.
        reference: str, the path of the nearest reference in its data set.
    """

    class_name: str
    share: float
    distance: float
    reference: str


class Classifier:
    """Classifies images with the network and the references of a run.

    The run folder is all that it needs, also on another machine.

        classifier = Classifier("run")
        classifier.predict(["a.jpg", "b.png"])

    Args:
        folder: path of the folder of a finished run.

    Attributes:
        references: `References`.
        neighbours: int, how many references vote.
        batch_size: int, how many images the network computes at once.

    Raises:
        InputError: if the folder has no finished run, or files of it are missing or corrupt.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        constants = constants_of_finished(self.folder)
        self.wanted_neighbours, self.fit = constants["NEIGHBOURS"], constants.get("FIT", "scale")
        self.value_range = constants.get(STARTED_WITH, {}).get("value range")
        self.batch_size = 32 if on_cpu() else 128
        self._use(references.read_references(self.folder))
        path = self.folder / "embedding_model.keras"
        try:
            self.version = path.stat().st_mtime_ns
            self.model = keras.saving.load_model(path, compile=False, safe_mode=True)
            self.size = self.model.input_shape[2:]  # height and width in pixels
            if self.model.output_shape[1:] != self.references.embeddings.shape[1:]:
                raise ValueError("its embeddings have another length than those of references.npz")
            if not np.isfinite(self._embed(np.zeros((1, 3, *self.size), "uint8"))).all():
                raise ValueError("its embeddings are not finite")
        except Exception as error:  # Keras, zipfile, h5py and the backends raise many types
            message = " ".join(str(error).split())
            message = message if len(message) < 300 else f"{message[:80]} ... {message[-200:]}"
            raise InputError(
                f"`RUN_FOLDER` must have an intact model, which {keras.backend.backend()} can compute here. Received: "
                f"{path} ({message})"
            ) from error

    def predict(self, images: Iterable) -> list[Answer]:
        """Classifies images.

        Args:
            images: paths of image files; or images as arrays, RGB of shape `(height, width, 3)` or grey
                `(height, width)`, uint8 from 0 to 255, or as Pillow has them. They may have any size.

        Returns:
            List of `Answer`.

        Raises:
            InputError: if images cannot be read; the message names the first twenty.
        """
        if isinstance(images, (str, os.PathLike, Image.Image)) or getattr(images, "ndim", 4) < 4:
            raise InputError("`images` must be a list of paths or images. Received: a single one")
        results = [result for _, result in self.answers(images)]
        wrong = [f"image {number}: {each}" for number, each in enumerate(results) if isinstance(each, Exception)]
        if wrong:
            raise InputError(f"Every image must be readable. Received:{in_lines(wrong)}")
        return results

    def answers(self, images: Iterable) -> Iterator[tuple[Any, Answer | Exception]]:
        """Classifies images one batch at a time, so that there may be any number of them.

        Args:
            images: as in `predict`; taken up to four batches before their answers.

        Yields:
            Tuples of an image as it was given, and its `Answer` or the error of reading it.
        """
        for batch, errors, _, answers in self.in_batches(images):
            found = iter(answers)
            for image, error in zip(batch, errors, strict=True):
                yield image, error or next(found)

    def in_batches(self, images: Iterable) -> Iterator[tuple[list, list[Exception | None], np.ndarray, list[Answer]]]:
        """Embeds and classifies images one batch at a time.

        Args:
            images: as in `answers`.

        Yields:
            Tuples of a batch of images as they were given; the error of reading each, or None; and of those without an
            error float32 embeddings, shape `(n, embedding_size)`, and their answers.
        """
        for batch, errors, embeddings in self._batches(images):
            yield batch, errors, embeddings, self._answers(embeddings)

    def embed(self, images: Iterable) -> tuple[np.ndarray, list[Any], list[tuple[Any, Exception]]]:
        """Computes embeddings.

        Args:
            images: as in `predict`.

        Returns:
            Tuple of float32 embeddings, shape `(n, embedding_size)`; the n images that could be read, as they were
            given; and a list of tuples of the others and their errors.
        """
        parts, read, unread = [np.zeros((0, self.references.embeddings.shape[1]), "float32")], [], []
        for batch, errors, embeddings in self._batches(images):
            parts.append(embeddings)
            read += [image for image, error in zip(batch, errors, strict=True) if error is None]
            unread += [(image, error) for image, error in zip(batch, errors, strict=True) if error is not None]
        return np.concatenate(parts), read, unread

    def similar(self, image: Any, count: int) -> list[tuple[str, str, float]]:
        """The most similar references of an image.

        Args:
            image: one of `predict`.
            count: int, at least 1.

        Returns:
            List of tuples of a reference's path in its data set, its class and its distance, nearest first.

        Raises:
            InputError: if the image cannot be read, or `count` is below 1.
        """
        if count < 1:
            raise InputError(f"`count` must be at least 1. Received: {count}")
        embeddings, _, unread = self.embed([image])
        for _, error in unread:
            raise InputError(f"The image must be readable. Received: {image} ({error})")
        distances, indices = self.search.kneighbors(embeddings, min(count, len(self.references.labels)))
        found, names = self.references, self.references.class_names
        return [
            (str(found.names[index]), names[found.labels[index]], float(distance))
            for index, distance in zip(indices[0], distances[0], strict=True)
        ]

    def change_classes(self, removed: Iterable[str], added: dict[str, Iterable]) -> list[tuple[Any, Exception]]:
        """Removes and adds classes of references, and saves them; the network stays as it is.

        The file is replaced atomically, and processes that change it at the same time wait for each other.

        Args:
            removed: names of classes.
            added: dict from names of new classes to their images, as in `predict`.

        Returns:
            List of tuples of the images that cannot be read, which are left out, and their errors.

        Raises:
            InputError: if there is no class to remove, a class to add exists, cannot have its name or has no image that
                can be read, or the file cannot be written; nothing is changed then.
        """
        removed, embedded, unread = [removed] if isinstance(removed, str) else list(removed), {}, []
        nothing = np.zeros((0, self.references.embeddings.shape[1])), []
        references.with_changes(self.references, removed, dict.fromkeys(added, nothing))  # raises before the work
        for name, images in added.items():
            embeddings, read, wrong = self.embed(images)
            if not read:
                reasons = in_lines([f"{image}: {error}" for image, error in wrong])
                raise InputError(f"`--add` must have images that can be read. Received: none for {name!r}{reasons}")
            embedded[name], unread = (embeddings, references.names_in_class(name, read)), unread + wrong
        try:
            with lock.locked(self.folder, LOCK_SECONDS):
                if (self.folder / "embedding_model.keras").stat().st_mtime_ns != self.version:
                    raise InputError(
                        f"`RUN_FOLDER` must stay the same run. Received: {str(self.folder)!r}, trained again"
                    )
                changed = references.with_changes(references.read_references(self.folder), removed, embedded)
                references.write_references(self.folder, changed)
        except OSError as error:
            rule = "`RUN_FOLDER` must be writable, on a disk with free space, to change its classes"
            raise InputError(f"{rule}. Received: {error}") from error
        self._use(changed)
        return unread

    def _use(self, new):
        self.references, self.counts = new, np.bincount(new.labels, minlength=len(new.class_names))
        self.neighbours = min(self.wanted_neighbours, len(new.labels))
        self.search = NearestNeighbors(n_neighbors=self.neighbours, algorithm="brute").fit(new.embeddings)

    def _answers(self, embeddings):
        if not len(embeddings):
            return []
        known = self.references
        distances, indices = self.search.kneighbors(embeddings)
        classes, shares = vote(distances, known.labels[indices], self.counts)
        return [
            Answer(
                known.class_names[label] if distance <= known.threshold else UNKNOWN,
                float(share),
                float(distance),
                str(known.names[index]),
            )
            for label, share, distance, index in zip(classes, shares, distances[:, 0], indices[:, 0], strict=True)
        ]

    def _batches(self, images):
        """Yields batches of images, the errors of those that cannot be read, and the embeddings of the others.

        While the network computes, threads read the next images.
        """
        images, waiting = iter(images), deque()
        read = returning_errors(lambda image: rgb_pixels(image, self.size, self.fit, self.value_range))
        with quiet_pillow(), ThreadPoolExecutor() as pool:
            while True:
                missing = 4 * self.batch_size - len(waiting)
                waiting.extend((image, pool.submit(read, image)) for image in islice(images, missing))
                if not waiting:
                    return
                batch = [waiting.popleft() for _ in range(min(self.batch_size, len(waiting)))]
                given, results = [image for image, _ in batch], [future.result() for _, future in batch]
                errors = [
                    _described(image, result) if isinstance(result, Exception) else None
                    for image, result in zip(given, results, strict=True)
                ]
                pixels = [result for result in results if not isinstance(result, Exception)]
                yield given, errors, self._embed(np.array(pixels, "uint8"))

    def _embed(self, pixels):
        """Embeddings of uint8 images `(n, 3, height, width)`, in batches of few sizes, as compilers want it."""
        if not len(pixels):
            return np.zeros((0, self.references.embeddings.shape[1]), "float32")
        count = len(pixels)
        padding = 2 ** (count - 1).bit_length() - count  # to a power of 2
        pixels = np.concatenate([pixels, np.zeros((padding, *pixels.shape[1:]), "uint8")])
        return np.asarray(self.model.predict_on_batch(pixels))[:count]


def _described(image, error):
    """An error with what is wrong with a file."""
    return InputError(reason(image, error)) if isinstance(image, (str, os.PathLike)) else error
