"""Embeddings as files for other tools: a CSV table, and the files of TensorBoard's projector."""

import csv
import io
from pathlib import Path

import numpy as np

from pipeline import files
from pipeline.data.image_list import printable
from pipeline.data.splits import DataSet
from pipeline.report.results import Results

TABLE, METADATA, TENSORS, CONFIGURATION = FILES = (
    "embeddings.csv",
    "metadata.tsv",
    "tensors.tsv",
    "projector_config.pbtxt",
)
COLUMNS = ("path", "label", "split", "prediction", "x", "y")
PROJECTOR = f'embeddings {{\n  tensor_path: "{TENSORS}"\n  metadata_path: "{METADATA}"\n}}\n'


def write_embeddings(folder: Path, data: DataSet, results: Results, places: np.ndarray, numbers: np.ndarray) -> None:
    """Writes `embeddings.csv`, and `tensors.tsv` and `metadata.tsv` for TensorBoard's projector.

    Each has one row for each training and test image. `tensorboard --logdir RUN_FOLDER` shows the embeddings.

    Args:
        folder: path of the run folder.
        data: `DataSet`.
        results: `Results`.
        places: of some test images on the map, shape `(n, 2)`; the columns `x` and `y` of the others are empty.
        numbers: which test images they are, shape `(n,)`; without any test images, held-out images.

    Raises:
        InputError: if a file cannot be written.
    """
    part, names = "test" if len(data.test.labels) else "held_out", data.class_names + data.held_out_names
    on_map = {int(number): place for number, place in zip(numbers, places.round(4).tolist(), strict=False)}
    train, shown = data.train, getattr(data, part)
    rows = [(train.name_of(number), names[label], "train", "", "", "") for number, label in enumerate(train.labels)]
    for number, label in enumerate(shown.labels):
        predicted = names[results.predicted[number]] if len(results.predicted) else ""
        rows.append((shown.name_of(number), names[label], part, predicted, *on_map.get(number, ("", ""))))
    embeddings = np.concatenate([results.references, results.embeddings])
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    files.write_text(folder / TABLE, file.getvalue())
    cells = [COLUMNS[:4], *(row[:4] for row in rows)]  # not quoted: the projector divides at tabs alone
    files.write_text(folder / METADATA, "".join("\t".join(map(printable, row)) + "\n" for row in cells))
    files.write_text(folder / TENSORS, "".join("\t".join(map(str, row)) + "\n" for row in embeddings.round(6).tolist()))
    files.write_text(folder / CONFIGURATION, PROJECTOR)
