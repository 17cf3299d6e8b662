"""How good the answers of a classifier are on labelled images."""

from collections import Counter

import numpy as np

from pipeline.classifier import UNKNOWN, Classifier
from pipeline.data.image_list import TEST, ImageList, in_lines, shortened
from pipeline.errors import InputError
from pipeline.neighbours import evaluate, nearest
from pipeline.report.class_labels import display_width, table_names
from pipeline.report.results import unknown_scores
from pipeline.report.scores import class_report, table

SAME = 1e-3  # distance below which two images are equal but for rounding errors
MOST_CLASSES, MOST_CONFUSIONS = 15, 20  # of which a confusion matrix fits into a terminal; otherwise pairs are listed


def print_check(classifier: Classifier, listed: ImageList) -> list[str]:
    """Prints the scores of labelled images, per class too, and how well unknown images are told from known ones.

    Args:
        classifier: `Classifier`.
        listed: labelled images; if they are split, those for testing are used.

    Returns:
        A sentence for each image that could not be read.

    Raises:
        InputError: if there are no images, or none can be read.
    """
    chosen = [index for index, part in enumerate(listed.parts) if part == TEST or TEST not in listed.parts]
    if listed.problems or not chosen:
        raise InputError(
            f"`--check` must name labelled images that can be used. Received: {listed.source}"
            + in_lines(listed.problems or ["no images"])
        )
    if len(chosen) < len(listed.paths):
        print(f"Of {listed.source}, only the {len(chosen):,} test images are used.")
    label_of = {listed.paths[index]: listed.labels[index] for index in chosen}
    embeddings, paths, wrong = classifier.embed([listed.paths[index] for index in chosen])
    unread = [f"{path}: {error}" for path, error in wrong]
    if not paths:
        raise InputError(f"`--check` must name images that can be read. Received: {listed.source}{in_lines(unread)}")

    references, names = classifier.references, classifier.references.class_names
    numbers = {name: number for number, name in enumerate(names)}
    labels = np.array([numbers.get(listed.class_names[label_of[path]], -1) for path in paths])
    known = labels >= 0
    distances = nearest(references.embeddings, embeddings, 1)[0][:, 0]
    is_unknown = distances > references.threshold
    print(f"Images: {len(labels):,}, of them {known.sum():,} of classes that the run knows")
    others = sorted(
        {listed.class_names[label_of[path]] for path, is_known in zip(paths, known, strict=True) if not is_known}
    )
    equal = int(np.sum(distances < SAME))
    if equal:
        print(
            f"Warning: {equal:,} images are among the references, or nearly equal to one, so the scores are too good."
        )
    if others:
        print(f"Classes that the run does not know: {len(others):,}, {shortened(others)}")
    print()
    if known.any():
        search = references.embeddings, references.labels, embeddings[known], labels[known], classifier.neighbours
        predicted, scores = evaluate(*search)
        answers = np.where(is_unknown[known], len(names), predicted)
        print(class_report(labels[known], predicted, names, "If no image is called unknown")[0])
        print(_confusions(labels[known], answers, [*table_names(names), UNKNOWN]))
        print(table(scores, {"without unknown": [f"{value:.4f}" for value in scores.values()]}))
        print(f"Accuracy, if those that are called unknown count as wrong: {np.mean(answers == labels[known]):.4f}")
    else:
        print("No known classes in the test.\n")
    unknown = unknown_scores(distances[known], distances[~known], references.threshold)
    for name, text in {
        "known rejected": "Known images that are called unknown",
        "unknown rejected": "Unknown images that are called unknown",
        "AUROC": "AUROC of the distance to the nearest reference, unknown against known images",
    }.items():
        if name in unknown:
            print(f"{text}: {unknown[name]:.4f}")
    return unread


def _confusions(labels, answers, names):
    """The confusion matrix of few classes as text, or the most frequent confusions of many."""
    counts = Counter(zip(labels.tolist(), answers.tolist(), strict=True))
    if len(names) > MOST_CLASSES:
        wrong = [(pair, count) for pair, count in counts.most_common() if pair[0] != pair[1]][:MOST_CONFUSIONS]
        lines = [f"{count:>6}  {names[row]} → {names[column]}" for (row, column), count in wrong]
        return "\n".join(["The most frequent confusions: true class → answer", *lines]) + "\n"
    widths = [max(map(display_width, names)) + 2, *(max(6, display_width(name) + 1) for name in names)]

    def line(title, cells):
        texts = [title + " " * (widths[0] - display_width(title))]
        texts += [" " * (width - display_width(cell)) + cell for width, cell in zip(widths[1:], cells, strict=True)]
        return "".join(texts)

    lines = [
        line(name, [str(counts[row, column]) for column in range(len(names))]) for row, name in enumerate(names[:-1])
    ]
    return "\n".join(["Rows: the true class; columns: the answer", line("", names), *lines]) + "\n"
