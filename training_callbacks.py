"""What happens beside the training steps: new batches for each epoch, and a nearest-neighbour check after it."""

import keras
import numpy as np

from command_line import InputError
from nearest_neighbours import predict_classes


class NewEpoch(keras.callbacks.Callback):
    """Has `Batches` make the plan of the epoch that begins, also when training goes on in a later one."""

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def on_epoch_begin(self, epoch, logs=None):
        self.batches.start_epoch(epoch)


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
        folder: `pathlib.Path` of the folder to write `best.weights.h5` into.
    """

    def __init__(self, embedding_model, embed, references, validation, neighbours, folder):
        super().__init__()
        self.embedding_model, self.embed = embedding_model, embed
        self.references, self.validation = references, validation
        self.neighbours = min(neighbours, len(references.labels))
        self.best_weights, self.best_accuracy = folder / "best.weights.h5", None

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
            self.embedding_model.save_weights(self.best_weights)

    def load_best_weights(self):
        """Gives the model the best epoch's weights.

        Raises:
            InputError: if no epoch ended in finite embeddings.
        """
        if self.best_accuracy is None:
            raise InputError("`LEARNING_RATE` must be lower: no epoch ended in finite embeddings.")
        self.embedding_model.load_weights(self.best_weights)
