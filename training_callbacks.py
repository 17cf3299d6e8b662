"""What happens beside the training steps: new batches for each epoch, and a nearest-neighbour check after it."""

import keras
import numpy as np

from command_line import InputError
from nearest_neighbours import predict_classes
from run_folder import write_whole


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
            self.best_weights = self.embedding_model.get_weights()

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
