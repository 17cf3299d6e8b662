"""A run as a classifier: its answers against plain loops, changes of its classes, and folders that cannot be used."""

import errno
import itertools
import json
import os
import shutil
import threading

import keras
import numpy as np
import pytest
from PIL import Image
from runs import COLOURS, coloured, write_run

from pipeline import references
from pipeline.classifier import Classifier
from pipeline.errors import InputError
from pipeline.references import UNKNOWN


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def classifier(run):
    return Classifier(run)


@pytest.fixture
def own(run, tmp_path):
    """A run folder that a test may change."""
    return shutil.copytree(run, tmp_path / "own")


def loop_answer(classifier, image):
    """The oracle, in float64: class, share and distance of one image of the size of the network's input."""
    known = classifier.references
    embedding = keras.ops.convert_to_numpy(classifier.model(image.transpose(2, 0, 1)[None]))[0].astype("float64")
    distances = [float(np.linalg.norm(embedding - reference)) for reference in known.embeddings]
    nearest = sorted(range(len(distances)), key=distances.__getitem__)[: classifier.neighbours]
    sizes = [int(np.sum(known.labels == known.labels[place])) for place in nearest]
    voters = nearest[: min([len(nearest), *(size for rank, size in enumerate(sizes) if rank < size)])]
    votes = {}
    for place in voters:
        count, total = votes.get(known.labels[place], (0, 0.0))
        votes[known.labels[place]] = (count + 1, total + distances[place])
    label = min(votes, key=lambda each: (-votes[each][0], votes[each][1]))
    name = known.class_names[label] if distances[nearest[0]] <= known.threshold else UNKNOWN
    return name, votes[label][0] / len(voters), distances[nearest[0]], known.names[nearest[0]]


def test_answers_are_those_of_a_plain_loop(classifier):
    generator = np.random.default_rng(3)
    images = [coloured(name, generator, noise=noise) for name in COLOURS for noise in (12, 20, 30, 60)]
    images += [generator.integers(0, 256, (8, 8, 3), "uint8") for _ in range(6)]
    answers = classifier.predict(images)
    for image, answer in zip(images, answers, strict=True):
        name, share, distance, reference = loop_answer(classifier, image)
        assert (answer.class_name, answer.share, answer.reference) == (name, pytest.approx(share), reference)
        assert answer.distance == pytest.approx(distance, abs=1e-5)
    assert {answer.class_name for answer in answers} > {UNKNOWN, "red"}


def test_paths_arrays_and_pillow_images_of_any_size_have_the_same_answers(classifier, tmp_path):
    generator = np.random.default_rng(4)
    pixels = [coloured(name, generator, size=size) for name, size in (("red", 8), ("sky blue", 20), ("green", 5))]
    paths = []
    for number, each in enumerate(pixels):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(each).save(paths[-1])
    expected = classifier.predict(paths)
    assert [answer.class_name for answer in expected] == ["red", "sky blue", "green"]
    for images in ([str(path) for path in paths], pixels, [Image.fromarray(each) for each in pixels]):
        for answer, wanted in zip(classifier.predict(images), expected, strict=True):
            assert answer[:1] + answer[3:] == wanted[:1] + wanted[3:]
            assert answer[1:3] == pytest.approx(wanted[1:3], abs=1e-5)
    grey = np.full((9, 7), 200, "uint8")
    as_colour = classifier.predict([np.repeat(grey[..., None], 3, axis=2)])[0]
    assert classifier.predict([grey])[0] == as_colour


def test_images_are_taken_and_answered_one_batch_at_a_time(classifier):
    taken = itertools.count()

    def endless():
        for number in taken:
            yield Image.new("RGB", (8, 8), (number % 256, 0, 0))

    answers = classifier.answers(endless())
    for _ in range(3 * classifier.batch_size):
        assert isinstance(next(answers)[1].distance, float)
    assert next(taken) <= 8 * classifier.batch_size
    answers.close()


def test_images_that_cannot_be_read_are_named(classifier, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    (tmp_path / "empty.png").touch()
    images = [tmp_path / "good.png", tmp_path / "empty.png", tmp_path / "none.png", tmp_path / "good.png"]
    results = list(classifier.answers(images))
    assert [image for image, _ in results] == images
    assert results[0][1] == results[3][1]
    assert "an empty file" in str(results[1][1]) and isinstance(results[2][1], InputError)
    with pytest.raises(InputError, match=r"(?s)image 1: an empty file.*image 2: .*none\.png"):
        classifier.predict(images)
    for single in (images[0], str(images[0]), np.zeros((8, 8, 3), "uint8"), Image.new("RGB", (8, 8))):
        with pytest.raises(InputError, match="a list of paths or images"):
            classifier.predict(single)


def test_the_most_similar_references_are_those_of_a_plain_loop(classifier):
    image = coloured("red", np.random.default_rng(5))
    embedding = keras.ops.convert_to_numpy(classifier.model(image.transpose(2, 0, 1)[None]))[0]
    known = classifier.references
    distances = np.linalg.norm(known.embeddings - embedding, axis=1)
    similar = classifier.similar(image, 7)
    for (name, class_name, distance), place in zip(similar, np.argsort(distances)[:7], strict=True):
        assert (name, class_name) == (known.names[place], known.class_names[known.labels[place]])
        assert distance == pytest.approx(distances[place], abs=1e-5)
    assert len(classifier.similar(image, 10**6)) == len(known.labels)


def test_a_class_of_one_image_is_added_recognised_and_removed(own, tmp_path):
    before, classifier = references.read_references(own), Classifier(own)
    yellow = coloured("yellow", np.random.default_rng(6))
    assert classifier.predict([yellow])[0].class_name == UNKNOWN
    (tmp_path / "lemons" / "ripe").mkdir(parents=True)
    path = tmp_path / "lemons" / "ripe" / "1.png"
    Image.fromarray(yellow).save(path)
    assert classifier.change_classes([], {"yellow": [path]}) == []
    for each in (classifier, Classifier(own)):
        answer = each.predict([yellow])[0]
        assert (answer.class_name, answer.share, answer.reference) == ("yellow", 1.0, "yellow/1.png")
        assert answer.distance < 1e-3
    classifier.change_classes(["yellow"], {})
    after = references.read_references(own)
    for name, value in before._asdict().items():
        np.testing.assert_array_equal(getattr(after, name), value)
    assert Classifier(own).predict([yellow])[0].class_name == UNKNOWN


def test_a_removed_class_keeps_the_labels_of_the_others_and_can_be_replaced_in_one_step(own):
    classifier = Classifier(own)
    generator = np.random.default_rng(7)
    images = {name: coloured(name, generator) for name in COLOURS if name != "yellow"}
    classifier.change_classes(["red"], {"red": [coloured("yellow", generator) for _ in range(6)]})
    answers = {name: classifier.predict([image])[0].class_name for name, image in images.items()}
    assert answers == {"red": UNKNOWN, "green": "green", "sky blue": "sky blue"}
    assert classifier.predict([coloured("yellow", generator)])[0].class_name == "red"


def test_a_run_that_has_been_trained_again_is_not_changed(own):
    classifier = Classifier(own)
    os.utime(own / "embedding_model.keras", (1e9, 1e9))
    with pytest.raises(InputError, match="`RUN_FOLDER` must stay the same run"):
        classifier.change_classes(["red"], {})


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((3, 8, 8), "uint8"),
        np.zeros((8, 8, 3), "float32"),
        np.zeros((8, 8), "int32"),
        np.zeros((8, 8), bool),
        np.zeros((8, 8, 2), "uint8"),
        np.zeros((0, 8, 3), "uint8"),
        np.zeros(8, "uint8"),
    ],
)
def test_arrays_that_could_be_misread_are_refused(image, classifier):
    with pytest.raises(InputError, match=rf"image 0: arrays must be uint8 of shape .*{image.dtype}"):
        classifier.predict([image])


@pytest.mark.parametrize(
    ("removed", "added", "words"),
    [
        ([], {"unknown": [0]}, "not 'unknown'"),
        ([], {"a\nb": [0]}, "without control characters"),
        ("blue", {}, "`--remove` must name a class that --list shows. Received: 'blue'"),
        ([], {"red": [0]}, "`--add` must name a new class.*'red', which has 20 references.*--remove 'red'"),
        (["blue"], {}, "`--remove` must name a class that --list shows. Received: 'blue'"),
        (["red", "red"], {}, "`--remove` must name a class that --list shows. Received: 'red'"),
        (["red", "green", "sky blue"], {}, "`--remove` must leave a class"),
        (["red"], {"yellow": []}, "none for 'yellow'"),
        (["red"], {"yellow": ["missing.png"]}, r"(?s)none for 'yellow'.*missing\.png"),
    ],
)
def test_changes_that_are_refused_change_nothing(removed, added, words, own):
    content = (own / "references.npz").read_bytes()
    classifier = Classifier(own)
    with pytest.raises(InputError, match=words):
        classifier.change_classes(removed, added)
    assert (own / "references.npz").read_bytes() == content
    assert classifier.references.class_names == ["green", "red", "sky blue"]


def test_classifiers_that_add_classes_at_the_same_time_wait_for_each_other(own):
    classifiers = [Classifier(own) for _ in range(3)]
    image = coloured("yellow", np.random.default_rng(8))
    threads = [
        threading.Thread(target=each.change_classes, args=([], {f"new {number}": [image] * (number + 1)}))
        for number, each in enumerate(classifiers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = references.read_references(own)
    counts = {name: int(np.sum(after.labels == number)) for number, name in enumerate(after.class_names)}
    assert counts == {"green": 20, "red": 20, "sky blue": 20, "new 0": 1, "new 1": 2, "new 2": 3}


def test_a_full_disk_leaves_the_references_as_they_were(own, monkeypatch):
    content, classifier = (own / "references.npz").read_bytes(), Classifier(own)

    def full(file, **arrays):
        file.write(b"a part")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(InputError, match=r"must be writable, on a disk with free space.*No space left"):
        classifier.change_classes(["red"], {})
    assert (own / "references.npz").read_bytes() == content
    assert ".part.references.npz" not in os.listdir(own)
    assert "red" in classifier.references.class_names


class _Malicious:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def replace_references(folder, **changes):
    with np.load(folder / "references.npz") as stored:
        arrays = {name: stored[name] for name in stored.files} | changes
    np.savez(folder / "references.npz", **{name: value for name, value in arrays.items() if value is not None})


def save_lambda(folder):
    images = keras.Input((3, 8, 8))
    outputs = keras.layers.Lambda(lambda x: keras.ops.mean(x, axis=(2, 3)))(images)
    keras.Model(images, outputs).save(folder / "embedding_model.keras")


def save_model(folder, shape, bias=0.0):
    images = keras.Input(shape, dtype="uint8")
    features = keras.layers.Flatten()(keras.ops.cast(images, "float32"))
    outputs = keras.layers.Dense(16, bias_initializer=keras.initializers.Constant(bias))(features)
    keras.Model(images, outputs).save(folder / "embedding_model.keras")


def edit_constants(folder, text):
    (folder / "constants.json").write_text(text)


UNUSABLE = {
    "no folder": (lambda folder: shutil.rmtree(folder), "which is no folder"),
    "no run": (lambda folder: [path.unlink() for path in folder.iterdir()], "without constants.json, embedding_model"),
    "no model": (lambda folder: (folder / "embedding_model.keras").unlink(), "without embedding_model.keras"),
    "not finished": (lambda folder: (folder / "report.txt").unlink(), "is not finished"),
    "constants cut off": (lambda folder: edit_constants(folder, '{"FIT": '), "a finished run"),
    "a wrong number of neighbours": (lambda folder: edit_constants(folder, '{"NEIGHBOURS": 0}'), "wrong NEIGHBOURS"),
    "no constants": (lambda folder: edit_constants(folder, "{}"), "wrong NEIGHBOURS"),
    "a wrong fit": (lambda folder: edit_constants(folder, '{"NEIGHBOURS": 5, "FIT": "wide"}'), "wrong NEIGHBOURS, FIT"),
    "a wrong range": (
        lambda folder: edit_constants(folder, '{"NEIGHBOURS": 5, "started with": {"value range": [9, 1]}}'),
        "or range",
    ),
    "model cut off": (lambda folder: os.truncate(folder / "embedding_model.keras", 5000), "intact model"),
    "a model that runs code": (save_lambda, "intact model.*safe"),
    "references cut off": (lambda folder: os.truncate(folder / "references.npz", 900), "intact references.npz"),
    "references that run code": (
        lambda folder: replace_references(folder, names=np.array([_Malicious()] * 60, object)),
        "intact references.npz.*pickle",
    ),
    "references without labels": (lambda folder: replace_references(folder, labels=None), "intact references.npz"),
    "a threshold that is no number": (
        lambda folder: replace_references(folder, threshold=np.nan),
        "intact references.npz",
    ),
    "embeddings that are text": (
        lambda folder: replace_references(folder, embeddings=np.full((60, 16), "0.5")),
        "intact references.npz.*types",
    ),
    "a class twice": (
        lambda folder: replace_references(folder, class_names=np.array(["red", "green", "red"])),
        "intact references.npz",
    ),
    "a model for other images": (lambda folder: save_model(folder, (8, 8, 3)), "intact model"),
    "a model that is not finite": (lambda folder: save_model(folder, (3, 8, 8), np.nan), "intact model.*not finite"),
    "labels of no class": (
        lambda folder: replace_references(folder, labels=np.full(60, 3, "int32")),
        "intact references.npz.*do not fit",
    ),
    "references of another model": (
        lambda folder: replace_references(folder, embeddings=np.zeros((60, 7), "float32")),
        "intact model.*another length",
    ),
}


@pytest.mark.parametrize(("change", "words"), UNUSABLE.values(), ids=UNUSABLE)
def test_a_folder_that_cannot_be_used_is_refused_in_one_sentence(change, words, own, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    change(own)
    with pytest.raises(InputError, match=f"`RUN_FOLDER` must.*{words}"):
        Classifier(own)
    assert not (tmp_path / "executed").exists()


def test_a_run_of_an_earlier_version_calls_nothing_unknown(own):
    replace_references(own, names=None, threshold=None)
    constants = json.loads((own / "constants.json").read_text())
    edit_constants(own, json.dumps({name: value for name, value in constants.items() if name != "started with"}))
    answer = Classifier(own).predict([coloured("yellow", np.random.default_rng(9))])[0]
    assert answer.class_name in COLOURS and answer.reference.startswith("image ")


def test_16_bit_images_are_scaled_by_the_range_of_the_run(own, tmp_path):
    constants = json.loads((own / "constants.json").read_text())
    constants["started with"]["value range"] = [1000, 1000 + 257 * 16]
    edit_constants(own, json.dumps(constants))
    grey = np.arange(64, dtype="uint16").reshape(8, 8)
    Image.fromarray(1000 + grey * 16).save(tmp_path / "wide.png")
    narrow = np.rint((grey * 16) * (255 / (257 * 16))).astype("uint8")
    classifier = Classifier(own)
    assert classifier.predict([tmp_path / "wide.png"])[0] == classifier.predict([narrow])[0]
