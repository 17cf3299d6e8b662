"""A linear classifier on features, with a limit on its time."""

import time
import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # C, the inverse of the regularisation; the strongest first
STEPS_AT_ONCE = 25  # between looks at the clock


def linear_predictions(
    train: np.ndarray,
    train_labels: np.ndarray,
    validation: np.ndarray,
    validation_labels: np.ndarray,
    queries: np.ndarray,
    seconds: float,
) -> tuple[np.ndarray, int] | None:
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
        Tuple of classes, shape `(n_queries,)`, and the number of strengths that there was time for; None if it is 0.
    """
    scaler = StandardScaler().fit(train)
    train, validation, queries = (scaler.transform(each) for each in (train, validation, queries))
    end, best, result = time.monotonic() + seconds, -1.0, None
    model = LogisticRegression(max_iter=STEPS_AT_ONCE, warm_start=True)
    for tried, model.C in enumerate(STRENGTHS, 1):
        while True:
            with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
                model.fit(train, train_labels)
            if model.n_iter_.max() < STEPS_AT_ONCE:
                break
            if time.monotonic() > end:
                return result
        accuracy = float(np.mean(model.predict(validation) == validation_labels))
        if accuracy > best:
            best, predicted = accuracy, model.predict(queries)
        result = predicted, tried
        if time.monotonic() > end:
            break
    return result
