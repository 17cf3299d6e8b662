"""What happens beside the training steps: validation by nearest neighbour, history, alarms, the time left."""

import time

import keras
import numpy as np

from command_line import InputError
from nearest_neighbours import predict_classes
from run_folder import write_whole

# What else helps, besides a lower learning rate and a larger margin.
SOFTER = {"batch_hard": ', or train with MINING = "semi_hard" or "batch_all"'}
HARDER = {"batch_hard": "", "merge": ', or train with TRIPLET_LOSS = "in_batch"'}


class HistoryFile(keras.callbacks.Callback):
    """Keeps each epoch's logs, and writes them as CSV after each epoch.

    Args:
        path: `pathlib.Path` of the file to write.
    """

    def __init__(self, path):
        super().__init__()
        self.path, self.rows = path, []

    def on_epoch_end(self, epoch, logs=None):
        self.rows.append({"epoch": epoch + 1, **{name: float(value) for name, value in (logs or {}).items()}})
        lines = [",".join(self.rows[0]), *(",".join(str(value) for value in row.values()) for row in self.rows)]
        write_whole(self.path, "\n".join(lines) + "\n")

    def columns(self):
        """The values of each quantity, epoch by epoch, as a dict of lists."""
        return {name: [row[name] for row in self.rows if name in row] for name in (self.rows or [{}])[0]}

    def state(self):
        """What a checkpoint keeps."""
        return {"rows": list(self.rows)}

    def set_state(self, state):
        """Goes on from what a checkpoint kept."""
        self.rows = list(state["rows"])


class NearestNeighbourAccuracy(keras.callbacks.Callback):
    """Adds `val_accuracy` to each epoch's logs, and keeps the weights of the epoch with the highest.

    The validation images' classes are predicted by nearest neighbour among reference images, as those of the test
    images will be. Of equal epochs the latest is kept, since the learning rate falls. If the embeddings are not
    finite, training stops and the best weights so far stay.

    Put it before callbacks that read the logs.

    Args:
        embedding_model: `keras.Model` whose weights are kept: the trained one, or the network inside it.
        embed: function of `Images` that returns their embeddings, `(n, embedding_size)`.
        references: `Images` of known class.
        validation: `Images` to predict.
        neighbours: int, how many references vote.
    """

    def __init__(self, embedding_model, embed, references, validation, neighbours):
        super().__init__()
        self.embedding_model, self.embed = embedding_model, embed
        self.references, self.validation = references, validation
        self.neighbours = min(neighbours, len(references.labels))
        self.best_weights, self.best_accuracy = [], None

    def on_epoch_end(self, epoch, logs=None):
        model = self.model  # on JAX, asking for the model brings its weights up to date
        references, queries = self.embed(self.references), self.embed(self.validation)
        if not (np.isfinite(references).all() and np.isfinite(queries).all()):
            print(f"\nEpoch {epoch + 1} ended in embeddings that are not finite: training stops. Lower LEARNING_RATE.")
            model.stop_training = True
            return
        predicted = predict_classes(references, self.references.labels, queries, self.neighbours)
        accuracy = float(np.mean(predicted == self.validation.labels))
        if logs is not None:
            logs["val_accuracy"] = accuracy
        if self.best_accuracy is None or accuracy >= self.best_accuracy:
            self.best_accuracy = accuracy
            # On torch they would change with the training, whose memory they share.
            self.best_weights = [weights.copy() for weights in self.embedding_model.get_weights()]

    def load_best_weights(self):
        """Gives the model the best epoch's weights.

        Raises:
            InputError: if no epoch ended in finite embeddings.
        """
        if self.best_accuracy is None:
            raise InputError("`LEARNING_RATE` must be lower: no epoch ended in finite embeddings.")
        self.embedding_model.set_weights(self.best_weights)

    def state(self):
        """What a checkpoint keeps."""
        weights = {str(number): array for number, array in enumerate(self.best_weights)}
        return {"best_accuracy": self.best_accuracy, **weights}

    def set_state(self, state):
        """Goes on from what a checkpoint kept."""
        self.best_accuracy = state["best_accuracy"]
        self.best_weights = [state[str(number)] for number in range(len(state) - 1)]


class Watch(keras.callbacks.Callback):
    """Says, once each, when training goes wrong in a way that its user can mend.

    - Collapse: all embeddings lie near one point, and the loss stays at its margin.
    - Stuck at the margin without collapse: positives are as far apart as negatives, in the mean of an epoch, or of
      several where they are short: from random weights the first dozens of steps of healthy training look so too.
    - No active triplet in a whole epoch: there is nothing left to learn from.

    It goes by the logs of the training batches. Those of `predict` would give false alarms: from random weights, the
    moving statistics of batch normalisation are far behind in the first epochs.

    Args:
        margin: float, the loss's, of whose tenth negatives must be farther than positives.
        mining: str, the loss's, or `"merge"`; the remedies go by it.
        least_distance: float, mean anchor-negative distance of an epoch, squared, below which embeddings have
            collapsed; in different directions they are 2 apart.
        patience: int, how many steps in epochs without a break make training count as stuck.
    """

    def __init__(self, margin, mining, least_distance=0.1, patience=64):
        super().__init__()
        self.margin, self.mining, self.least_distance, self.patience = margin, mining, least_distance, patience
        self.said, self.stuck_steps, self.steps = [], 0, 0

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1  # of the epoch, those before an interruption included

    def on_epoch_end(self, epoch, logs):
        stuck = logs["negative_distance"] - logs["positive_distance"] < 0.1 * self.margin
        self.stuck_steps, self.steps = self.stuck_steps + self.steps if stuck else 0, 0
        if logs["negative_distance"] < self.least_distance:
            self._say(
                "collapse",
                f"Epoch {epoch + 1}: collapse, all embeddings lie near one point (mean squared distance to a negative "
                f"{logs['negative_distance']:.1g}). Lower LEARNING_RATE{SOFTER.get(self.mining, '')}.",
            )
        elif self.stuck_steps >= self.patience:
            self._say(
                "stuck",
                f"Epoch {epoch + 1}: the loss is stuck at its margin, images of one class lie as far apart "
                f"({logs['positive_distance']:.2g}) as those of different ones ({logs['negative_distance']:.2g}). "
                "Lower LEARNING_RATE, or check that the images are in the right class folders.",
            )
        elif logs["active_triplets"] == 0:
            harder = HARDER.get(self.mining, ', or train with MINING = "batch_hard"')
            self._say(
                "nothing active",
                f"Epoch {epoch + 1}: no triplet had a loss, so nothing is learnt any more. Unless the validation "
                f"accuracy is as good as you need, raise MARGIN{harder}.",
            )

    def _say(self, what, sentence):
        if what not in self.said:
            self.said.append(what)
            print(f"\n{sentence}")

    def state(self):
        """What a checkpoint keeps."""
        return {"said": list(self.said), "stuck_steps": self.stuck_steps, "steps": self.steps}

    def set_state(self, state):
        """Goes on from what a checkpoint kept."""
        self.said, self.stuck_steps, self.steps = list(state["said"]), state["stuck_steps"], state["steps"]


class TimeEstimate(keras.callbacks.Callback):
    """Says after the first steps how long training will take, without the validation after each epoch.

    Args:
        batches: `Batches` that are trained on.
        warm_up: int, first steps that are not counted: compilation, and pipelines that fill.
        seconds: float, how long to measure at least, or to the epoch's last batch.
    """

    def __init__(self, batches, warm_up=3, seconds=5.0):
        super().__init__()
        self.batches, self.warm_up, self.seconds = batches, warm_up, seconds
        self.steps, self.measured, self.began, self.said = 0, 0, 0.0, False

    def on_epoch_begin(self, epoch, logs=None):
        self.measured, self.began = 0, time.perf_counter()  # again, without what came after the epoch before

    def on_train_batch_end(self, batch, logs=None):
        if self.said:
            return
        float((logs or {}).get("loss", 0))  # waits for the device, which runs behind
        self.steps += 1
        if self.steps <= self.warm_up:
            self.began = time.perf_counter()
            return
        self.measured += 1
        if time.perf_counter() - self.began >= self.seconds or batch + 1 == len(self.batches):
            each = (time.perf_counter() - self.began) / self.measured
            whole = self.batches.first_batch + len(self.batches)
            left = len(self.batches) - batch - 1 + whole * (self.params["epochs"] - self.batches.epoch - 1)
            print(f"\n{duration(left * each)} of training to go, at {each:.2g} s a step")
            self.said = True


def duration(seconds):
    """A time in words that tell no more than is known: 45 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
