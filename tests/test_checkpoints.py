"""A training that stops at any batch and resumes ends exactly as one that was never interrupted."""

import errno
import os
import shutil
import signal
import sys

import keras
import numpy as np
import pytest

from pipeline.checkpoint_files import checkpoint_paths
from pipeline.data.batches import Batches, classes_and_images, in_order
from pipeline.data.splits import Images, in_parts, sample, split
from pipeline.errors import InputError, Interrupted
from pipeline.neighbour_scores import nearest_neighbour_accuracy
from pipeline.neighbours import predict_classes
from pipeline.training.callbacks import HistoryFile, ValidationAccuracy
from pipeline.training.checkpoints import Checkpoints
from triplet_loss_functions import InBatchTripletLoss

EPOCHS, BATCHES = 3, 5
ALWAYS, NEVER = 1e-9, 1e6  # minutes
JIT = keras.backend.backend() == "jax"
DROPOUT = 0.0 if keras.backend.backend() == "torch" else 0.3  # PyTorch's random state is not in a checkpoint


class Killed(Exception):
    """Stands for the end of a process; the code under test does not handle it."""


class After(keras.callbacks.Callback):
    """Calls a function after so many batches, before the checkpoint of the last of them."""

    def __init__(self, batches, action):
        super().__init__()
        self.left, self.action = batches, action

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            self.action()


def die():
    raise Killed


def images(count=30, seed=0):
    labels = np.arange(count) % 3
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 200, (count, 3, 8, 8)) + 20 * labels[:, None, None, None]
    return Images(pixels.astype("uint8"), labels.astype("int32"))


def copies(variables):
    return [np.array(keras.ops.convert_to_numpy(each)) for each in variables]


class Training:
    """What one process has: a new network, and the callbacks that train it in a run folder."""

    def __init__(self, folder, minutes=ALWAYS, width=6, parts=("accuracy", "history")):
        keras.utils.set_random_seed(7)
        data, layers = images(), keras.layers
        self.model = keras.Sequential(
            [
                keras.Input((3, 8, 8), dtype="uint8"),
                layers.Rescaling(1 / 255),
                layers.Conv2D(width, 3, data_format="channels_first"),
                layers.BatchNormalization(axis=1),
                layers.ReLU(),
                layers.Flatten(),
                layers.Dropout(DROPOUT),  # its random state must be stored too
                layers.Dense(4),
                layers.UnitNormalization(),
            ]
        )
        loss = InBatchTripletLoss(0.3, "batch_all")
        metrics = loss.metrics()[1:]  # the first takes long to compile
        self.model.compile(keras.optimizers.Adam(0.01), loss, metrics=metrics, jit_compile=JIT)
        self.metrics = [self.model.metrics[0], *metrics]
        self.batches = Batches(data, classes_and_images(data.labels, 3, 2), 5, "shift_flip")
        assert len(self.batches) == BATCHES

        def measure():
            references, queries = (self.model.predict(part.pixels(), verbose=0) for part in (data, validation))
            return nearest_neighbour_accuracy(references, data.labels, queries, validation.labels, 3)

        validation = images(12, seed=1)
        self.accuracy = ValidationAccuracy(self.model, measure)
        self.history = HistoryFile(folder / "history.csv")
        states = dict(zip(parts, (self.accuracy, self.history), strict=True))
        self.checkpoints = Checkpoints(self.model, metrics, self.batches, states, folder, minutes)

    def resume(self, overwrite=False):
        self.checkpoints.resume(overwrite)
        return self

    def fit(self, *callbacks):
        self.checkpoints.fit(EPOCHS, [*callbacks, self.accuracy, self.history])
        return self

    def state(self):
        """Copies of everything that the rest of the training and its results depend on."""
        return {
            "next": (self.batches.epoch, self.batches.first_batch),
            "model": copies(self.model.variables),
            "optimizer": copies(self.model.optimizer.variables),
            "metrics": copies(variable for metric in self.metrics for variable in metric.variables),
            "history": [dict(row) for row in self.history.rows],
            "best": [self.accuracy.best_accuracy, *map(np.array, self.accuracy.best_weights)],
        }


class Recorder(keras.callbacks.Callback):
    """Records before each batch the state of a training, and a copy of its folder, as if it were killed there."""

    def __init__(self, training, folder, copies_folder):
        super().__init__()
        self.training, self.folder, self.copies_folder, self.states = training, folder, copies_folder, {}

    def killed_at(self, epoch, batch, folder):
        """Fills a folder with what a training leaves that is killed before a batch."""
        shutil.copytree(self.copies_folder / f"{epoch} {batch}", folder, dirs_exist_ok=True)
        return folder

    def on_train_batch_begin(self, batch, logs=None):
        self.model  # noqa: B018 - on JAX, reading this attribute updates the model's variables
        state = self.training.state()
        self.states[(state["next"][0], batch)] = {**state, "next": (state["next"][0], batch)}
        shutil.copytree(self.folder, self.copies_folder / f"{state['next'][0]} {batch}")


def assert_same(first, second):
    for part in first:
        if isinstance(first[part], list):
            for left, right in zip(first[part], second[part], strict=True):
                np.testing.assert_array_equal(left, right, err_msg=part)
        else:
            assert first[part] == second[part], part


def names(folder):
    """Names of all files in a folder, hidden ones too."""
    return sorted(path.name for path in folder.iterdir())


def checkpoint_names(folder):
    return [path.name for path in checkpoint_paths(folder)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A whole training: its `Recorder`, and its last state in `end`."""
    folder, copies_folder = tmp_path_factory.mktemp("uninterrupted"), tmp_path_factory.mktemp("copies")
    training = Training(folder)
    recorder = Recorder(training, folder, copies_folder)
    training.fit(recorder)
    shutil.copytree(folder, copies_folder / f"{EPOCHS} 0")
    recorder.end = training.state()
    assert [row["epoch"] for row in recorder.end["history"]] == [1, 2, 3]
    return recorder


def test_a_training_killed_before_its_last_batch_resumes_bit_for_bit(uninterrupted, tmp_path):
    uninterrupted.killed_at(2, 4, tmp_path)
    assert_same(Training(tmp_path).resume().fit().state(), uninterrupted.end)


def test_a_training_interrupted_repeatedly_resumes_bit_for_bit(uninterrupted, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as stop:  # in the last batch of an epoch, which ends first
        Training(tmp_path, NEVER).fit(After(BATCHES, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert (stop.value.signal_number, stop.value.saved) == (signal.SIGTERM, True)
    assert signal.getsignal(signal.SIGTERM) == before
    assert checkpoint_names(tmp_path) == ["checkpoint-00001-0000000.npz"]
    with pytest.raises(Killed):
        Training(tmp_path).resume().fit(After(BATCHES, die))
    assert checkpoint_names(tmp_path)[0] == "checkpoint-00001-0000004.npz"
    assert_same(Training(tmp_path).resume().fit().state(), uninterrupted.end)
    assert (tmp_path / "history.csv").read_text() == (uninterrupted.folder / "history.csv").read_text()


def test_every_checkpoint_restores_the_state_in_which_it_was_saved(uninterrupted, tmp_path):
    training = Training(tmp_path, NEVER)
    places = list(uninterrupted.states)
    assert places == [(epoch, batch) for epoch in range(EPOCHS) for batch in range(BATCHES)]
    saved = [f"checkpoint-{epoch:05d}-{batch:07d}.npz" for epoch, batch in places[1:]]
    for number, place in enumerate(places):
        training.checkpoints.folder = uninterrupted.killed_at(*place, tmp_path / str(place))
        assert checkpoint_names(training.checkpoints.folder) == saved[:number][-2:][::-1]
        assert_same(training.resume().state(), uninterrupted.states[place])


def test_a_finished_training_is_not_trained_again(uninterrupted, tmp_path):
    uninterrupted.killed_at(EPOCHS, 0, tmp_path)
    training = Training(tmp_path).resume()
    assert not training.checkpoints.epochs_left(EPOCHS)
    restored = training.state()
    assert_same({**restored, "metrics": []}, {**uninterrupted.end, "metrics": []})
    assert not any(value.any() for value in restored["metrics"])


def test_ctrl_c_stops_training_with_a_checkpoint_and_it_resumes_bit_for_bit(uninterrupted, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted) as stop:
        Training(tmp_path, NEVER).fit(After(3, lambda: os.kill(os.getpid(), signal.SIGINT)))
    assert (stop.value.signal_number, stop.value.saved) == (signal.SIGINT, True)
    assert checkpoint_names(tmp_path) == ["checkpoint-00000-0000003.npz"]
    assert signal.getsignal(signal.SIGINT) == before
    assert_same(Training(tmp_path, NEVER).resume().fit().state(), uninterrupted.end)
    assert checkpoint_names(tmp_path) == ["checkpoint-00003-0000000.npz", "checkpoint-00000-0000003.npz"]


def test_a_closed_output_stops_training_with_a_checkpoint(uninterrupted, tmp_path, monkeypatch):
    """As when `tee` at the other end of a pipe ends with the same Ctrl-C."""
    reading, writing = os.pipe()

    def close_and_print():
        os.close(reading)
        print("a progress bar", flush=True)

    with open(writing, "w", buffering=1) as output, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", output)
        with pytest.raises(Interrupted) as stop:
            Training(tmp_path, NEVER).fit(After(3, close_and_print))
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, writing)  # for what is left in the buffer
        os.close(null)
    assert (stop.value.signal_number, stop.value.saved) == (13, True)
    assert checkpoint_names(tmp_path) == ["checkpoint-00000-0000003.npz"]
    assert_same(Training(tmp_path).resume().state(), uninterrupted.states[0, 3])


def test_without_a_checkpoint_training_starts_from_the_first_batch(tmp_path, capsys):
    new = Training(tmp_path).state()
    assert_same(Training(tmp_path).resume().state(), new)
    assert new["next"] == (0, 0) and capsys.readouterr().out == ""


def test_a_checkpoint_is_saved_once_the_minutes_have_passed(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    training = Training(tmp_path, minutes=2)
    training.checkpoints.set_model(training.model)
    for batch, seconds in enumerate([119, 120, 239, 240, 1000]):  # after the last batch, the epoch's end saves
        now[0] = seconds
        training.checkpoints.on_train_batch_end(batch)
    assert checkpoint_names(tmp_path) == ["checkpoint-00000-0000004.npz", "checkpoint-00000-0000002.npz"]


def corrupt(path, how):
    content = bytearray(path.read_bytes())
    if how == "truncated":
        content = content[: len(content) // 2]
    elif how == "empty":
        content = b""
    elif how == "another file":
        header = b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }"
        content = header.ljust(127) + b"\n1234"
    elif how == "an array missing":
        stored = dict(np.load(path))
        del stored["variable 0"]
        np.savez(path, **stored)
        return
    elif how == "no progress":
        np.savez(path, kernel=np.zeros(3))
        return
    else:
        content[len(content) // 2] ^= 1
    path.write_bytes(content)


HOW = ["truncated", "empty", "one bit wrong", "another file", "an array missing", "no progress"]


@pytest.mark.parametrize("how", HOW)
def test_if_the_newest_checkpoint_is_corrupt_the_previous_one_is_used(how, uninterrupted, tmp_path, capsys):
    newest, previous = checkpoint_paths(uninterrupted.killed_at(1, 3, tmp_path))
    corrupt(newest, how)
    assert_same(Training(tmp_path).resume().state(), uninterrupted.states[1, 2])
    printed = capsys.readouterr().out
    assert f"{newest} is corrupt" in printed and f"from {previous}" in printed


def test_a_wrong_bit_anywhere_is_noticed_or_does_not_matter(uninterrupted, tmp_path, capsys):
    newest, _ = checkpoint_paths(uninterrupted.killed_at(1, 3, tmp_path))
    content, generator, noticed = newest.read_bytes(), np.random.default_rng(0), 0
    training = Training(tmp_path)
    for position in generator.integers(len(content), size=40):
        wrong = bytearray(content)
        wrong[position] ^= 1 << generator.integers(8)
        newest.write_bytes(wrong)
        capsys.readouterr()
        restored = training.resume().state()
        is_noticed = f"{newest} is corrupt" in capsys.readouterr().out
        assert_same(restored, uninterrupted.states[1, 2 if is_noticed else 3])
        noticed += is_noticed
    assert noticed > 20


def test_a_corrupt_checkpoint_does_not_count_as_one_of_the_two_kept(uninterrupted, tmp_path):
    uninterrupted.killed_at(1, 3, tmp_path)
    (tmp_path / "checkpoint-00002-0000000.npz").write_bytes(b"corrupt")
    assert Training(tmp_path).resume().checkpoints.save(1, 4)
    assert checkpoint_names(tmp_path) == ["checkpoint-00001-0000004.npz", "checkpoint-00001-0000003.npz"]


def test_if_all_checkpoints_are_corrupt_training_starts_again_only_with_overwrite(uninterrupted, tmp_path):
    uninterrupted.killed_at(1, 3, tmp_path)
    for path in checkpoint_paths(tmp_path):
        corrupt(path, "truncated")
    new = Training(tmp_path)
    before, kept = new.state(), names(tmp_path)
    with pytest.raises(InputError, match=r"`RUN_FOLDER` must have an intact checkpoint.*--overwrite"):
        new.resume()
    assert names(tmp_path) == kept
    assert_same(new.resume(overwrite=True).state(), before)
    assert checkpoint_paths(tmp_path) == []


@pytest.mark.parametrize("other", [{"width": 7}, {"parts": ("check", "history")}], ids=["network", "version"])
def test_checkpoints_of_another_network_or_version_are_refused_or_overwritten(other, uninterrupted, tmp_path):
    uninterrupted.killed_at(1, 3, tmp_path)
    new = Training(tmp_path, **other)
    before, kept = new.state(), names(tmp_path)
    with pytest.raises(InputError, match=r"`RUN_FOLDER` must have checkpoints of this network.*--overwrite") as refusal:
        new.resume()
    assert "\n" not in str(refusal.value)
    assert names(tmp_path) == kept
    assert_same(new.state(), before)
    assert_same(new.resume(overwrite=True).state(), before)
    assert checkpoint_paths(tmp_path) == []
    assert new.checkpoints.epochs_left(EPOCHS)


def test_a_full_disk_keeps_the_previous_checkpoints(uninterrupted, tmp_path, monkeypatch):
    training = Training(uninterrupted.killed_at(1, 3, tmp_path)).resume()
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(file, **arrays):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(np, "savez", full)
        with pytest.raises(InputError, match=r"No space left on device.*resumes from the previous checkpoint"):
            training.checkpoints.save(1, 4)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == kept  # and no temporary file
    assert_same(Training(tmp_path).resume().state(), uninterrupted.states[1, 3])


def test_a_disk_that_is_full_from_the_start_has_no_previous_checkpoint(tmp_path, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="There is no previous checkpoint"):
        Training(tmp_path).checkpoints.save(0, 1)
    assert names(tmp_path) == []


def test_a_checkpoint_that_another_program_holds_open_is_written_later(tmp_path, monkeypatch, capsys):
    """The first two attempts fail; training goes on, and the next one, or the last, is written."""
    saves, savez = [], np.savez

    def held(file, **arrays):
        saves.append(file)
        if len(saves) <= 2:
            raise PermissionError(errno.EACCES, "in use by another process")
        savez(file, **arrays)

    monkeypatch.setattr(np, "savez", held)
    training = Training(tmp_path, minutes=1e-9)
    training.fit()
    assert capsys.readouterr().out.count("no checkpoint could be written ([Errno 13] in use by another process)") == 2
    assert len(saves) > 3 and len(checkpoint_names(tmp_path)) == 2
    assert not Training(tmp_path).resume().checkpoints.epochs_left(EPOCHS)


def test_a_batch_that_does_not_fit_into_memory_ends_in_one_sentence(tmp_path, monkeypatch):
    training = Training(tmp_path)
    steps = []

    def fit(*given, **named):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 57489377384 bytes.")

    def train_on_batch(images, labels):
        steps.append(len(labels))

    monkeypatch.setattr(training.model, "fit", fit)
    monkeypatch.setattr(training.model, "train_on_batch", train_on_batch)
    with pytest.raises(InputError, match=r"does not fit into memory; one of .*RESOURCE_EXHAUSTED"):
        training.fit()
    assert len(steps) == 1 and checkpoint_names(tmp_path) == []


def test_weights_that_are_not_finite_are_never_saved(uninterrupted, tmp_path):
    training = Training(uninterrupted.killed_at(1, 3, tmp_path)).resume()
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    kernel = training.model.layers[1].kernel
    kernel.assign(keras.ops.full(kernel.shape, np.nan))
    assert not training.checkpoints.save(1, 4)
    training.checkpoints.set_model(training.model)
    training.checkpoints.request_stop(signal.SIGTERM)
    with pytest.raises(Interrupted) as stop:
        training.checkpoints.on_train_batch_end(0)
    assert (stop.value.signal_number, stop.value.saved) == (signal.SIGTERM, False)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == kept


def passed_on(labels, embeddings):
    """A loss that any embeddings have."""
    return keras.ops.mean(embeddings, axis=-1)


class Calls(keras.callbacks.Callback):
    """Calls functions after each batch and epoch, with its number and its logs."""

    def __init__(self, batch=lambda *given: None, epoch=lambda *given: None):
        super().__init__()
        self.on_train_batch_end = lambda number, logs=None: batch(number, logs)
        self.on_epoch_end = lambda number, logs=None: epoch(number, logs)


def test_fit_trains_on_the_plan_of_each_epoch_in_order_and_also_if_resumed(tmp_path):
    """A metric computes in each step which images it trains on, and in which order."""
    data = Images(images().pixels(), np.arange(30))  # labels that identify the image

    def plan(generator):
        return list(generator.permutation(30).reshape(BATCHES, 6))

    def code(labels, embeddings):
        return keras.ops.reshape(keras.ops.cast(labels, "float32"), (-1,)) * keras.ops.arange(1.0, 7.0)

    def record(batch, logs):
        number = batches.first_batch + batch
        trained.append((batches.epoch, number, round(logs["code"] * 6 * (number + 1))))

    trained = []
    for stop_after in (7, None):
        batches = Batches(data, plan, 5, "shift")
        model = keras.Sequential([keras.Input((3, 8, 8), dtype="uint8"), keras.layers.Flatten(), keras.layers.Dense(2)])
        metrics = [keras.metrics.MeanMetricWrapper(code, name="code")]
        model.compile(keras.optimizers.SGD(0.0), passed_on, metrics=metrics, jit_compile=JIT)
        checkpoints = Checkpoints(model, metrics, batches, {}, tmp_path, ALWAYS)
        checkpoints.resume()
        callbacks = [Calls(record)]
        if stop_after is None:
            checkpoints.fit(EPOCHS, callbacks)
        else:
            with pytest.raises(Interrupted):
                checkpoints.fit(EPOCHS, [*callbacks, After(7, lambda: os.kill(os.getpid(), signal.SIGTERM))])
    expected = []
    for epoch in range(EPOCHS):
        batches.start_epoch(epoch)
        sums = np.cumsum([np.dot(batch, np.arange(1, 7)) for batch in batches.batches])
        expected += [(epoch, number, total) for number, total in enumerate(sums)]
    assert trained == expected


def test_a_callback_that_stops_training_ends_it_as_diverged(tmp_path):
    epochs = []

    def stop_in_second(epoch, logs):
        assert epoch == len(epochs)  # or training would never end
        epochs.append(epoch)
        model.stop_training = epoch == 1

    data = images()
    model = keras.Sequential([keras.Input((3, 8, 8), dtype="uint8"), keras.layers.Flatten(), keras.layers.Dense(2)])
    model.compile(keras.optimizers.SGD(0.0), passed_on, jit_compile=JIT)
    batches = Batches(data, in_order(30, 15))
    checkpoints = Checkpoints(model, [], batches, {}, tmp_path, NEVER)
    assert not checkpoints.diverged
    checkpoints.fit(EPOCHS, [Calls(epoch=stop_in_second)])
    assert epochs == [0, 1]
    assert checkpoints.diverged and not checkpoints.epochs_left(EPOCHS)
    assert checkpoint_paths(tmp_path) == []


@pytest.mark.parametrize("seed", range(3))
def test_every_image_keeps_its_label_through_splits_batches_interruptions_and_predictions(seed, tmp_path):
    """Each image's colour is its number and its label; the model passes it on, and a metric compares in the step."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.repeat(np.arange(5), generator.integers(4, 50, 5)))
    colours = np.stack([np.arange(len(labels)), 20 * labels, 0 * labels], axis=1).astype("uint8")
    data = Images(np.tile(colours[:, :, None, None], (1, 1, 4, 4)), labels.astype("int32"))
    parts, _ = split(
        [f"{number}.png" for number in range(len(labels))], labels, ["train"] * len(labels), 0.2, 0.1, seed
    )
    train, validation, test, *_ = in_parts(data, parts, list("abcde"), [b""] * len(parts))
    known = sample(train, len(validation.labels), seed)
    assert sorted(np.concatenate([train.pixels(), test.pixels(), validation.pixels()])[:, 0, 0, 0]) == [
        *range(len(labels))
    ]

    layers = [
        keras.Input((3, 4, 4), dtype="uint8"),
        keras.layers.GlobalAveragePooling2D(data_format="channels_first"),
        keras.layers.Dense(3, use_bias=False, kernel_initializer="identity"),
    ]
    p, k, kind = generator.integers(2, 6), generator.integers(2, 7), ["none", "shift", "shift_flip"][seed % 3]
    plan, served, errors = classes_and_images(train.labels, int(p), int(k)), [], []

    class Recorded(Batches):
        def __getitem__(self, number):
            images, given = super().__getitem__(number)
            served.append((self.epoch, self.first_batch + number, tuple(images[:, 0, 0, 0])))
            return images, given

    def mismatch(given, colour):
        return keras.ops.abs(20.0 * keras.ops.cast(keras.ops.reshape(given, (-1,)), "float32") - colour[:, 1])

    def stop():
        checkpoints.request_stop(signal.SIGINT)

    compare = Calls(epoch=lambda epoch, logs: errors.append(logs["mismatch"]))
    for stop_after in (int(generator.integers(1, 8)), None):  # interrupted once, in any epoch; then to the end
        model, batches = keras.Sequential(layers), Recorded(train, plan, seed, kind)
        metrics = [keras.metrics.MeanMetricWrapper(mismatch, name="mismatch")]
        model.compile(keras.optimizers.SGD(0.0), passed_on, metrics=metrics, jit_compile=JIT)
        checkpoints = Checkpoints(model, metrics, batches, {}, tmp_path, NEVER)
        checkpoints.resume()
        if stop_after is None:
            checkpoints.fit(EPOCHS, [compare])
        else:
            with pytest.raises(Interrupted):
                checkpoints.fit(EPOCHS, [After(stop_after, stop), compare])
    assert len(errors) == EPOCHS and max(errors) < 1e-4
    for epoch in range(EPOCHS):
        seen = {number for each, _, numbers in served if each == epoch for number in numbers}
        assert seen == set(train.pixels()[:, 0, 0, 0])
        assert len({place for each, place, _ in served if each == epoch}) == len(plan(generator))

    for part in (train, validation, test, known):
        embeddings = model.predict(Batches(part, in_order(len(part.labels), int(p * k))), verbose=0)
        expected = np.stack([part.pixels()[:, 0, 0, 0], 20 * part.labels], 1)
        np.testing.assert_allclose(embeddings[:, :2], expected, atol=1e-4)
        predicted = predict_classes(embeddings[:, 1:], part.labels, embeddings[:, 1:], 1)
        np.testing.assert_array_equal(predicted, part.labels)
