"""What is reported about the images and labels of a data set, and the file that lists it."""

import csv

import numpy as np
import pytest

from pipeline.data.splits import DataSet, Images
from pipeline.report import audit
from pipeline.report.audit import (
    ACROSS,
    FAR,
    LABEL,
    OTHER_LABEL,
    REPEATED,
    Finding,
    duplicated_in_test,
    find_doubted_labels,
    find_duplicates,
    find_far_images,
    print_audit,
)
from pipeline.report.controls import raw_pixels


def images(part, count, seed):
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (count, 3, 6, 6)).repeat(2, axis=2).repeat(2, axis=3).astype("uint8")
    names = np.array([f"{part}/{number}.png" for number in range(count)], object)
    return Images(pixels, np.arange(count, dtype="int32") % 3, names)


@pytest.fixture
def data():
    """Images without near duplicates; a held-out class `d`."""
    held_out = images("held_out", 4, 3)._replace(labels=np.full(4, 3, "int32"))
    parts = images("train", 30, 0), images("validation", 8, 1), images("test", 12, 2), held_out
    return DataSet(*parts, ["a", "b", "c"], ["d"])


def pixels_of(data):
    return raw_pixels([data.train, data.validation, data.test, data.held_out], None)


def copy(data, source, index, target, place):
    """Copies an image into another part, a little darker."""
    getattr(data, target).array[place] = getattr(data, source).pixels(index) * 0.9


def test_images_without_copies_have_no_near_duplicates(data):
    assert find_duplicates(pixels_of(data), data, seed=0) == ([], "")


def test_near_duplicates_are_sorted_by_what_they_mean(data):
    copy(data, "test", 3, "train", 6)  # both of class a
    copy(data, "test", 5, "validation", 2)  # both of class c
    copy(data, "test", 1, "train", 2)  # b and c
    copy(data, "train", 10, "train", 13)  # both of class b
    copy(data, "held_out", 0, "train", 0)  # d and a
    copy(data, "validation", 4, "train", 16)  # both of class b
    found, note = find_duplicates(pixels_of(data), data, seed=0)
    assert note == "" and {each[:6] for each in found} == {
        (ACROSS, "test", 3, "train", 6, 0),
        (ACROSS, "test", 5, "validation", 2, 2),
        (OTHER_LABEL, "test", 1, "train", 2, 2),
        (REPEATED, "train", 10, "train", 13, 1),
        (OTHER_LABEL, "held_out", 0, "train", 0, 0),
        (ACROSS, "validation", 4, "train", 16, 1),
    }
    assert np.flatnonzero(duplicated_in_test(found, 12)).tolist() == [1, 3, 5]


def test_of_very_many_images_a_sample_for_training_and_all_others_are_searched_for_near_duplicates(data, monkeypatch):
    copies = [("test", 3, 6), ("validation", 4, 16), *(("train", 10 + number, 20 + number) for number in range(6))]
    for part, index, place in copies:
        copy(data, part, index, "train", place)
    pixels = pixels_of(data)
    everything, _ = find_duplicates(pixels, data, seed=0)
    assert len(everything) == len(copies)
    for sample in (1, 5, 20):
        monkeypatch.setattr(audit, "MOST_NUMBERS", sample * 54 * 128)
        found, note = find_duplicates(pixels, data, seed=0)
        assert f"{sample} of 30 training images" in note and "all 24 others" in note
        assert {each for each in everything if each.part != "train"} <= set(found) <= set(everything)
    assert len(found) > 2


def test_of_very_many_images_a_sample_is_searched_for_far_ones(monkeypatch):
    features = {part: np.random.default_rng(0).normal(size=(40, 5)) for part in ("train", "test")}
    for each in features.values():
        each[:20] += 1e3 * np.arange(20)[:, None]  # each far from all others
    everything = {each[:3] for each in find_far_images(features, seed=0)[0]}
    assert len(everything) == 38  # the first of both parts are not
    monkeypatch.setattr(audit, "MOST_NUMBERS", 60 * 80 * 5)
    found, note = find_far_images(features, seed=0)
    assert "60 of 80 images" in note
    assert 20 < len(found) < 38 and {each[:3] for each in found} < everything
    assert find_far_images(features, seed=0) == (found, note) != find_far_images(features, seed=1)


def test_far_images_are_ranked_by_their_distance():
    generator = np.random.default_rng(0)
    features = {part: generator.normal(size=(40, 5)) for part in ("train", "test")}
    features["train"][7] += 60
    features["test"][3] -= 90
    found, note = find_far_images(features, seed=0)
    assert note == ""
    assert [each[:3] for each in found] == [(FAR, "test", 3), (FAR, "train", 7)]
    everything = np.concatenate([*features.values()])
    for each, row in zip(found, (43, 7), strict=True):
        distances = np.sort(np.linalg.norm(everything - everything[row], axis=1))
        assert each.value == pytest.approx(distances[5])  # the first is the image itself
    assert find_far_images({"train": np.zeros((5, 2))}, seed=0) == ([], "")
    assert find_far_images({"train": np.zeros((20, 2))}, seed=0) == ([], "")


def test_the_file_has_paths_and_class_names(data, tmp_path, capsys):
    findings = [
        Finding(LABEL, "train", 4, "", -1, 2, 0.001),
        Finding(OTHER_LABEL, "held_out", 1, "train", 0, 0, 0.97),
        Finding(FAR, "test", 2, "", -1, -1, 3.5),
    ]
    print_audit(findings, data, tmp_path / "audit.csv")
    with open(tmp_path / "audit.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [list(row.values()) for row in rows] == [
        [LABEL, "train", "train/4.png", "b", "", "", "c", "0.0010"],
        [OTHER_LABEL, "held_out", "held_out/1.png", "d", "train", "train/0.png", "a", "0.9700"],
        [FAR, "test", "test/2.png", "c", "", "", "", "3.5000"],
    ]
    assert "audit.csv" in capsys.readouterr().out
    print_audit([], data, tmp_path / "audit.csv")
    assert capsys.readouterr().out == ""


def test_doubted_labels_come_with_the_better_class():
    generator = np.random.default_rng(0)
    labels = np.arange(90) % 3
    features = generator.normal(size=(90, 4)) + 8 * np.eye(3, 4)[labels]
    labels[5] = 0  # was 2
    assert [each[:6] for each in find_doubted_labels(features, labels, 10.0, 0, 60)] == [(LABEL, "train", 5, "", -1, 2)]
    assert find_doubted_labels(np.zeros((200, 300)), labels.repeat(3)[:200], 0.1, 0, -1) is None
