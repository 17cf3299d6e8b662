"""Everything that classifies, from pixels to answers, as one file for serving: ONNX or a SavedModel."""

import json
import os
import shutil
import tempfile
from pathlib import Path

import keras
import numpy as np
from keras import layers, ops

from pipeline import files
from pipeline.classifier import Classifier
from pipeline.data.pixels import rgb_pixels
from pipeline.errors import InputError
from pipeline.finished_run import check_export_path
from pipeline.references import UNKNOWN
from pipeline.settings.keras_settings import quiet_standard_error

OUTPUTS = ("class", "distance", "share", "unknown")  # in the order of the alphabet, as Keras exports them
TRIED = 24  # images with which an exported file is compared with the classifier
TOLERANCE = 1e-3  # of distances and shares


class NearestReferences(layers.Layer):
    """The search and the vote of a classifier, for embeddings of shape `(batch, embedding_size)`.

    The outputs are a dict: `class`, an index into the classes, int32; `distance` to the nearest reference; `share` of
    the votes; and `unknown`, bool. All have shape `(batch,)`.
    """

    def __init__(self, classifier: Classifier):
        super().__init__(name="nearest_references", dtype="float32")
        known = classifier.references
        self.neighbours, self.threshold, self.classes = classifier.neighbours, known.threshold, len(known.class_names)
        # Labels and sizes of classes are columns of floats: PyTorch exports such look-ups only for tables.
        sizes = np.minimum(classifier.counts[known.labels], classifier.neighbours)
        self.references = self._constant("references", known.embeddings)  # shape (n, embedding_size)
        self.labels = self._constant("labels", known.labels[:, None])  # shape (n, 1)
        self.sizes = self._constant("sizes", sizes[:, None])  # shape (n, 1)

    def call(self, embeddings):
        similarities = ops.matmul(embeddings, ops.transpose(self.references))  # shape (batch, n)
        _, indices = ops.top_k(similarities, self.neighbours)  # shape (batch, neighbours)
        # From differences: a product with rounding errors would be wrong for near duplicates.
        nearest = ops.take(self.references, indices, axis=0)  # shape (batch, neighbours, embedding_size)
        distances = ops.sqrt(ops.sum(ops.square(nearest - embeddings[:, None, :]), axis=2))  # shape (batch, neighbours)
        sizes = ops.take(self.sizes, indices, axis=0)[..., 0]  # shape (batch, neighbours)
        ranks = ops.arange(self.neighbours, dtype="float32")[None, :]
        voters = ops.min(ops.where(ranks < sizes, sizes, float(self.neighbours)), axis=1)  # shape (batch,)
        is_voter = ops.cast(ranks < voters[:, None], "float32")  # shape (batch, neighbours)
        labels = ops.cast(ops.take(self.labels, indices, axis=0)[..., 0], "int32")
        by_class = ops.one_hot(labels, self.classes, dtype="float32") * is_voter[..., None]
        votes = ops.sum(by_class, axis=1)  # shape (batch, classes)
        # Of equally many votes, the smallest sum of distances, each at most 2, wins.
        ties = ops.sum(by_class * distances[..., None], axis=1) / (4 * self.neighbours)
        _, winner = ops.top_k(votes - ties, 1)  # not argmax, which cannot be exported
        share = ops.max(votes, axis=1) / voters
        return {
            "class": ops.cast(winner[:, 0], "int32"),
            "distance": distances[:, 0],
            "share": share,
            "unknown": distances[:, 0] > self.threshold,
        }

    def _constant(self, name, values):
        weight = self.add_weight(name=name, shape=values.shape, initializer="zeros", trainable=False)
        weight.assign(values.astype("float32"))
        return weight


def export(classifier: Classifier, path: str) -> None:
    """Writes a classifier as one file, compares its answers with the classifier's, and prints how to use it.

    The input is uint8 images of shape `(batch, 3, height, width)`, RGB, of the size that it prints.

    Args:
        classifier: `Classifier`.
        path: path of the file, which ends with `.onnx`; or of a new folder, for a SavedModel.

    Raises:
        InputError: if packages are missing, the backend cannot export, or the answers differ; no file is written then.
    """
    is_onnx = Path(path).suffix.lower() == ".onnx"
    check_export_path(path)
    images = keras.Input(classifier.model.input_shape[1:], dtype="uint8", name="images")
    model = keras.Model(images, NearestReferences(classifier)(classifier.model(images)))
    model(np.zeros((1, *model.input_shape[1:]), "uint8"))  # Keras exports only models that have been called
    with tempfile.TemporaryDirectory(dir=Path(path).absolute().parent, prefix=files.PARTIAL) as folder:
        temporary = os.path.join(folder, "exported" + ".onnx" * is_onnx)
        try:
            with quiet_standard_error():
                model.export(temporary, format="onnx" if is_onnx else "tf_saved_model", verbose=False)
                answer = _onnx_function(temporary, classifier) if is_onnx else _saved_model_function(temporary)
        except OSError as error:  # such as a full disk
            raise InputError(f"`--export` must be on a disk with free space. Received: {error}") from error
        except Exception as error:  # the exporters raise many types
            backend = keras.backend.backend()
            raise InputError(
                f"`--export` must be possible with the backend {backend}; docs/classifying.md has a table. "
                f"Received: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            ) from error
        _compare(classifier, answer)
        if not is_onnx:
            classes = json.dumps(classifier.references.class_names, ensure_ascii=False)
            files.write_text(os.path.join(temporary, "classes.json"), classes)
        os.chmod(temporary, 0o644 if is_onnx else 0o755)
        (os.replace if is_onnx else shutil.move)(temporary, path)
    height, width = classifier.size
    print(
        f"Exported to {path}: images, uint8 RGB of shape (batch, 3, {height}, {width}), to {', '.join(OUTPUTS)}. "
        f"Its answers for {TRIED} images equal those of Python."
    )


def _onnx_function(path, classifier):
    """Names the outputs, stores the class names, and returns a function from images to a dict of outputs."""
    import onnx
    import onnxruntime

    model = onnx.load(path)
    new_names = dict(zip([output.name for output in model.graph.output], OUTPUTS, strict=True))
    for output in model.graph.output:
        output.name = new_names[output.name]
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [new_names.get(name, name) for name in names]
    known = classifier.references
    details = {"class_names": json.dumps(known.class_names), "fit": classifier.fit, "threshold": str(known.threshold)}
    onnx.helper.set_model_props(model, details)
    onnx.save(model, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (source,) = (each.name for each in session.get_inputs())
    return lambda images: dict(zip(OUTPUTS, session.run(list(OUTPUTS), {source: images}), strict=True))


def _saved_model_function(path):
    layer = layers.TFSMLayer(path, call_endpoint="serve")
    return lambda images: {name: ops.convert_to_numpy(values) for name, values in layer(images).items()}


def _compare(classifier, answer):
    """Raises InputError if the answers for made-up images, alone and as one batch, are not those of the classifier."""
    generator, (height, width) = np.random.default_rng(0), classifier.size
    colours = generator.integers(0, 256, (TRIED, 4, 4, 3), "uint8")
    images = np.array([rgb_pixels(each, (height, width), "scale", None) for each in colours])
    expected = list(classifier.answers(images.transpose(0, 2, 3, 1)))
    names = classifier.references.class_names
    for chosen in (slice(0, 1), slice(0, TRIED)):
        outputs = answer(images[chosen])
        for (_, wanted), label, distance, share, unknown in zip(
            expected[chosen], *(outputs[name] for name in OUTPUTS), strict=True
        ):
            same = unknown if wanted.class_name == UNKNOWN else names[label] == wanted.class_name and not unknown
            near = abs(distance - wanted.distance) < TOLERANCE and abs(share - wanted.share) < TOLERANCE
            if not same or not near:
                found = f"{names[label]}, unknown {unknown}, share {share:.4f}, distance {distance:.4f}"
                raise InputError(f"`--export` must give the same answers as Python: {wanted}. Received: {found}")
