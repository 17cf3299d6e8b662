"""One way of predicting classes, and how well it does: the triplet loss, and what it is compared with."""

from typing import NamedTuple

import numpy as np

from pipeline.data.splits import DataSet
from pipeline.neighbour_scores import Evaluation, evaluate, retrieval_scores

TRIPLET_LOSS = "triplet loss"


class Method(NamedTuple):
    """How well a method does.

    Attributes:
        known: dict of the scores of the test images, with `accuracy`; those of `Evaluation` if the nearest neighbours
            vote. Empty without test images.
        unseen: dict of the scores of held-out classes among themselves (see `retrieval_scores`); may be empty.
        correct: bool, shape `(n,)`: whether each test image's class is predicted or, without test images, whether the
            nearest other image of each held-out image is of its class.
    """

    known: dict[str, float]
    unseen: dict[str, float]
    correct: np.ndarray


def by_neighbours(features: dict[str, np.ndarray], data: DataSet, neighbours: int) -> tuple[Method, Evaluation | None]:
    """Predicts the test images' classes by the vote of the nearest training images, and compares held-out images.

    Args:
        features: the features of the parts `"train"`, `"test"` and `"held_out"` of the data set, each of shape
            `(n, size)`. Parts without images are not needed.
        data: `DataSet`; `test` or `held_out` may be empty, not both.
        neighbours: int, how many training images vote.

    Returns:
        Tuple of `Method` and the `Evaluation` of the test images, None without any.
    """
    evaluation, unseen, correct = None, {}, np.zeros(0, bool)
    if len(data.held_out.labels):
        correct, unseen = retrieval_scores(features["held_out"], data.held_out.labels)
    if len(data.test.labels):
        references = features["train"], data.train.labels
        evaluation = evaluate(*references, features["test"], data.test.labels, neighbours)
        correct = evaluation.predicted == data.test.labels
    return Method(evaluation.scores if evaluation else {}, unseen, correct), evaluation
