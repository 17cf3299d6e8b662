"""Embeddings as files, read back with the CSV reader."""

import csv

import numpy as np
import pytest

from pipeline.data.splits import DataSet, Images
from pipeline.report.embedding_files import write_embeddings
from pipeline.report.results import Results


def images(part, labels, named=True):
    names = np.array([f'{part}/a,"{number}\t.png' for number in range(len(labels))], object) if named else None
    return Images(np.zeros((len(labels), 3, 2, 2), "uint8"), np.array(labels, "int32"), names)


def read(path, delimiter):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file, delimiter=delimiter))


@pytest.mark.parametrize("tested", [True, False])
@pytest.mark.parametrize("named", [True, False])
def test_each_row_has_its_image_and_its_embedding(tested, named, tmp_path):
    train, shown = images("train", [0, 1, 1], named), images("test", [1, 0] if tested else [2, 2], named)
    none = images("x", [])
    parts = (train, none, shown, none) if tested else (train, none, none, shown)
    data = DataSet(*parts, ["ä", "b"], [] if tested else ["c"])
    vectors = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    predicted = np.array([1, 1] if tested else [], int)
    results = Results(vectors[:3], vectors[3:], predicted, *[None] * 7)
    write_embeddings(tmp_path, data, results, np.array([[0.5, -2.0]]), np.array([1]))
    header, *rows = read(tmp_path / "embeddings.csv", ",")
    assert header == ["path", "label", "split", "prediction", "x", "y"]
    assert [row[1:] for row in rows] == [
        ["ä", "train", "", "", ""],
        ["b", "train", "", "", ""],
        ["b", "train", "", "", ""],
        *([["b", "test", "b", "", ""], ["ä", "test", "b", "0.5", "-2.0"]] if tested else []),
        *([] if tested else [["c", "held_out", "", "", ""], ["c", "held_out", "", "0.5", "-2.0"]]),
    ]
    assert rows[1][0] == ('train/a,"1\t.png' if named else "image 1")
    metadata = [line.split("\t") for line in (tmp_path / "metadata.tsv").read_text(encoding="utf-8").splitlines()]
    assert metadata == [[cell.replace("\t", "\\t") for cell in row[:4]] for row in [header, *rows]]
    tensors = np.array(read(tmp_path / "tensors.tsv", "\t"), float)
    np.testing.assert_allclose(tensors, vectors, atol=1e-6)
