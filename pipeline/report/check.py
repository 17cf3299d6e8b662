"""How good the answers of a classifier are on labelled images."""

import os
from collections import Counter

import numpy as np
from sklearn.metrics import precision_recall_fscore_support

from pipeline.classifier import Classifier
from pipeline.data.csv_files import list_csv
from pipeline.data.folders import list_folder
from pipeline.data.image_list import TEST, in_lines, shortened
from pipeline.data.pixels import image_suffixes
from pipeline.errors import InputError
from pipeline.neighbour_scores import evaluate
from pipeline.neighbours import nearest, vote
from pipeline.references import UNKNOWN
from pipeline.report.class_labels import display_width, table_names
from pipeline.report.results import unknown_scores
from pipeline.report.tables import MEASURES, sample_of_map, table

SAME = 1e-3  # distance below which two images are equal but for rounding errors
MOST_CLASSES, MOST_CONFUSIONS = 15, 20  # of which a confusion matrix fits into a terminal; otherwise pairs are listed


def print_check(classifier: Classifier, path: str) -> list[str]:
    """Prints the scores of labelled images, per class too, and how well unknown images are told from known ones.

    Args:
        classifier: `Classifier`.
        path: path of a folder or a CSV file of labelled images; if they are split, those for testing are used.

    Returns:
        A sentence for each image that could not be read.

    Raises:
        InputError: if there are no images, or none can be read.
    """
    try:
        listed = list_csv(path) if os.path.isfile(path) else list_folder(path, image_suffixes())
    except InputError as error:  # which names the constant for which such a folder is meant
        raise InputError(str(error).replace("`DATASET`", "`--check`")) from error
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
    found, indices = nearest(references.embeddings, embeddings, classifier.neighbours)
    answers, _ = vote(found, references.labels[indices], classifier.counts)
    distances = found[:, 0]
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
        print(f"Classes that the run does not know ({len(others):,}): {shortened(others)}")
    print()
    labels[~known] = len(names)
    answers[distances > references.threshold] = len(names)
    print(_confusions(labels, answers, [*table_names(names), UNKNOWN]))
    if known.any():
        of_known = embeddings[known], labels[known], classifier.neighbours
        predicted, _, _, scores = evaluate(references.embeddings, references.labels, *of_known)
        print(_of_classes(labels[known], predicted, table_names(names)))
        print(table(list(scores), {"without unknown": [f"{value:.4f}" for value in scores.values()]}))
        print(sample_of_map(len(references.labels), int(known.sum()), "images of known classes"), end="")
        print(
            f"Accuracy, if those that are called unknown count as wrong: {np.mean(answers[known] == labels[known]):.4f}"
        )
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


def _of_classes(labels, predicted, names):
    """Precision, recall and f1-score of the classes that have images, if no image is called unknown."""
    present = np.unique(labels)
    of_present = {"labels": present, "zero_division": 0}
    measures = zip(*precision_recall_fscore_support(labels, predicted, **of_present), strict=True)
    rows = {
        names[label]: [*(f"{value:.4f}" for value in values), str(support)]
        for label, (*values, support) in zip(present, measures, strict=True)
    }
    *means, _ = precision_recall_fscore_support(labels, predicted, **of_present, average="macro")
    rows["macro avg"] = [*(f"{value:.4f}" for value in means), str(len(labels))]
    return "Images of known classes, if none is called unknown, per class\n\n" + table(MEASURES, rows)


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

    rows = sorted({row for row, _ in counts})  # the last one has the images of classes that the run does not know
    lines = [line(names[row], [str(counts[row, column]) for column in range(len(names))]) for row in rows]
    return "\n".join(["Rows: the true class; columns: the answer", line("", names), *lines]) + "\n"
