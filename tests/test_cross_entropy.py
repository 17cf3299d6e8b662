"""The training with cross-entropy: it learns, can be resumed, and leaves the network as it was."""

from functools import partial

import keras
import numpy as np
import pytest

from pipeline.checkpoint_files import checkpoint_paths, remove_checkpoints
from pipeline.data.batches import Batches, classes_and_images, random_triplets
from pipeline.data.splits import Images
from pipeline.training.cross_entropy import trained_classifier

EPOCHS = 3
COLOURS = np.array([(200, 40, 40), (40, 200, 40), (40, 40, 200)])


def images(count, seed):
    """Noisy images of three colours."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count, dtype="int32") % 3
    pixels = COLOURS[labels][:, :, None, None] + 60 * generator.normal(size=(count, 3, 8, 8))
    return Images(np.clip(pixels, 0, 255).astype("uint8"), labels)


TRAIN, VALIDATION = images(96, 0), images(12, 1)
PLANS = {"in_batch": classes_and_images(TRAIN.labels, 3, 4), "merge": random_triplets(TRAIN.labels, 4)}


class Stopped(Exception):
    """In place of a power cut."""


def network():
    """A small embedding network whose layers have the names of `fine_tuned_models`."""
    layers, raw = keras.layers, keras.Input((3, 8, 8), dtype="uint8")
    features = layers.Conv2D(8, 3, data_format="channels_first", activation="relu")(layers.Rescaling(1 / 255)(raw))
    features = layers.GlobalAveragePooling2D(data_format="channels_first", name="pooling")(features)
    features = layers.BatchNormalization(momentum=0.5, name="pooled_batch_norm")(features)
    return keras.Model(raw, layers.UnitNormalization()(layers.Dense(4)(features)))


def started(folder, plan="in_batch", stop_after=None):
    """A new network, and the context manager that trains a classifier on it."""
    keras.utils.set_random_seed(3)
    model = network()
    predictions = []

    def predict(network, data):
        predictions.append(len(data.labels))
        if len(predictions) == stop_after:
            raise Stopped
        return network.predict(data.pixels(), verbose=0)

    batches = Batches(TRAIN, PLANS[plan], 0, "shift")
    settings = model, batches, VALIDATION, 3, predict, keras.optimizers.Adam(0.05), EPOCHS, folder, 1e-6
    return model, partial(trained_classifier, *settings)


def values(model):
    return [np.array(keras.ops.convert_to_numpy(each)) for each in model.variables]


@pytest.fixture(scope="module", params=PLANS)
def trained(request, tmp_path_factory):
    """The plan, the folder, and logits and features of the validation images by a classifier that has been trained."""
    folder = tmp_path_factory.mktemp("run")
    model, train = started(folder, request.param)
    before = values(model)
    with train() as outputs:
        logits, features = outputs(VALIDATION)
        assert any(not np.array_equal(one, two) for one, two in zip(before, values(model), strict=True))
    for one, two in zip(before, values(model), strict=True):
        np.testing.assert_array_equal(one, two)
    return request.param, folder, logits, features


def test_the_classifier_learns(trained):
    _, _, logits, features = trained
    assert logits.shape == (12, 3) and features.shape == (12, 8)
    assert np.mean(logits.argmax(axis=1) == VALIDATION.labels) >= 0.9
    assert (features >= 0).all()  # after a ReLU, not normalised


def test_a_training_that_was_killed_ends_with_the_same_bits(trained, tmp_path):
    plan, _, logits, features = trained
    with pytest.raises(Stopped), started(tmp_path, plan, stop_after=3)[1]():  # in the validation of the last epoch
        pass
    assert checkpoint_paths(tmp_path / "cross_entropy")
    _, train = started(tmp_path, plan)
    with train() as outputs:
        again = outputs(VALIDATION)
    np.testing.assert_array_equal(again[0], logits)
    np.testing.assert_array_equal(again[1], features)


def test_its_checkpoints_stay_apart_until_all_are_removed(trained):
    _, folder, _, _ = trained
    assert [path.name for path in folder.iterdir()] == ["cross_entropy"]
    (folder / "cross_entropy" / "notes.txt").write_text("of somebody else")
    remove_checkpoints(folder)
    assert [path.name for path in (folder / "cross_entropy").iterdir()] == ["notes.txt"]
    (folder / "cross_entropy" / "notes.txt").unlink()
    remove_checkpoints(folder)
    assert not list(folder.iterdir())
