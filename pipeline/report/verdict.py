"""Whether triplet loss beat what it is compared with, and how sure that is."""

from typing import NamedTuple

import numpy as np

DRAWS = 10_000
# Images on which two methods differ, below which no difference is believed: if each were as likely to favour one method
# as the other, five would all favour the same one with a probability of 6%, six with 3%.
FEWEST_DIFFERENT = 6


class Verdict(NamedTuple):
    """The comparison with the best of the other methods.

    Attributes:
        sentence: str.
        best_other: str, the method.
        difference: float between -1 and 1, how much better triplet loss is.
        interval: 95% interval of the difference.
    """

    sentence: str
    best_other: str
    difference: float
    interval: tuple[float, float]


def interval(values: np.ndarray, seed: int) -> tuple[float, float]:
    """95% interval of a mean by the bootstrap (Efron and Tibshirani 1993, section 13.3, percentiles).

    The images are taken as independent. If several show one object, the interval is too narrow.

    Args:
        values: one for each image, of few different values, shape `(n,)`.
        seed: int, of the 10,000 draws.

    Returns:
        Tuple of the lowest and the highest value.
    """
    # Drawing n images with replacement is a multinomial draw of how often each value comes.
    different, counts = np.unique(values.astype("float64"), return_counts=True)
    drawn = np.random.default_rng((seed, 5)).multinomial(len(values), counts / len(values), DRAWS)
    low, high = np.percentile(drawn @ different / len(values), (2.5, 97.5))
    return float(low), float(high)


def accuracy_interval(correct: np.ndarray, seed: int) -> tuple[float, float]:
    """95% interval of the fraction of images that a method is right about.

    The bootstrap; or, if it is right about all images or none, of which the bootstrap would be sure, the exact interval
    (Clopper and Pearson 1934).

    Args:
        correct: bool, one for each image, shape `(n,)`.
        seed: int.
    """
    fewest = 0.025 ** (1 / len(correct))
    if correct.all():
        return fewest, 1.0
    return interval(correct, seed) if correct.any() else (0.0, 1 - fewest)


def verdict(correct: dict[str, np.ndarray], score: str, seed: int) -> Verdict:
    """Compares triplet loss with the best of the other methods, on the same images.

    Args:
        correct: dict from the methods to bool of shape `(n,)`, whether they are right about each image; the last one is
            triplet loss.
        score: str, the name of the mean of these values.
        seed: int.

    Returns:
        `Verdict`.
    """
    *others, ours = correct
    best = max(others, key=lambda name: correct[name].mean())
    differences = correct[ours].astype(int) - correct[best]
    low, high = interval(differences, seed)
    difference, count = float(differences.mean()), len(differences)
    certain = np.count_nonzero(differences) >= FEWEST_DIFFERENT
    width = f"95% interval {100 * low:.1f} to {100 * high:.1f}"
    if certain and low > 0:
        text = f"{ours} beat the best of the others, {best}, by {_points(difference, score)} ({width})."
    elif certain and high < 0:
        text = f"{ours} did not beat {best}, which is better by {_points(-difference, score)} "
        text += f"(95% interval {-100 * high:.1f} to {-100 * low:.1f})."
    elif not differences.any():
        text = f"{ours} and the best of the others, {best}, are right about the same test images, "
        text += f"{correct[ours].sum():,} of {count:,}: there is no difference."
    else:
        text = f"{count:,} test images are too few to tell {ours} from the best of the others, {best}: "
        text += f"the difference is {_points(difference, score)} ({width})."
    return Verdict(text[0].upper() + text[1:], best, difference, (low, high))


def _points(difference, score):
    return f"{100 * difference:.1f} percentage points of {score}"
