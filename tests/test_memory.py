"""Batches that do not fit into memory: what is measured, and what the sentence says."""

import re
import sys

import keras
import numpy as np
import pytest

from pipeline import system_memory
from pipeline.data.batches import Batches, in_order
from pipeline.data.splits import Images
from pipeline.errors import InputError
from pipeline.training import memory

MIB = 2**20
linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is measured on Linux alone")


def batches_of(count, triplets=False):
    """One batch of images of 1,200 bytes, or of triplets."""
    images = np.random.default_rng(0).integers(0, 256, (count, 3, 20, 20), "uint8")
    plan = (lambda generator: [np.zeros((count, 3), int)]) if triplets else in_order(count, count)
    return Batches(Images(images, np.arange(count, dtype="int32")), plan)


def small_model():
    layers = [keras.Input((3, 20, 20), dtype="uint8"), keras.layers.Flatten(), keras.layers.Dense(2)]
    model = keras.Sequential([*layers, keras.layers.BatchNormalization()])
    model.compile(keras.optimizers.Adam(0.1), lambda labels, embeddings: keras.ops.mean(embeddings, axis=-1))
    model.optimizer.build(model.trainable_variables)
    return model


class Model:
    """Trains on at most `most` rows."""

    def __init__(self, most):
        self.most = most

    def train_on_batch(self, images, labels):
        if len(labels) > self.most:
            raise RuntimeError("CUDA out of memory")


@pytest.mark.parametrize(
    ("most", "triplets", "expected"),
    [
        (
            500,
            False,
            "a batch of 960 images does not fit into memory; one of 480 does, .* Divide IMAGES_PER_CLASS, .* by 2\\.",
        ),
        (100, False, "960 images does not.* one of 60 does, as a step has shown. Divide IMAGES_PER_CLASS, .* by 16"),
        (100, True, "2,880 images does not.* one of 180 does, as a step has shown. Divide IMAGES_PER_CLASS, .* by 16"),
        (1, False, "`IMAGE_SIZE` must be smaller: a batch of 960 images does not.*, and no smaller one does"),
    ],
)
def test_the_explanation_names_a_batch_that_a_step_has_shown_to_fit(most, triplets, expected, monkeypatch):
    monkeypatch.setattr("gc.collect", lambda: None)  # which takes long in a process with so many modules
    sentence = memory.explanation(Model(most), batches_of(960, triplets), "an error")
    assert re.search(expected, sentence), sentence
    assert "`IMAGE_SIZE`" in sentence and sentence.endswith("Received: an error")


def test_a_batch_that_surely_fits_is_not_measured(monkeypatch):
    monkeypatch.setattr(system_memory, "free_memory", lambda: 2**40)
    monkeypatch.setattr(memory, "_step", None)
    memory.check_first_batch(small_model(), batches_of(64))


@pytest.mark.parametrize(("free", "refused"), [(64 * MIB + 1, False), (20 * MIB, True)])
def test_a_batch_is_judged_by_a_part_of_it_and_the_model_stays_as_it_was(free, refused, monkeypatch):
    """With a step that needs 1 MiB an image."""
    model, rows = small_model(), []
    variables = [*model.variables, *model.optimizer.variables]
    before = [np.array(keras.ops.convert_to_numpy(each)) for each in variables]

    def measured(function):
        function()
        return rows[-1] * MIB

    step = memory._step
    monkeypatch.setattr(memory, "_step", lambda *given: (rows.append(given[-1]), step(*given)))
    monkeypatch.setattr(system_memory, "free_memory", lambda: free)
    monkeypatch.setattr(memory, "_highest_memory", measured)
    monkeypatch.setattr(memory, "LARGEST_FACTOR", 10**6)
    if refused:
        with pytest.raises(InputError, match=r"with 64 takes about 0\.1 GiB .* Divide IMAGES_PER_CLASS, .* by 4\.$"):
            memory.check_first_batch(model, batches_of(64))
    else:
        memory.check_first_batch(model, batches_of(64))
    assert rows == [2, 2]  # as little as the large factor demands
    for each, value in zip(variables, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(each), value)


def test_a_triplet_has_three_images(monkeypatch):
    """So many bytes are free that 60 images would surely fit, but not 60 triplets."""
    monkeypatch.setattr(memory, "_step", lambda *given: steps.append(given[-1]))
    monkeypatch.setattr(memory, "_highest_memory", lambda function: function() or 0)
    model, sizes = small_model(), []
    for triplets in (False, True):
        steps = []
        for free in range(10**6, 3 * 10**7, 10**5):
            monkeypatch.setattr(system_memory, "free_memory", lambda free=free: free)
            before = len(steps)
            memory.check_first_batch(model, batches_of(60, triplets))
            if len(steps) == before:
                sizes.append(free)
                break
    assert sizes[1] / sizes[0] == pytest.approx(3, rel=0.2)


@linux
def test_the_memory_of_a_function_is_measured():
    def take():
        array = np.ones(128 * MIB // 8)
        return array.sum()

    assert 100 * MIB < memory._highest_memory(take) < 200 * MIB
