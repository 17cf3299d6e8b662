"""Training that can be killed at any moment: checkpoints that are whole, and going on from them bit for bit."""

import contextlib
import io
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import keras
import numpy as np

from command_line import InputError, Interrupted
from run_folder import checkpoints, remove_checkpoints, written_whole


class Checkpoints(keras.callbacks.Callback):
    """Writes everything that training depends on into checkpoints, and restores it.

    A checkpoint holds the variables of the model (weights, batch normalisation, random states), of the optimizer and
    of the epoch's metrics; the epoch and batch to go on with; and what `parts` keep. The batches themselves follow from
    the seed, the epoch and the batch. So training that goes on from a checkpoint ends where it would have ended without
    interruption, on a CPU bit for bit; but for dropout on torch, which draws from torch's own random state.

    A file is written beside its final name, flushed to the disk and renamed, so that it is whole or not there; each
    array in it has a checksum (zip's CRC-32). The two newest are kept: if the newest is damaged, the other is taken.

    Use it in `fit` as the last callback, inside `with checkpoints.told_of_signals()`, and call `fit` while
    `going_on(epochs)`: Keras fixes the number of batches for all epochs of one `fit`, and the rest of an interrupted
    epoch has fewer.

    Args:
        model: compiled `keras.Model`, to be trained.
        metrics: list of the metrics it was compiled with.
        batches: `Batches` that it is trained on.
        parts: dict of objects with `state()`, which returns a dict of arrays and JSON values, and `set_state(state)`.
        folder: `pathlib.Path` of the run folder.
        minutes: float, time between checkpoints; none is lost to Ctrl-C and SIGTERM.
    """

    def __init__(self, model, metrics, batches, parts, folder, minutes):
        super().__init__()
        self.trained, self.batches, self.parts, self.folder, self.seconds = model, batches, parts, folder, 60 * minutes
        model.optimizer.build(model.trainable_variables)
        self.metrics = [model.metrics[0], *metrics]  # the first is the mean loss
        self.metric_variables = [variable for metric in self.metrics for variable in metric.variables]
        self.interrupted_by, self.epoch_metrics, self.stopped = 0, None, False
        self.written = time.monotonic()

    def going_on(self, epochs):
        """Whether there are epochs left to train, and nothing has stopped the training."""
        return self.batches.epoch < epochs and not self.stopped

    def restore(self, afresh=False):
        """Goes on from the newest whole checkpoint, if there is one.

        Args:
            afresh: bool, whether training begins again where there are checkpoints and none can be used.

        Raises:
            InputError: if the checkpoint is of another network, or none of those there is whole.
        """
        try:
            self._restore()
        except InputError as error:
            if not afresh:
                raise
            print(f"Begun again: {error}")
            remove_checkpoints(self.folder)

    def _restore(self):
        paths = checkpoints(self.folder)
        for path in paths:
            try:
                arrays, progress = _read(path)
            except Exception as error:  # NumPy and zipfile raise many kinds for what is no archive any more
                print(f"{path} is damaged ({type(error).__name__}: {error}), and left aside.")
                continue
            self._take(arrays, progress, path)
            return
        if paths:
            raise InputError(
                f"`RUN_FOLDER` must have a whole checkpoint to go on from; those in {self.folder} are damaged. "
                "Start again with --start-afresh True"
            )

    def save(self, epoch, batch):
        """Writes a checkpoint with which training goes on at a batch of an epoch, both counted from 0.

        None is written if a variable is not finite: the one before it is worth more.

        Returns:
            Whether it was written.

        Raises:
            InputError: if it cannot be written, as on a full disk. The checkpoints before it stay as they are.
        """
        arrays = {f"variable {name}": keras.ops.convert_to_numpy(each) for name, each in self._variables().items()}
        self.written = time.monotonic()
        if not all(np.isfinite(array).all() for array in arrays.values()):
            return False
        parts = {name: part.state() for name, part in self.parts.items()}
        for name, state in parts.items():
            for key in [key for key, value in state.items() if isinstance(value, np.ndarray)]:
                arrays[f"{name} {key}"] = state.pop(key)
        progress = {"epoch": epoch, "batch": batch, "parts": parts, "arrays": len(arrays)}
        path = self.folder / f"checkpoint-{epoch:05d}-{batch:07d}.npz"
        try:
            with written_whole(path) as file:
                np.savez(file, progress=np.array(json.dumps(progress)), **arrays)
        except OSError as error:
            left = "The checkpoint before it is whole: the same command goes on from there."
            raise InputError(
                f"`RUN_FOLDER` must have room for checkpoints, and stay writable. Received: {error}. "
                + (left if checkpoints(self.folder) else "There is no checkpoint before it.")
            ) from error
        remove_checkpoints(self.folder, kept=2, newest=path)
        return True

    @contextlib.contextmanager
    def told_of_signals(self):
        """While it lasts, Ctrl-C and SIGTERM end training after the present step, with a checkpoint.

        So does a standard output that is closed, as when Ctrl-C ends the `tee` behind a pipe, too.
        """

        def note(number, frame):
            if self.interrupted_by:  # asked a second time
                raise KeyboardInterrupt
            self.interrupted_by = number
            with contextlib.suppress(OSError):  # where nobody reads it; and not `print`, which a signal may interrupt
                os.write(2, b"\nStopping after this step, with a checkpoint; Ctrl-C again stops at once.\n")

        if threading.current_thread() is not threading.main_thread():  # only the main thread is told of signals
            yield
            return
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with contextlib.redirect_stdout(_UntilClosed(sys.stdout, self)):
                yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def on_epoch_begin(self, epoch, logs=None):
        if self.epoch_metrics is not None:  # of the interrupted epoch, after Keras has reset them
            for variable, value in zip(self.metric_variables, self.epoch_metrics, strict=True):
                variable.assign(value)
            self.epoch_metrics = None

    def on_train_batch_end(self, batch, logs=None):
        if batch + 1 < len(self.batches):  # of the last, the checkpoint is the one at the end of the epoch
            self._save_if_due(self.batches.epoch, self.batches.first_batch + batch + 1)

    def on_epoch_end(self, epoch, logs=None):
        if self.model.stop_training:  # by another callback, for a reason that it told
            self.stopped = True
            return
        was_rest = self.batches.first_batch > 0
        self.batches.start_epoch(epoch + 1)
        self._save_if_due(epoch + 1, 0, last=epoch + 1 == self.params["epochs"])
        self.model.stop_training = was_rest

    def _save_if_due(self, epoch, batch, last=False):
        if last or self.interrupted_by or time.monotonic() - self.written >= self.seconds:
            self.model  # noqa: B018 - on JAX, asking for the model brings its variables up to date
            saved = self.save(epoch, batch)
            if self.interrupted_by:
                raise Interrupted(self.interrupted_by, saved)

    def _variables(self):
        """Each variable that training depends on, by its place; their names count what else the process has built."""
        everything = [*self.trained.variables, *self.trained.optimizer.variables, *self.metric_variables]
        return {str(place): each for place, each in enumerate(everything)}

    def _take(self, arrays, progress, path):
        variables, stored = self._variables(), _belonging_to("variable", arrays)
        expected = {name: tuple(each.shape) for name, each in variables.items()}
        if {name: array.shape for name, array in stored.items()} != expected:
            raise InputError(
                f"`RUN_FOLDER` must be of the same network; {path} is not, perhaps of another Keras version. "
                "Start again with --start-afresh True"
            )
        for name, each in variables.items():
            each.assign(stored[name])
        for name, part in self.parts.items():
            part.set_state({**progress["parts"][name], **_belonging_to(name, arrays)})
        epoch, batch = progress["epoch"], progress["batch"]
        self.batches.start_epoch(epoch, batch)
        if batch > 0:
            self.epoch_metrics = [np.array(keras.ops.convert_to_numpy(each)) for each in self.metric_variables]
        else:
            for metric in self.metrics:  # which Keras resets only once it has used them
                metric.reset_state()
        reached = f"in epoch {epoch + 1} after {batch} batches" if batch > 0 else f"after epoch {epoch}"
        print(f"Going on {reached}, from {path}")


class _UntilClosed:
    """A stream that asks `checkpoints` to stop when nobody reads it any more, and takes in silence what follows."""

    def __init__(self, stream, checkpoints):
        self.stream, self.checkpoints = stream, checkpoints

    def write(self, text):
        with self._silent():
            self.stream.write(text)
        return len(text)

    def flush(self):
        with self._silent():
            self.stream.flush()

    @contextlib.contextmanager
    def _silent(self):
        try:
            yield
        except OSError:  # a pipe, a terminal or a disk at its other end
            if not self.checkpoints.interrupted_by:
                self.checkpoints.interrupted_by = 13  # SIGPIPE, also on systems that have no such name

    def __getattr__(self, name):
        return getattr(self.stream, name)


def _belonging_to(owner, arrays):
    """The arrays whose names begin with an owner's, by the rest of their names."""
    return {key.removeprefix(f"{owner} "): array for key, array in arrays.items() if key.startswith(f"{owner} ")}


def _read(path):
    """All arrays of a checkpoint, their checksums verified, and how far it had come."""
    with np.load(io.BytesIO(Path(path).read_bytes()), allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    progress = json.loads(str(arrays.pop("progress")))
    if len(arrays) != progress["arrays"]:
        raise ValueError(f"{progress['arrays'] - len(arrays)} arrays are missing")
    return arrays, progress
