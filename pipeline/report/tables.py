"""Tables of scores as text: of classes, and others."""

import numpy as np
from sklearn.metrics import precision_recall_fscore_support

from pipeline.neighbour_scores import queries_of_map
from pipeline.report.class_labels import display_width, table_names

MEASURES = ("precision", "recall", "f1-score", "support")
SCORES = ("accuracy", "95% interval", "recall@1", "recall@5", "recall@10", "MAP@R")
MOST, WORST = 30, 20  # with more than MOST classes, the WORST of them are printed


def class_report(
    labels: np.ndarray, predicted: np.ndarray, class_names: list[str], title: str
) -> tuple[str, str, list[dict[str, float]]]:
    """Precision, recall and f1-score of each class.

    Args:
        labels: integers, shape `(n,)`.
        predicted: integers, shape `(n,)`.
        class_names: list of str.
        title: str, the start of the text.

    Returns:
        Tuple of the text, a shorter text if there are many classes, and a dict of the measures for each class.
    """
    of_classes = {"labels": range(len(class_names)), "zero_division": 0}
    measures = precision_recall_fscore_support(labels, predicted, **of_classes)
    per_class = [dict(zip(MEASURES, map(float, values), strict=True)) for values in zip(*measures, strict=True)]
    totals = {"accuracy": ["", "", f"{np.mean(labels == predicted):.4f}", f"{len(labels)}"]}
    of_tested = of_classes | {"labels": np.unique(labels)}  # the others have no recall
    for average in ("macro", "weighted"):
        *values, _ = precision_recall_fscore_support(labels, predicted, **of_tested, average=average)
        totals[f"{average} avg"] = [*(f"{value:.4f}" for value in values), f"{len(labels)}"]
    text = f"{title}, per class\n\n" + _class_table(class_names, per_class, range(len(class_names)), totals)
    if len(class_names) <= MOST:
        return text, text, per_class
    tested = [number for number, values in enumerate(per_class) if values["support"]]
    order = sorted(tested, key=lambda number: (per_class[number]["f1-score"], class_names[number]))
    worst, others = order[:WORST], len(order[WORST:])
    printed = f"{title}, the {len(worst)} classes with the lowest f1-score\n\n"
    printed += _class_table(class_names, per_class, worst, totals)
    printed += f"{others} other classes are not shown; report.txt and report.json in the run folder have all.\n"
    if len(tested) < len(class_names):
        printed += f"Classes without a test image: {len(class_names) - len(tested)}.\n"
    return text, printed + "\n", per_class


def _class_table(class_names, per_class, numbers, totals):
    """The measures of some classes, and those of all images."""
    rows, names = {}, table_names(class_names)
    for number in numbers:
        *values, support = per_class[number].values()
        rows[names[number]] = [*(f"{value:.4f}" for value in values), f"{support:.0f}"]
    width = max([16, *map(display_width, rows)])
    return table(MEASURES, rows, width) + "\n" + table(None, totals, width) + "\n"


def table(header: list[str] | None, rows: dict[str, list[str]], width: int = 16) -> str:
    """A table as text: names in a column at least `width` wide, then one column for each value.

    Args:
        header: names of the columns of values; None without a header.
        rows: dict from the name of a row to its values.
        width: int, of the first column.
    """
    width = max([width, *(display_width(name) + 1 for name in rows)])
    values = [*([header] if header is not None else []), *rows.values()]
    widths = [max(11, *(len(each) + 2 for each in column)) for column in zip(*values, strict=True)]
    lines = [] if header is None else [" " * width + _cells(header, widths)]
    lines += [name + " " * (width - display_width(name)) + _cells(each, widths) for name, each in rows.items()]
    return "\n".join(lines) + "\n"


def score_rows(methods: dict[str, dict]) -> tuple[list[str], dict[str, list[str]]]:
    """The scores of several methods as text, those that none has left out.

    Args:
        methods: dict from names of methods to dicts from names of scores to a fraction or an interval.

    Returns:
        Tuple of the names of the columns and a dict from the name of a method to its values, a dash for a missing one.
    """
    columns = [name for name in SCORES if any(name in scores for scores in methods.values())]
    return columns, {name: [_score(scores.get(column)) for column in columns] for name, scores in methods.items()}


def sample_of_map(references: int, queries: int, what: str) -> str:
    """A line that says on how many images MAP@R is measured, if not on all; or else `""`.

    Args:
        references: int, how many there are.
        queries: int, how many images are compared with them.
        what: str, these images.
    """
    count = queries_of_map(references, queries)
    return f"MAP@R is that of {count:,} {what}, drawn at random: all {queries:,} would take too long.\n" * (
        count < queries
    )


def _score(value):
    if value is None:
        return "–"
    return f"{value:.4f}" if isinstance(value, float) else "{:.3f} to {:.3f}".format(*value)


def _cells(values, widths):
    return "".join(f"{value:>{width}}" for value, width in zip(values, widths, strict=True))
