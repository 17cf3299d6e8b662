"""The scores of a run as tables and as JSON, and what is wrong with them."""

import json
import math
import textwrap
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.data.image_list import shortened
from pipeline.data.splits import DataSet
from pipeline.report.audit import duplicated_in_test
from pipeline.report.controls import CROSS_ENTROPY, Controls
from pipeline.report.methods import TRIPLET_LOSS
from pipeline.report.results import Results
from pipeline.report.tables import class_report, sample_of_map, score_rows, table
from pipeline.report.verdict import accuracy_interval, verdict

# Of the mean squared distance between embeddings, which is 2 for vectors in random directions. Where it is smaller, two
# random images are 30 times nearer than the default MARGIN separates classes, and the nearest ones nearly arbitrary.
SMALLEST_SPREAD = 0.01
# Of the mean squared distance from anchor to negatives in the training batches, which is near 0 after a collapse.
HEALTHY_DISTANCE = 0.1


def print_report(
    folder: Path,
    data: DataSet,
    controls: Controls,
    results: Results,
    neighbours: int,
    rate: float,
    seed: int,
    warnings: list[str],
) -> tuple[str, dict[str, Any]]:
    """Prints the scores, and writes them to `report.json` in the run folder.

    Of many classes, it prints only the worst. The most important, which is short, comes last: the verdict.

    Args:
        folder: path of the run folder.
        data: `DataSet`.
        controls: `Controls`.
        results: `Results`.
        neighbours: int, how many training images voted.
        rate: float, the fraction of images of known classes that may be called unknown.
        seed: int, of the intervals.
        warnings: list of str, one sentence or two each (see `prediction_warnings`).

    Returns:
        Tuple of the text with all classes and what is written to `report.json`.
    """
    tested, class_names = len(data.test.labels) > 0, data.class_names
    methods = {**controls.methods, TRIPLET_LOSS: results.method}
    everything, text, printed = {}, "", ""
    if tested:
        known = {
            name: {**each.known, "95% interval": accuracy_interval(each.correct, seed)}
            for name, each in methods.items()
        }
        text, printed, per_class = class_report(data.test.labels, results.predicted, class_names, "After training")
        everything = {**known, "classes": dict(zip(class_names, per_class, strict=True))}
    unknown = {"threshold": results.threshold, "false rejection rate": rate, **results.unknown}
    everything["unknown images"] = unknown
    unseen = {name: each.unseen for name, each in methods.items() if each.unseen}
    if len(data.held_out.labels):
        added = {
            str(count): dict(zip(("mean", "deviation"), each, strict=True)) for count, each in results.added.items()
        }
        everything["held-out classes"] = {
            "classes": data.held_out_names,
            **unseen,
            "accuracy after adding images": added,
        }
    if warnings:
        everything["warnings"] = warnings
    correct = {name: each.correct for name, each in methods.items() if len(each.correct)}
    decision = verdict(correct, "accuracy" if tested else "recall@1", seed) if correct else None
    if decision:
        everything["verdict"] = decision._asdict()

    end = _of_unknown(unknown, len(data.validation.labels)) + "\n"
    if len(data.held_out.labels):
        end += _of_held_out(data, unseen, results.added) + "\n"
    end += "".join(f"Warning: {warning}\n\n" for warning in warnings)
    if tested:
        end += f"Test images, classified by the vote of {neighbours} nearest training images, or by a classifier\n\n"
        end += table(*score_rows(known)) + "\n"
        end += sample_of_map(len(data.train.labels), len(data.test.labels), "test images")
        found = duplicated_in_test(controls.findings, len(results.predicted))
        if found.any():
            everything["near duplicates"], sentence = _without_duplicates(found, results.method.correct)
            end += sentence
    else:
        end += "No known classes in the test: the scores of the held-out classes are those of the test images.\n"
    end += "".join(f"{note}\n" for note in controls.notes)
    if CROSS_ENTROPY not in methods:
        end += "Not compared: the same network fine-tuned with cross-entropy (--control cross_entropy).\n"
    files.write_text(folder / "report.json", json.dumps(everything, indent=4) + "\n")
    end += "\n" + textwrap.fill(decision.sentence, 110) + "\n" if decision else ""
    print(f"\n{printed}{end}")
    return text + end, everything


def _without_duplicates(found, correct):
    """How many test images have near duplicates in training, and the accuracy without them; also as a sentence."""
    values = {"test images": int(found.sum())}
    text = f"{found.sum():,} test images ({found.mean():.1%}) have near duplicates in training or validation"
    if found.all():
        return values, f"{text}.\n"
    values["accuracy without them"] = float(correct[~found].mean())
    return values, f"{text};\nwithout them, the accuracy of triplet loss is {values['accuracy without them']:.4f}.\n"


def _of_unknown(unknown, validation_images):
    """When an image is called unknown, and how often that is wrong, in sentences."""
    rate = unknown["false rejection rate"]
    lines = [
        f"An image is called unknown if its nearest training image is farther than {unknown['threshold']:.4f}.",
    ]
    if validation_images < 1 / rate - 1:
        lines.append(
            f"That is the largest distance of the {validation_images:,} validation images, too few for "
            f"FALSE_REJECTION_RATE = {rate:g}:\nexpect {1 / (validation_images + 1):.2%} of images of known classes."
        )
    else:
        lines.append(f"At most {rate:.2%} of the {validation_images:,} validation images, of known classes, are.")
    if "known rejected" in unknown:
        lines.append(f"Test images of known classes that are called unknown: {unknown['known rejected']:.2%}.")
    if "unknown rejected" in unknown:
        lines.append(f"Images of held-out classes that are called unknown: {unknown['unknown rejected']:.2%}.")
    if "AUROC" in unknown:
        lines.append(f"AUROC of this distance, held-out against test images: {unknown['AUROC']:.4f}.")
    return "\n".join(lines) + "\n"


def _of_held_out(data, scores, added):
    """What is measured on held-out classes, as text."""
    classes, images = len(data.held_out_names), len(data.held_out.labels)
    if scores:
        text = (
            f"Held-out classes, never trained on: {classes:,}; their {images:,} images, each compared with all others"
        )
        text += f"\n\n{table(*score_rows(scores))}"
        text += sample_of_map(images, images, "of these images")
    else:
        text = f"Held-out classes, never trained on: {classes}, {images:,} images; recall and MAP@R need two classes.\n"
    if added:
        text += "\nHow many of them are recognised after adding images of each class to the references\n\n"
        rows = {
            f"{count} image{'s' * (count > 1)}": [f"{mean:.4f}", f"{deviation:.4f}"]
            for count, (mean, deviation) in added.items()
        }
        text += table(("mean", "deviation"), rows)
    return text


def prediction_warnings(
    results: Results, data: DataSet, rate: float, history: dict[str, list[float]], diverged: bool
) -> list[str]:
    """Reasons not to trust the predictions.

    Args:
        results: `Results`.
        data: `DataSet`.
        rate: float, the fraction of images of known classes that may be called unknown.
        history: dict from names to one value an epoch; `negative_distance` may be missing.
        diverged: bool, whether training stopped early.

    Returns:
        List of str, one sentence or two each; empty if nothing is wrong.
    """
    found = []
    if diverged:
        found.append("training diverged and stopped early; these are the best epoch's scores. Lower LEARNING_RATE.")
    # Of all pairs: the mean of |x - y|² is twice the variance; for unit vectors it equals 2 (1 - |mean|²).
    spread = 2 * float(results.references.var(axis=0, dtype="float64").sum())
    if spread < SMALLEST_SPREAD:
        if [0, *history.get("negative_distance", [])][-1] > HEALTHY_DISTANCE:
            why = (
                "in the training batches they were not, so the moving statistics of batch normalisation lag behind "
                "those of the batches: more steps (EPOCHS, or images) or pre-trained WEIGHTS help"
            )
        else:
            why = "training collapsed: a lower LEARNING_RATE helps"
        found.append(
            "the predictions and scores cannot be trusted, because the embeddings of all images are nearly equal "
            f"(mean squared distance {spread:.2g} of at most 2); {why}."
        )
    rejected, counts = results.unknown.get("known rejected", 0), (len(data.validation.labels), len(data.test.labels))
    if rejected > 0:  # and so there are test images; three standard deviations of the difference between two samples
        expected = max(rate, 1 / (counts[0] + 1))
        if rejected > expected + 3 * math.sqrt(expected * sum(1 / count for count in counts)):
            found.append(
                f"{rejected:.1%} of the test images of known classes are called unknown, though FALSE_REJECTION_RATE "
                f"is {rate:g}: the test images differ from the training and validation images."
            )
    return found


def held_out_warnings(held_out_names: list[str], trained_names: list[str]) -> list[str]:
    """A warning if the weights come from a run that has been trained on held-out classes.

    Args:
        held_out_names: list of str, the classes that are held out.
        trained_names: list of str, the classes of the run that the weights come from.

    Returns:
        List of str, empty or of one sentence.
    """
    seen = sorted(set(held_out_names) & set(trained_names))
    if not seen:
        return []
    return [
        f"the run that WEIGHTS comes from knows held-out classes ({shortened(seen)}), so their scores are not those of "
        "classes that have never been trained on."
    ]
