"""Warnings about training that goes wrong in a way its user can correct."""

import keras

# What helps besides a lower learning rate (collapse) or a larger margin (no active triplet), for each mining.
EASIER = {"batch_hard": ', or use MINING = "semi_hard" or "batch_all"'}
HARDER = {"batch_hard": "", "merge": ', or use TRIPLET_LOSS = "in_batch"'}


class TrainingAlarms(keras.callbacks.Callback):
    """Prints each of these warnings at most once:

    - Collapse: all embeddings are near one point, and the loss stays at its margin.
    - Stuck at the margin without collapse: positives are as far from the anchor as negatives, on average over an epoch,
      or over several short ones; from random weights the first dozens of steps of healthy training look the same.
    - No active triplet in a whole epoch: nothing is left to learn.

    The statistics are those of the training batches. Those of `predict` would raise false alarms: from random weights,
    the moving statistics of batch normalisation lag behind in the first epochs.

    Args:
        margin: float, of the loss; with a difference below a tenth of it between the mean distances to negatives and to
            positives, an epoch counts as stuck.
        mining: str, of the loss, or `"merge"`; the advice depends on it.
        least_distance: float, mean squared distance to negatives, below which the embeddings have collapsed; unit
            vectors in random directions are 2 apart.
        patience: int, how many steps in successive epochs make training count as stuck.
    """

    def __init__(self, margin: float, mining: str, least_distance: float = 0.1, patience: int = 64):
        super().__init__()
        self.margin, self.mining, self.least_distance, self.patience = margin, mining, least_distance, patience
        self.raised, self.stuck_steps, self.steps = [], 0, 0

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1  # of the epoch, with those before an interruption

    def on_epoch_end(self, epoch, logs):
        stuck = logs["negative_distance"] - logs["positive_distance"] < 0.1 * self.margin
        self.stuck_steps, self.steps = self.stuck_steps + self.steps if stuck else 0, 0
        if logs["negative_distance"] < self.least_distance:
            self._warn(
                "collapse",
                f"epoch {epoch + 1}: collapse, all embeddings are near one point (mean squared distance to negatives "
                f"{logs['negative_distance']:.1g}). Lower LEARNING_RATE{EASIER.get(self.mining, '')}.",
            )
        elif self.stuck_steps >= self.patience:
            self._warn(
                "stuck",
                f"epoch {epoch + 1}: the loss is stuck at its margin. Images of one class are as far apart "
                f"({logs['positive_distance']:.2g}) as images of different classes ({logs['negative_distance']:.2g}). "
                "Lower LEARNING_RATE, or check that the images are in the right class folders.",
            )
        elif logs["active_triplets"] == 0:
            harder = HARDER.get(self.mining, ', or use MINING = "batch_hard"')
            self._warn(
                "no active triplet",
                f"epoch {epoch + 1}: no triplet is active, so nothing is left to learn. If the validation "
                f"accuracy is too low, raise MARGIN{harder}.",
            )

    def _warn(self, alarm, sentence):
        if alarm not in self.raised:
            self.raised.append(alarm)
            print(f"\nWarning: {sentence}")

    def state(self) -> dict:
        """What a checkpoint stores."""
        return {"raised": list(self.raised), "stuck_steps": self.stuck_steps, "steps": self.steps}

    def set_state(self, state: dict) -> None:
        """Restores what a checkpoint stored."""
        self.raised, self.stuck_steps, self.steps = list(state["raised"]), state["stuck_steps"], state["steps"]
