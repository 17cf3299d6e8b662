"""Training that is killed at any batch and goes on ends where it would have ended, bit for bit."""

import errno
import functools
import io
import os
import signal
import sys

import keras
import numpy as np
import pytest

from command_line import InputError, Interrupted
from image_data import Images, sample, stratified_split
from nearest_neighbours import predict_classes
from run_folder import checkpoints as stored
from training_batches import Batches, classes_and_images, in_order
from training_callbacks import HistoryFile, NearestNeighbourAccuracy
from training_checkpoints import Checkpoints
from triplet_loss_functions import InBatchTripletLoss

EPOCHS, BATCHES = 3, 5
ALWAYS, NEVER = 1e-9, 1e6  # minutes


class Killed(Exception):
    """Stands for the end of a process; nothing of ours handles it."""


class Kill(keras.callbacks.Callback):
    """Breaks training off after so many batches, as if the process had died."""

    def __init__(self, after, action):
        super().__init__()
        self.left, self.action = after, action

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            self.action()


def images(count=30, seed=0):
    labels = np.arange(count) % 3
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 200, (count, 3, 8, 8)) + 20 * labels[:, None, None, None]
    return Images(pixels.astype("uint8"), labels.astype("int32"))


def train(folder, kill_after=None, minutes=ALWAYS, data=None, action=None, width=6, afresh=False):
    """Trains in a run folder, or goes on in it; returns the weights, the history and the best weights."""

    def die():
        raise Killed

    keras.utils.set_random_seed(7)
    data = data or images()
    layers = keras.layers
    dropout = 0.0 if keras.backend.backend() == "torch" else 0.3  # on torch it draws from a state that is not kept
    model = keras.Sequential(
        [
            keras.Input((3, 8, 8), dtype="uint8"),
            layers.Rescaling(1 / 255),
            layers.Conv2D(width, 3, data_format="channels_first"),
            layers.BatchNormalization(axis=1),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dropout(dropout),  # whose random state must be kept too
            layers.Dense(4),
            layers.UnitNormalization(),
        ]
    )
    loss = InBatchTripletLoss(0.3, "batch_all")
    metrics = loss.metrics()
    jit = keras.backend.backend() == "jax"
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=metrics, jit_compile=jit)
    batches = Batches(data, classes_and_images(data.labels, 3, 2), 5, "shift_flip")
    assert len(batches) == BATCHES

    def embed(part):
        return model.predict(part.images, verbose=0)

    check = NearestNeighbourAccuracy(model, embed, data, images(12, seed=1), 3)
    history = HistoryFile(folder / "history.csv")
    checkpoints = Checkpoints(model, metrics, batches, {"check": check, "history": history}, folder, minutes)
    checkpoints.restore(afresh)
    kill = Kill(kill_after, action or die) if kill_after else keras.callbacks.Callback()
    with checkpoints.told_of_signals():
        while checkpoints.going_on(EPOCHS):
            model.fit(
                batches,
                initial_epoch=batches.epoch,
                epochs=EPOCHS,
                shuffle=False,
                verbose=0,
                callbacks=[check, history, checkpoints, kill],
            )
    return model.get_weights(), history.rows, check.best_weights


def assert_same(first, second):
    for left, right in zip(first[0] + first[2], second[0] + second[2], strict=True):
        np.testing.assert_array_equal(left, right)
    assert first[1] == second[1]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return train(tmp_path_factory.mktemp("whole"), minutes=NEVER)


@pytest.mark.parametrize("kill_after", [1, 4, 5, 6, 9, 12, 14])
def test_a_killed_training_goes_on_bit_for_bit(kill_after, uninterrupted, tmp_path):
    with pytest.raises(Killed):
        train(tmp_path, kill_after)
    assert_same(train(tmp_path), uninterrupted)


def test_a_training_killed_again_and_again_goes_on_bit_for_bit(uninterrupted, tmp_path):
    for kill_after in (2, 1, 3, 3):
        with pytest.raises(Killed):
            train(tmp_path, kill_after)
    assert_same(train(tmp_path), uninterrupted)


def test_without_a_checkpoint_training_begins_again(uninterrupted, tmp_path):
    with pytest.raises(Killed):
        train(tmp_path, 3, minutes=NEVER)
    assert stored(tmp_path) == []
    assert_same(train(tmp_path), uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("kill_after", [3, 5])
def test_a_signal_ends_training_with_a_checkpoint(number, kill_after, uninterrupted, tmp_path):
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as told:
        train(tmp_path, kill_after, minutes=NEVER, action=lambda: os.kill(os.getpid(), number))
    assert told.value.args == (number, True)
    assert len(stored(tmp_path)) == 1
    assert signal.getsignal(number) == before
    assert_same(train(tmp_path, minutes=NEVER), uninterrupted)


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "cut off":
        content = content[: len(content) // 2]
    elif how == "empty":
        content = b""
    elif how == "another file":
        content = (b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }").ljust(
            127
        ) + b"\n1234"
    elif how == "an array missing":
        stored = dict(np.load(path))
        del stored["variable 0"]
        with open(path, "wb") as file:
            np.savez(file, **stored)
        return
    elif how == "no progress":
        with open(path, "wb") as file:
            np.savez(file, kernel=np.zeros(3))
        return
    else:
        content[len(content) // 2] ^= 1
    path.write_bytes(content)


HOW = ["cut off", "empty", "one bit wrong", "another file", "an array missing", "no progress"]


@pytest.mark.parametrize("how", HOW)
def test_of_a_damaged_checkpoint_the_one_before_is_taken(how, uninterrupted, tmp_path, capsys):
    with pytest.raises(Killed):
        train(tmp_path, 8)
    newest, before = stored(tmp_path)
    damage(newest, how)
    assert_same(train(tmp_path), uninterrupted)
    told = capsys.readouterr().out
    assert f"{newest} is damaged" in told and f"from {before}" in told


def test_a_damaged_checkpoint_does_not_count_as_one_of_the_two_kept(tmp_path):
    with pytest.raises(Killed):
        train(tmp_path, 8)
    newest = stored(tmp_path)[0]
    (tmp_path / "checkpoint-00002-0000000.npz").write_bytes(b"damaged")
    with pytest.raises(Killed):
        train(tmp_path, 1)
    assert [path.name for path in stored(tmp_path)] == ["checkpoint-00001-0000004.npz", newest.name]


def test_with_all_checkpoints_damaged_nothing_is_begun_unasked(uninterrupted, tmp_path):
    with pytest.raises(Killed):
        train(tmp_path, 8)
    for path in stored(tmp_path):
        damage(path, "cut off")
    with pytest.raises(InputError, match=r"`RUN_FOLDER` must have a whole checkpoint.*--start-afresh True"):
        train(tmp_path)
    assert_same(train(tmp_path, afresh=True), uninterrupted)


def test_another_network_is_refused_or_begun_afresh(tmp_path):
    with pytest.raises(Killed):
        train(tmp_path, 3)
    with pytest.raises(InputError, match="`RUN_FOLDER` must be of the same network"):
        train(tmp_path, width=7)
    assert len(train(tmp_path, width=7, afresh=True)[1]) == EPOCHS


def test_output_that_nobody_reads_ends_training_with_a_checkpoint(uninterrupted, tmp_path, monkeypatch):
    """As `tee` at the other end of a pipe ends with the same Ctrl-C."""
    reading, writing = os.pipe()
    with open(writing, "w", buffering=1) as output, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", output)
        os.close(reading)
        with pytest.raises(Interrupted) as told:
            train(tmp_path, 3, minutes=NEVER, action=lambda: print("a progress bar", flush=True))
        os.dup2(os.open(os.devnull, os.O_WRONLY), writing)
    assert told.value.args == (13, True)
    assert [path.name for path in stored(tmp_path)] == ["checkpoint-00000-0000004.npz"]
    assert_same(train(tmp_path, minutes=NEVER), uninterrupted)


def test_output_to_a_terminal_that_is_gone_ends_training_with_a_checkpoint(uninterrupted, tmp_path, monkeypatch):
    class Gone(io.StringIO):
        def write(self, text):
            raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", Gone())
        with pytest.raises(Interrupted) as told:
            train(tmp_path, 3, minutes=NEVER, action=lambda: sys.stdout.write("a progress bar"))
    assert told.value.args == (13, True)
    assert_same(train(tmp_path, minutes=NEVER), uninterrupted)


def test_a_full_disk_leaves_the_checkpoint_before(uninterrupted, tmp_path, monkeypatch):
    with pytest.raises(Killed):
        train(tmp_path, 4)
    kept = [path.name for path in stored(tmp_path)]

    def full(*given, **named):
        given[0].write(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(np, "savez", full)
        with pytest.raises(InputError, match=r"No space left on device.*checkpoint before it is whole"):
            train(tmp_path)
    assert [path.name for path in stored(tmp_path)] == kept
    assert not list(tmp_path.glob(".*.part"))
    assert_same(train(tmp_path), uninterrupted)


def test_a_disk_that_is_full_from_the_start_is_not_said_to_have_a_checkpoint(tmp_path, monkeypatch):
    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="There is no checkpoint before it"):
        train(tmp_path)


def test_weights_that_are_not_finite_are_never_stored(tmp_path):
    with pytest.raises(Killed):
        train(tmp_path, 2)
    kept = [path.read_bytes() for path in stored(tmp_path)]

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.set_weights([np.full((2, 1), np.nan), np.zeros(1)])
    batches = Batches(images(), classes_and_images(images().labels, 3, 2))
    assert not Checkpoints(model, [], batches, {}, tmp_path, ALWAYS).save(2, 0)
    assert [path.read_bytes() for path in stored(tmp_path)] == kept


def test_fit_trains_on_the_plan_of_each_epoch_in_order_also_when_it_goes_on(tmp_path):
    """Each step tells by a metric which images it was given, and in which order."""
    data = Images(images().images, np.arange(30))  # labels that tell the image

    def plan(generator):
        return list(generator.permutation(30).reshape(BATCHES, 6))

    def code(labels, embeddings):
        return keras.ops.reshape(keras.ops.cast(labels, "float32"), (-1,)) * keras.ops.arange(1.0, 7.0)

    class Trained(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            number = watched.first_batch + batch
            trained.append((watched.epoch, number, round(logs["code"] * 6 * (number + 1))))

    trained = []
    for kill_after in (7, None):
        watched = Batches(data, plan, 5, "shift")
        model = keras.Sequential([keras.Input((3, 8, 8), dtype="uint8"), keras.layers.Flatten(), keras.layers.Dense(2)])
        metrics = [keras.metrics.MeanMetricWrapper(code, name="code")]
        jit = keras.backend.backend() == "jax"
        model.compile("sgd", InBatchTripletLoss(), metrics=metrics, jit_compile=jit)
        checkpoints = Checkpoints(model, metrics, watched, {}, tmp_path, ALWAYS)
        checkpoints.restore()
        callbacks = [Trained(), checkpoints]
        if kill_after:
            callbacks.append(Kill(kill_after, lambda: os.kill(os.getpid(), signal.SIGTERM)))
        try:
            with checkpoints.told_of_signals():
                while checkpoints.going_on(EPOCHS):
                    options = {"initial_epoch": watched.epoch, "epochs": EPOCHS, "shuffle": False, "verbose": 0}
                    model.fit(watched, **options, callbacks=callbacks)
        except Interrupted:
            assert kill_after
    expected = []
    for epoch in range(EPOCHS):
        watched.start_epoch(epoch)
        sums = np.cumsum([np.dot(batch, np.arange(1, 7)) for batch in watched.batches])
        expected += [(epoch, number, total) for number, total in enumerate(sums)]
    assert trained == expected


@pytest.mark.parametrize("seed", range(8))
def test_every_image_keeps_its_label_through_splits_batches_interruptions_and_predictions(seed, tmp_path):
    """Each image's colour tells its number and its label; the model passes it on, and a metric compares in the step."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.repeat(np.arange(5), generator.integers(4, 50, 5)))
    colours = np.stack([np.arange(len(labels)), 20 * labels, 0 * labels], axis=1).astype("uint8")
    data = Images(np.tile(colours[:, :, None, None], (1, 1, 4, 4)), labels.astype("int32"))
    train, test = stratified_split(data, 0.2, seed)
    train, validation = stratified_split(train, 0.1, seed)
    known = sample(train, len(validation.labels), seed)
    assert sorted(np.concatenate([train.images, test.images, validation.images])[:, 0, 0, 0]) == [*range(len(labels))]

    layers = [
        keras.Input((3, 4, 4), dtype="uint8"),
        keras.layers.GlobalAveragePooling2D(data_format="channels_first"),
        keras.layers.Dense(3, use_bias=False, kernel_initializer="identity"),
    ]
    p, k, kind = generator.integers(2, 6), generator.integers(2, 7), ["none", "shift", "shift_flip"][seed % 3]
    plan, served = classes_and_images(train.labels, int(p), int(k)), []

    class Recorded(Batches):
        def __getitem__(self, number):
            images, given = super().__getitem__(number)
            served.append((self.epoch, self.first_batch + number, tuple(images[:, 0, 0, 0])))
            return images, given

    def out_of_step(given, passed_on):
        return keras.ops.abs(20.0 * keras.ops.cast(keras.ops.reshape(given, (-1,)), "float32") - passed_on[:, 1])

    for stop_after in (int(generator.integers(1, 8)), None):  # interrupted once, in any epoch; then to the end
        model, batches = keras.Sequential(layers), Recorded(train, plan, seed, kind)
        jit = keras.backend.backend() == "jax"
        metrics = [keras.metrics.MeanMetricWrapper(out_of_step, name="out_of_step")]
        model.compile(keras.optimizers.SGD(0.0), InBatchTripletLoss(), metrics=metrics, jit_compile=jit)
        checkpoints = Checkpoints(model, metrics, batches, {}, tmp_path, minutes=1e6)
        checkpoints.restore()
        ask = functools.partial(setattr, checkpoints, "interrupted_by", signal.SIGINT)
        callbacks = [*([Kill(stop_after, ask)] if stop_after else []), checkpoints]
        while checkpoints.going_on(3):
            options = {"initial_epoch": batches.epoch, "epochs": 3, "shuffle": False, "verbose": 0}
            try:
                history = model.fit(batches, **options, callbacks=callbacks).history
            except Interrupted:
                break
            assert max(history["out_of_step"]) < 1e-4
    for epoch in range(3):
        seen = {number for each, _, numbers in served if each == epoch for number in numbers}
        assert seen == set(train.images[:, 0, 0, 0])
        assert len({place for each, place, _ in served if each == epoch}) == len(plan(generator))

    for part in (train, validation, test, known):
        passed_on = model.predict(Batches(part, in_order(len(part.labels), int(p * k))), verbose=0)
        np.testing.assert_allclose(
            passed_on[:, :2], np.stack([part.images[:, 0, 0, 0], 20 * part.labels], 1), atol=1e-4
        )
        predicted = predict_classes(passed_on[:, 1:], part.labels, passed_on[:, 1:], 1)
        np.testing.assert_array_equal(predicted, part.labels)
