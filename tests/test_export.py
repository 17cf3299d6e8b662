"""Exported classifiers give the answers of the classifier, in the runtimes that serve them."""

import json
import sys

import keras
import numpy as np
import pytest
from runs import KNOWN, coloured, write_run

from pipeline import export as exporting
from pipeline.classifier import Classifier
from pipeline.errors import InputError
from pipeline.export import NearestReferences, export
from pipeline.neighbours import vote
from pipeline.references import UNKNOWN

ON_TENSORFLOW = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the backend cannot export it")
ONNX = pytest.mark.skipif(keras.backend.backend() == "jax", reason="needs jax2onnx, which installs 290 MB")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """With a class of two references, so that the rule for small classes counts."""
    classifier = Classifier(write_run(tmp_path_factory.mktemp("runs") / "run"))
    generator = np.random.default_rng(1)
    classifier.change_classes([], {"yellow": [coloured("yellow", generator) for _ in range(2)]})
    return classifier


def test_the_layer_votes_as_the_classifier_does(classifier):
    """On random embeddings, between the classes and with ties among few votes."""
    known = classifier.references
    generator = np.random.default_rng(2)
    pairs = known.embeddings[generator.integers(0, len(known.labels), (2, 500))]
    embeddings = pairs.mean(axis=0) + 0.05 * generator.normal(size=pairs.shape[1:])
    embeddings = (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype("float32")
    distances, indices = classifier.search.kneighbors(embeddings)
    classes, shares = vote(distances, known.labels[indices], classifier.counts)
    outputs = {
        name: keras.ops.convert_to_numpy(each) for name, each in NearestReferences(classifier)(embeddings).items()
    }
    assert np.mean(outputs["class"] == classes) > 0.99  # equal distances may be sorted differently
    same = outputs["class"] == classes
    np.testing.assert_allclose(outputs["share"][same], shares[same], rtol=1e-5)
    np.testing.assert_allclose(outputs["distance"], distances[:, 0], atol=1e-5)
    np.testing.assert_array_equal(outputs["unknown"], distances[:, 0] > known.threshold)
    assert set(classes) == {0, 1, 2, 3} and len(np.unique(shares.round(3))) >= 4


@ONNX
def test_an_onnx_file_answers_as_the_classifier_and_knows_its_classes(classifier, tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    export(classifier, str(tmp_path / "model.onnx"))
    assert "(batch, 3, 8, 8)" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    details = session.get_modelmeta().custom_metadata_map
    names = json.loads(details["class_names"])
    assert names == [*KNOWN, "yellow"] and details["fit"] == "scale"
    generator = np.random.default_rng(3)
    images = np.array([coloured(name, generator, noise=40) for name in names for _ in range(10)])
    assert [(each.name, each.type) for each in session.get_outputs()] == [
        ("class", "tensor(int32)"),
        ("distance", "tensor(float)"),
        ("share", "tensor(float)"),
        ("unknown", "tensor(bool)"),
    ]
    for count in (1, 3, 40):
        (source,) = session.get_inputs()
        outputs = session.run(None, {source.name: images[:count].transpose(0, 3, 1, 2)})
        for answer, label, distance, share, unknown in zip(classifier.predict(images[:count]), *outputs, strict=True):
            assert answer.class_name == (UNKNOWN if unknown else names[label])
            assert (share, distance) == pytest.approx((answer.share, answer.distance), abs=1e-4)


@ON_TENSORFLOW
def test_a_saved_model_is_a_folder_that_answers_as_the_classifier(classifier, tmp_path):
    export(classifier, str(tmp_path / "served"))
    assert json.loads((tmp_path / "served" / "classes.json").read_text()) == [*KNOWN, "yellow"]
    layer = keras.layers.TFSMLayer(tmp_path / "served", call_endpoint="serve")
    images = np.array([coloured(name, np.random.default_rng(4)) for name in KNOWN])
    outputs = layer(images.transpose(0, 3, 1, 2))
    expected = classifier.predict(images)
    np.testing.assert_allclose(outputs["distance"], [answer.distance for answer in expected], atol=1e-4)
    with pytest.raises(InputError, match="or a new folder"):
        export(classifier, str(tmp_path / "served"))


def test_what_cannot_be_exported_or_differs_leaves_no_file(classifier, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("no such operation\nin line 2")

    path = str(tmp_path / "served")
    monkeypatch.setattr(keras.Model, "export", fail)
    with pytest.raises(InputError, match=r"`--export` must be possible.*RuntimeError: no such operation in line 2"):
        export(classifier, path)
    monkeypatch.setattr(keras.Model, "export", lambda *arguments, **options: None)
    wrong = {"class": np.zeros(24, int), "distance": np.ones(24), "share": np.ones(24), "unknown": np.zeros(24, bool)}
    answer = lambda images: {name: values[: len(images)] for name, values in wrong.items()}  # noqa: E731
    monkeypatch.setattr(exporting, "_saved_model_function", lambda path: answer)
    with pytest.raises(InputError, match="the same answers as Python"):
        export(classifier, path)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError, match="needs the package onnx: pip install onnx onnxruntime"):
        export(classifier, str(tmp_path / "model.onnx"))
