"""A linear classifier on features, with a limit on its time: predictions, and labels that it does not believe."""

import time
import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold
from sklearn.preprocessing import StandardScaler

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # C, the inverse of the regularisation; the strongest first
STEPS_AT_ONCE = 25  # between looks at the clock
FOLDS = 5
DOUBTED = 0.2  # of the probability of guessing, 1 / classes, below which a label is doubted


def linear_predictions(
    train: np.ndarray,
    train_labels: np.ndarray,
    validation: np.ndarray,
    validation_labels: np.ndarray,
    queries: np.ndarray,
    seconds: float,
) -> tuple[np.ndarray, float, int] | None:
    """Predicts classes by scikit-learn's LogisticRegression on standardised features.

    Of six strengths of its regularisation, the one with the highest accuracy on the validation images is used; of equal
    ones the strongest.

    Args:
        train: features of the training images, shape `(n_train, size)`.
        train_labels: integers, shape `(n_train,)`.
        validation: features of the validation images, shape `(n_validation, size)`.
        validation_labels: integers, shape `(n_validation,)`.
        queries: features of the images to predict, shape `(n_queries, size)`.
        seconds: float, how long it may take.

    Returns:
        Tuple of classes, shape `(n_queries,)`, the strength whose probabilities are best (with the highest likelihood
        of the validation labels), and the number of strengths that there was time for; None if it is 0.
    """
    scaler = StandardScaler().fit(train)
    train, validation, queries = (scaler.transform(each) for each in (train, validation, queries))
    end, predicted, scores = time.monotonic() + seconds, {}, {}
    model = LogisticRegression(max_iter=STEPS_AT_ONCE, warm_start=True)
    for model.C in STRENGTHS:
        if not _fit(model, train, train_labels, end):
            break
        of_labels = model.predict_log_proba(validation)[np.arange(len(validation)), _places(model, validation_labels)]
        accuracy = np.mean(model.predict(validation) == validation_labels)
        predicted[model.C], scores[model.C] = model.predict(queries), (accuracy, of_labels.mean())
        if time.monotonic() > end:
            break
    if not scores:
        return None
    accurate, likely = (max(scores, key=lambda strength: scores[strength][number]) for number in (0, 1))
    return predicted[accurate], likely, len(scores)


def doubted_labels(
    features: np.ndarray, labels: np.ndarray, strength: float, seed: int, seconds: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Finds labels that are doubtful, by the probabilities that a model gives to images it was not fitted to.

    Each fifth of the images is predicted by logistic regression on the others (see Northcutt, Jiang and Chuang 2021,
    "Confident Learning", section 2). A label is doubted if its probability is below a fifth of that of guessing.

    Args:
        features: shape `(n, size)`.
        labels: integers from 0, shape `(n,)`.
        strength: float, `C` of scikit-learn's LogisticRegression.
        seed: int, of the folds.
        seconds: float, how long it may take.

    Returns:
        Tuple of the indices of these images, the least probable label first, the classes that are more probable, and
        the probabilities of the labels, each of shape `(doubted,)`; None if it takes longer.
    """
    features, end = StandardScaler().fit_transform(features), time.monotonic() + seconds
    probabilities = np.zeros((len(labels), labels.max() + 1), "float32")
    for train, queries in KFold(FOLDS, shuffle=True, random_state=seed).split(features):
        model = LogisticRegression(C=strength, max_iter=STEPS_AT_ONCE, warm_start=True)
        is_late = time.monotonic() > end
        if is_late or len(np.unique(labels[train])) < 2 or not _fit(model, features[train], labels[train], end):
            return None
        probabilities[np.ix_(queries, model.classes_)] = model.predict_proba(features[queries])
    own = probabilities[np.arange(len(labels)), labels]  # shape (n,)
    doubted = np.flatnonzero(own < DOUBTED / probabilities.shape[1])
    doubted = doubted[own[doubted].argsort(kind="stable")]
    return doubted, probabilities[doubted].argmax(axis=1), own[doubted]


def _places(model, labels):
    """Where the probabilities of labels are among those of a fitted model, which has seen all of these labels."""
    return np.searchsorted(model.classes_, labels)


def _fit(model, features, labels, end):
    """Fits a model that continues where it was; whether it is done before the time `end`."""
    while True:
        with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
            model.fit(features, labels)
        if model.n_iter_.max() < STEPS_AT_ONCE:
            return True
        if time.monotonic() > end:
            return False
