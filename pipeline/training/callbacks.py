"""What happens around the training steps: validation, history, the remaining time."""

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import keras

from pipeline import files
from pipeline.data.batches import Batches
from pipeline.errors import InputError

LINE_SECONDS = 60.0  # between lines of progress where there is no terminal and so no bar


class HistoryFile(keras.callbacks.Callback):
    """Collects each epoch's logs, and writes them as CSV after each epoch.

    Args:
        path: path of the file.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.path, self.rows, self.began = path, [], time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        self.rows.append({"epoch": epoch + 1, **{name: float(value) for name, value in (logs or {}).items()}})
        lines = [",".join(self.rows[0]), *(",".join(str(value) for value in row.values()) for row in self.rows)]
        try:
            files.write_text(self.path, "\n".join(lines) + "\n")
        except InputError as error:
            if not files.is_held(error.__cause__):
                raise
            print(f"\nWarning: {error.__cause__}; the history is written again after the next epoch.")

    def columns(self) -> dict[str, list[float]]:
        """The values of each quantity, one an epoch."""
        return {name: [row[name] for row in self.rows if name in row] for name in (self.rows or [{}])[0]}

    def seconds(self) -> float:
        """Time since training began, without what an interruption lost and the time until it was resumed."""
        return time.monotonic() - self.began

    def state(self) -> dict:
        """What a checkpoint stores."""
        return {"rows": list(self.rows), "seconds": self.seconds()}

    def set_state(self, state: dict) -> None:
        """Restores what a checkpoint stored."""
        self.rows, self.began = list(state["rows"]), time.monotonic() - state.get("seconds", 0)


class ValidationAccuracy(keras.callbacks.Callback):
    """Adds `val_accuracy` to each epoch's logs, and keeps the weights of the epoch with the highest.

    Of equal epochs the latest is kept, since the learning rate falls. If the network's outputs are not finite, training
    stops and the best weights so far are kept.

    Put it before callbacks that read the logs.

    Args:
        kept: `keras.Model` whose weights are kept: the trained one, or the network inside it.
        measure: function that returns the accuracy on the validation images, NaN if outputs are not finite.
    """

    def __init__(self, kept: keras.Model, measure: Callable[[], float]):
        super().__init__()
        self.kept, self.measure = kept, measure
        self.best_weights, self.best_accuracy = [], None

    def on_epoch_end(self, epoch, logs=None):
        model = self.model  # on JAX, reading this attribute updates the model's weights
        accuracy = self.measure()
        if math.isnan(accuracy):
            print(
                f"\nWarning: epoch {epoch + 1}: training diverged, the network's outputs are not finite. Training "
                "stops. Lower LEARNING_RATE."
            )
            model.stop_training = True
            return
        if logs is not None:
            logs["val_accuracy"] = accuracy
        if self.best_accuracy is None or accuracy >= self.best_accuracy:
            self.best_accuracy = accuracy
            # Copies, since on PyTorch these arrays share the memory of the weights that training changes.
            self.best_weights = [weights.copy() for weights in self.kept.get_weights()]

    def load_best_weights(self) -> None:
        """Gives the model the best epoch's weights.

        Raises:
            InputError: if no epoch ended with finite outputs.
        """
        if self.best_accuracy is None:
            raise InputError("`LEARNING_RATE` must be lower: no epoch ended with finite outputs of the network.")
        self.kept.set_weights(self.best_weights)

    def state(self) -> dict:
        """What a checkpoint stores."""
        weights = {str(number): array for number, array in enumerate(self.best_weights)}
        return {"best_accuracy": self.best_accuracy, **weights}

    def set_state(self, state: dict) -> None:
        """Restores what a checkpoint stored."""
        self.best_accuracy = state["best_accuracy"]
        self.best_weights = [state[str(number)] for number in range(len(state) - 1)]


class TimeEstimate(keras.callbacks.Callback):
    """Prints after the first steps how long training will take, without the validation after each epoch.

    Where there is no terminal, and so no progress bar, it prints the position and the time left once a minute.

    Args:
        batches: `Batches` for training.
        warm_up: int, first steps that are not measured: compilation, and filling the input pipeline.
        seconds: float, how long to measure at least, or to the epoch's last batch.
    """

    def __init__(self, batches: Batches, warm_up: int = 3, seconds: float = 5.0):
        super().__init__()
        self.batches, self.warm_up, self.seconds = batches, warm_up, seconds
        self.steps, self.measured, self.start, self.printed = 0, 0, 0.0, False
        self.last_line = time.perf_counter()

    def on_epoch_begin(self, epoch, logs=None):
        self.measured, self.start = 0, time.perf_counter()  # without what happened after the previous epoch

    def on_train_batch_end(self, batch, logs=None):
        now, is_last = time.perf_counter(), batch + 1 == len(self.batches)
        line_due = not sys.stdout.isatty() and now - self.last_line >= LINE_SECONDS and not is_last
        if self.printed and not line_due:
            self.steps, self.measured = self.steps + 1, self.measured + 1
            return
        loss = float((logs or {}).get("loss", 0))  # waits for the device, which runs asynchronously
        now = time.perf_counter()
        self.steps += 1
        if self.steps <= self.warm_up:
            self.start = now
        else:
            self.measured += 1
        estimated = not self.printed and self.measured and (now - self.start >= self.seconds or is_last)
        if not (estimated or line_due):
            return
        position = f"epoch {self.batches.epoch + 1}, step {self.batches.first_batch + batch + 1}, loss {loss:.4f}; "
        if self.measured:
            per_step = (now - self.start) / self.measured
            per_epoch = self.batches.first_batch + len(self.batches)
            left = len(self.batches) - batch - 1 + per_epoch * (self.params["epochs"] - self.batches.epoch - 1)
            remaining = f"{duration(left * per_step)}, at {per_step:.2g} s per step"
            print(f"\n{position * line_due}Time left for training, without validation: {remaining}")
            self.printed = True
        else:
            print(f"\n{position}the first steps take longer")
        self.last_line = now


class PredictionProgress(keras.callbacks.Callback):
    """Prints once a minute how far a long prediction is."""

    def __init__(self, count: int):
        super().__init__()
        self.count, self.last_line = count, time.perf_counter()

    def on_predict_batch_end(self, batch, logs=None):
        if time.perf_counter() - self.last_line >= LINE_SECONDS:
            self.last_line = time.perf_counter()
            print(f"Embedding: {batch + 1:,} of {self.count:,} batches")


def duration(seconds: float) -> str:
    """A time with no more precision than is known: 45 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
