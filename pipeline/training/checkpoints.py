"""Training that can be killed at any moment: atomic checkpoints, from which it resumes bit for bit."""

import io
import json
import sys
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np

from pipeline import files
from pipeline.checkpoint_files import checkpoint_paths, remove_checkpoints
from pipeline.data.batches import Batches
from pipeline.errors import InputError, Interrupted
from pipeline.settings import devices, process
from pipeline.training import memory


class Checkpoints(keras.callbacks.Callback):
    """Trains a model, saves everything that training depends on, and resumes from it.

    A checkpoint holds the variables of the model (weights, batch normalisation, random states), of the optimizer and of
    the epoch's metrics; the next epoch and batch; and the states of `parts`. The batches themselves follow from the
    seed, the epoch and the batch. So a resumed training ends exactly as it would have ended without the interruption:
    on a CPU bit for bit, except with dropout on PyTorch, which draws from PyTorch's own random state.

    Checkpoints are written atomically, and each array in them has a checksum (zip's CRC-32). The two newest are kept:
    if the newest is corrupt, the other one is used.

    Args:
        model: compiled `keras.Model`.
        metrics: list of the metrics it was compiled with.
        batches: `Batches` for training.
        parts: dict of callbacks with `state()`, a dict of arrays and JSON values, and `set_state(state)`.
        folder: path of the run folder.
        minutes: float, time between checkpoints; Ctrl-C and SIGTERM save one at once.

    Attributes:
        diverged: bool, whether a callback stopped training early.
    """

    def __init__(
        self, model: keras.Model, metrics: list, batches: Batches, parts: dict[str, Any], folder: Path, minutes: float
    ):
        super().__init__()
        self.trained, self.batches, self.parts, self.folder, self.seconds = model, batches, parts, folder, 60 * minutes
        model.optimizer.build(model.trainable_variables)
        self.metrics = [model.metrics[0], *metrics]  # the first is the mean loss
        self.metric_variables = [variable for metric in self.metrics for variable in metric.variables]
        self.stop_signal, self.epoch_metrics, self.diverged = 0, None, False
        self.last_saved = time.monotonic()

    def fit(self, epochs: int, callbacks: list[keras.callbacks.Callback]) -> None:
        """Trains the epochs that are left. Ctrl-C, SIGTERM and a closed output stop it with a checkpoint.

        Args:
            epochs: int, of the whole training.
            callbacks: of the training; this object is called after them.

        Raises:
            Interrupted: if training was asked to stop.
            InputError: if a checkpoint cannot be written, or a batch does not fit into memory.
        """
        verbose, error = 1 if sys.stdout.isatty() else 2, ""
        if self.epochs_left(epochs):
            memory.check_first_batch(self.trained, self.batches)
        with process.stop_requests(self.request_stop):
            # Keras fixes the number of batches for all epochs of one `fit`, and a resumed epoch has fewer.
            while self.epochs_left(epochs):
                settings = {"initial_epoch": self.batches.epoch, "epochs": epochs, "shuffle": False, "verbose": verbose}
                try:
                    self.trained.fit(self.batches, callbacks=[*callbacks, self], **settings)
                except Exception as raised:
                    if not process.is_out_of_memory(raised):
                        raise
                    error = process.in_short(raised)
                if error:  # outside of the block, which keeps the batch's tensors alive
                    raise InputError(memory.explanation(self.trained, self.batches, error))

    def epochs_left(self, epochs: int) -> bool:
        """Whether epochs are left to train, and no callback stopped training."""
        return self.batches.epoch < epochs and not self.diverged

    def request_stop(self, signal_number: int) -> None:
        """Stops training after the current step, with a checkpoint."""
        self.stop_signal = self.stop_signal or signal_number

    def resume(self, overwrite: bool = False) -> None:
        """Restores the newest intact checkpoint, if there is one.

        Args:
            overwrite: bool, whether to start again if there are checkpoints and none can be used.

        Raises:
            InputError: if the checkpoint is of another network, or all are corrupt.
        """
        try:
            self._restore_newest()
        except InputError as error:
            if not overwrite:
                raise
            print(f"Starting again: {error}")
            remove_checkpoints(self.folder)

    def _restore_newest(self):
        paths = checkpoint_paths(self.folder)
        for path in paths:
            try:
                arrays, progress = _read(path)
            except Exception as error:  # NumPy and zipfile raise many types for a corrupt archive
                print(f"Warning: {path} is corrupt and is skipped ({type(error).__name__}: {error}).")
                continue
            self._restore(arrays, progress, path)
            return
        if paths:
            raise InputError(
                f"`RUN_FOLDER` must have an intact checkpoint to resume from. All in {self.folder} are corrupt; "
                "--overwrite starts the run again."
            )

    def save(self, epoch: int, batch: int) -> bool:
        """Saves a checkpoint from which training resumes at a batch of an epoch, both counted from 0.

        If a variable is not finite, nothing is saved: the previous checkpoint is worth more. Of several processes that
        train together, the first one saves.

        Returns:
            Whether it was saved.

        Raises:
            InputError: if it cannot be written, for example because the disk is full; its cause is the `OSError`.
                Previous checkpoints are kept.
        """
        arrays = {f"variable {name}": keras.ops.convert_to_numpy(each) for name, each in self._variables().items()}
        self.last_saved = time.monotonic()
        if not all(np.isfinite(array).all() for array in arrays.values()):
            return False
        if devices.processes()[0] > 0:
            return True
        parts = {name: part.state() for name, part in self.parts.items()}
        for name, state in parts.items():
            for key in [key for key, value in state.items() if isinstance(value, np.ndarray)]:
                arrays[f"{name} {key}"] = state.pop(key)
        progress = {"epoch": epoch, "batch": batch, "parts": parts, "arrays": len(arrays)}
        path = self.folder / f"checkpoint-{epoch:05d}-{batch:07d}.npz"
        try:
            with files.open_atomic(path) as file:
                np.savez(file, progress=np.array(json.dumps(progress)), **arrays)
        except OSError as error:
            previous = "The same command resumes from the previous checkpoint."
            raise InputError(
                f"`RUN_FOLDER` must stay writable, with free space for checkpoints. Received: {error}. "
                + (previous if checkpoint_paths(self.folder) else "There is no previous checkpoint.")
            ) from error
        remove_checkpoints(self.folder, keep=2, newest=path)
        return True

    def on_epoch_begin(self, epoch, logs=None):
        if self.epoch_metrics is not None:  # of the interrupted epoch, after Keras has reset them
            for variable, value in zip(self.metric_variables, self.epoch_metrics, strict=True):
                variable.assign(value)
            self.epoch_metrics = None

    def on_train_batch_end(self, batch, logs=None):
        if batch + 1 < len(self.batches):  # after the last, the checkpoint is the one at the end of the epoch
            self._save_if_due(self.batches.epoch, self.batches.first_batch + batch + 1)

    def on_epoch_end(self, epoch, logs=None):
        if self.model.stop_training:  # by another callback, which printed why
            self.diverged = True
            return
        was_resumed = self.batches.first_batch > 0
        self.batches.start_epoch(epoch + 1)
        self._save_if_due(epoch + 1, 0, last=epoch + 1 == self.params["epochs"])
        self.model.stop_training = was_resumed

    def _save_if_due(self, epoch, batch, last=False):
        stop_signal = devices.highest(self.stop_signal)  # so that all processes stop after the same step
        if last or stop_signal or time.monotonic() - self.last_saved >= self.seconds:
            self.model  # noqa: B018 - on JAX, reading this attribute updates the model's variables
            try:
                saved = self.save(epoch, batch)
            except InputError as error:
                if last or stop_signal or not files.is_held(error.__cause__):
                    raise
                print(f"\nWarning: no checkpoint could be written ({error.__cause__}); the next try is in a minute.")
                self.last_saved = time.monotonic() - self.seconds + min(60, self.seconds)
                return
            if stop_signal:
                raise Interrupted(stop_signal, saved)

    def _variables(self):
        """The variables that training depends on, by position; their names depend on what else the process built."""
        variables = [*self.trained.variables, *self.trained.optimizer.variables, *self.metric_variables]
        return {str(position): each for position, each in enumerate(variables)}

    def _restore(self, arrays, progress, path):
        variables, stored = self._variables(), _with_prefix("variable", arrays)
        shapes = {name: tuple(each.shape) for name, each in variables.items()}
        if {name: array.shape for name, array in stored.items()} != shapes or set(progress["parts"]) != set(self.parts):
            raise InputError(
                f"`RUN_FOLDER` must have checkpoints of this network, written by this version. {path} is not; "
                "--overwrite starts the run again."
            )
        for name, each in variables.items():
            each.assign(stored[name])
        for name, part in self.parts.items():
            part.set_state({**progress["parts"][name], **_with_prefix(name, arrays)})
        epoch, batch = progress["epoch"], progress["batch"]
        self.batches.start_epoch(epoch, batch)
        if batch > 0:
            self.epoch_metrics = [np.array(keras.ops.convert_to_numpy(each)) for each in self.metric_variables]
        else:
            for metric in self.metrics:  # Keras resets only metrics that have been used
                metric.reset_state()
        position = f"in epoch {epoch + 1} after {batch} batches" if batch > 0 else f"after epoch {epoch}"
        print(f"Resuming {position}, from {path}")


def _with_prefix(prefix, arrays):
    """The arrays whose names start with a prefix and a space, by the rest of their names."""
    return {key.removeprefix(f"{prefix} "): array for key, array in arrays.items() if key.startswith(f"{prefix} ")}


def _read(path):
    """All arrays of a checkpoint, with verified checksums, and its progress."""
    with np.load(io.BytesIO(Path(path).read_bytes()), allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    progress = json.loads(str(arrays.pop("progress")))
    if len(arrays) != progress["arrays"]:
        raise ValueError(f"{progress['arrays'] - len(arrays)} arrays are missing")
    return arrays, progress
