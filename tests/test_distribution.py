"""Several devices on JAX, made of one CPU, and several processes: the results of one device, but for rounding."""

import json
import os
import socket
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from processes import SCRIPT, run_python, run_script

from pipeline.errors import InputError
from pipeline.settings import devices

on_jax = pytest.mark.skipif(keras.backend.backend() != "jax", reason="JAX alone divides batches between devices")
# With one thread for t-SNE, which is slower with more where there are few points.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "KERAS_BACKEND": "jax"}
SEVERAL = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", **ONE_THREAD}
SMALL = "--dataset digits --backbone tiny.keras --frozen-layers 0 --image-size 8 --epochs 1".split()
SAVING = [*SMALL, *"--images-per-class 4 --learning-rate 1e-3 --checkpoint-minutes 0.0001".split()]  # at every step
LOSSES = ("in_batch", "merge")

GRADIENTS = """
import json, sys
from pipeline.settings import keras_settings
keras_settings.apply(trains=True)
import keras, numpy as np
from fine_tune_model import triplet_model
from pipeline.data.batches import Batches, in_order, training_batches
from pipeline.data.splits import Images
from pipeline.settings import devices
from triplet_loss_functions import InBatchTripletLoss, MergeTripletLoss

labels = np.repeat(np.arange(5, dtype="int32"), 13)
data = Images(np.random.default_rng(0).integers(0, 256, (65, 3, 8, 8), "uint8"), labels)
for wanted in sys.argv[2:]:
    parallel, arrays = devices.distribute(wanted, 16), {}
    for name in ("batch_all", "batch_hard", "semi_hard", "all_semi_hard", "merge"):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([
            keras.Input((3, 8, 8), dtype="uint8"), keras.layers.Rescaling(1 / 255), keras.layers.Conv2D(8, 3),
            keras.layers.ReLU(), keras.layers.Flatten(), keras.layers.BatchNormalization(), keras.layers.Dense(16),
            keras.layers.UnitNormalization(),
        ])
        merge = name == "merge"
        trained = triplet_model(model) if merge else keras.Model(model.inputs, model.outputs)
        loss = MergeTripletLoss(0.3) if merge else InBatchTripletLoss(0.3, name)
        settings = ("merge", 4, 12) if merge else ("in_batch", 4, 4)
        batches = training_batches(data, list("abcde"), *settings, 0, "shift_flip", parallel.rows)
        trained.compile(keras.optimizers.SGD(1.0), loss)
        start, steps = model.get_weights(), []
        for batch in range(5 if name != "merge" else len(batches)):
            model.set_weights(start)
            value = float(np.asarray(trained.train_on_batch(*batches[batch])))
            trained.reset_metrics()
            changes = [(one - two).ravel() for one, two in zip(model.get_weights(), start)]
            steps.append(np.concatenate([[value], *changes]))
        model.set_weights(start)
        arrays[name] = np.array(steps)
    order = Batches(data, in_order(65, 16, parallel.count), rows=parallel.rows)
    arrays["embeddings"] = devices.for_every_process(model).predict(order, verbose=0)[:65]
    on = {len(each.value.sharding.device_set) for each in model.trainable_variables}
    np.savez(f"{sys.argv[1]}-{wanted}.npz", devices=list(on), **arrays)
"""


def write_network(folder):
    """A network that compiles in a second, as a file for BACKBONE."""
    keras.utils.set_random_seed(0)
    kinds = keras.layers
    inputs = keras.Input((8, 8, 3))
    features = kinds.Dense(64, activation="relu")(kinds.Flatten()(kinds.Rescaling(1 / 127.5, -1)(inputs)))
    keras.Model(inputs, features).save(folder / "tiny.keras")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run folders of complete runs on one device, one of each loss."""
    place = tmp_path_factory.mktemp("alone")
    write_network(place)
    for loss in LOSSES:
        done = run_script(*SAVING, "--triplet-loss", loss, "--run-folder", loss, cwd=place, **SEVERAL)
        assert done.returncode == 0, done.stderr
    return place


def values(item):
    """The values in nested dicts and lists, in order."""
    if isinstance(item, dict | list):
        return [value for each in (item.values() if isinstance(item, dict) else item) for value in values(each)]
    return [item]


def assert_same_results(run, expected):
    """The losses of the epochs, the weights, the reference embeddings and the report of two finished runs."""
    reports = [json.loads((folder / "report.json").read_text()) for folder in (run, expected)]
    of_run, of_expected = map(values, reports)
    assert len(of_run) == len(of_expected) > 20
    for one, other in zip(of_run, of_expected, strict=True):
        assert one == (pytest.approx(other, abs=1e-5) if isinstance(other, float) else other)
    histories = [np.genfromtxt(folder / "history.csv", delimiter=",", names=True) for folder in (run, expected)]
    assert histories[0]["loss"] == pytest.approx(histories[1]["loss"], rel=1e-5)
    models = [keras.models.load_model(folder / "embedding_model.keras").get_weights() for folder in (run, expected)]
    embeddings = [np.load(folder / "references.npz")["embeddings"] for folder in (run, expected)]
    for one, other in zip([*models[0], embeddings[0]], [*models[1], embeddings[1]], strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)  # 2e-7 was seen


class Pair:
    """A command in two processes that train together."""

    def __init__(self, folder, *arguments, **environment):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        together = {"KERAS_DISTRIBUTION_JOB_ADDRESSES": address, "KERAS_DISTRIBUTION_NUM_PROCESSES": "2"}
        self.logs, self.processes = [folder / "log-0", folder / "log-1"], []
        for number, path in enumerate(self.logs):
            settings = {**ONE_THREAD, "PYTHONPATH": str(SCRIPT.parent), **together, **environment}
            settings["KERAS_DISTRIBUTION_PROCESS_ID"] = str(number)
            command = [sys.executable, *(str(each).replace("NUMBER", str(number)) for each in arguments)]
            with open(path, "wb") as log:
                self.processes.append(
                    subprocess.Popen(command, env={**os.environ, **settings}, stdout=log, stderr=log, cwd=folder)
                )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for each in self.processes:
            each.kill()
            each.wait()

    def wait(self):
        """The exit codes and what was printed."""
        codes = [each.wait(timeout=400) for each in self.processes]
        return codes, [path.read_text() for path in self.logs]

    def wait_for_checkpoint(self, folder, after=()):
        end = time.monotonic() + 400
        while not set(found := list(folder.glob("checkpoint-*"))) - set(after):
            assert time.monotonic() < end and all(each.poll() is None for each in self.processes), [
                path.read_text() for path in self.logs
            ]
            time.sleep(0.05)
        return found


@on_jax
@pytest.mark.slow
def test_losses_gradients_and_embeddings_on_two_devices_and_two_processes_are_those_of_one(tmp_path):
    """The loss and the step of plain gradient descent from the same weights, for five batches of each loss."""
    done = run_python("-c", GRADIENTS, tmp_path / "alone", "1", "2", **SEVERAL)
    assert done.returncode == 0, done.stderr
    with Pair(tmp_path, "-c", GRADIENTS, tmp_path / "processNUMBER", "auto") as pair:
        codes, printed = pair.wait()
    assert codes == [0, 0], printed
    one, *others = (
        np.load(tmp_path / f"{name}.npz") for name in ("alone-1", "alone-2", "process0-auto", "process1-auto")
    )
    assert [each["devices"].tolist() for each in (one, *others)] == [[1], [2], [2], [2]]
    assert len(one.files) == 7
    for name in one.files[1:]:
        for other in others:
            difference = np.linalg.norm(other[name] - one[name], axis=-1) / np.linalg.norm(one[name], axis=-1)
            assert difference.max() < 1e-5, name


@on_jax
@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_a_run_on_two_devices_gives_the_results_of_one(loss, tmp_path, alone):
    write_network(tmp_path)
    settings = ["--triplet-loss", loss, "--run-folder", tmp_path / "run", "--devices", "2"]
    done = run_script(*SAVING, *settings, cwd=tmp_path, **SEVERAL)
    assert done.returncode == 0 and "between 2 devices: cpu:0, cpu:1" in done.stdout, done.stderr
    assert_same_results(tmp_path / "run", alone / loss)


@on_jax
@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_a_run_that_was_killed_resumes_on_another_number_of_devices(loss, tmp_path, alone):
    """An odd number of test images; and a second process that is not told how many devices there are."""
    write_network(tmp_path)
    settings = [*SAVING, "--triplet-loss", loss, "--run-folder", tmp_path / "run"]
    command = [sys.executable, SCRIPT, *settings, "--devices", "2"]
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(
            [str(each) for each in command], env={**os.environ, **SEVERAL}, stdout=log, stderr=log, cwd=tmp_path
        )
        while process.poll() is None and not list(tmp_path.glob("run/checkpoint-*")):
            time.sleep(0.05)
        process.kill()
        process.wait()
    assert "between 2 devices: cpu:0, cpu:1" in (tmp_path / "log").read_text()
    done = run_script(*settings, cwd=tmp_path, **SEVERAL)
    assert done.returncode == 0, done.stderr
    assert "Resuming" in done.stdout and "divided between" not in done.stdout
    assert "Devices that train: 1, before 2." in done.stdout
    assert_same_results(tmp_path / "run", alone / loss)


@on_jax
@pytest.mark.slow
def test_two_processes_that_are_stopped_and_killed_resume_together(tmp_path, alone):
    """First one alone gets SIGTERM, then one alone is killed; the run folder is on the first one's disk."""
    write_network(tmp_path)
    run = tmp_path / "run"
    arguments = [SCRIPT, *SAVING, "--run-folder"]

    with Pair(tmp_path, *arguments, run) as pair:
        checkpoints = pair.wait_for_checkpoint(run)
        pair.processes[1].terminate()
        codes, printed = pair.wait()
    assert codes == [143, 143], printed
    assert "between 2 devices of 2 processes" in printed[0] and "A checkpoint was saved" in printed[0]

    with Pair(tmp_path, *arguments, run) as pair:
        pair.wait_for_checkpoint(run, {*checkpoints, *run.glob("checkpoint-*")})
        pair.processes[1].kill()
        codes, printed = pair.wait()
    assert codes == [2, -9], printed
    assert "another process of this run has ended" in printed[0] and "Traceback" not in printed[0]

    with Pair(tmp_path, *arguments, run) as pair:
        codes, printed = pair.wait()
    assert codes == [0, 0], printed
    assert "Resuming" in printed[0] and "Resuming" not in printed[1]
    assert not list(run.glob("checkpoint-*"))
    assert_same_results(run, alone / "in_batch")


@on_jax
def test_processes_with_different_constants_end_with_a_sentence_that_names_them(tmp_path):
    write_network(tmp_path)
    arguments = [SCRIPT, *SMALL, "--run-folder", "run", "--seed", "NUMBER"]
    with Pair(tmp_path, *arguments) as pair:
        codes, printed = pair.wait()
    assert codes[1] == 2 and "init.py (process 1): All processes must have the same" in printed[1], printed
    assert "SEED" in printed[1] and codes[0] != 0 and not (tmp_path / "run").exists()


@on_jax
def test_predictions_for_every_process_are_not_rounded_to_16_bits():
    code = """
from pipeline.settings import keras_settings
keras_settings.apply()
import keras, numpy as np
from pipeline.settings import devices
devices.distribute("2", 4)
devices.processes = lambda: (0, 2)
keras.config.set_dtype_policy("mixed_float16")
inputs = keras.Input((1,))
network = keras.Model(inputs, keras.layers.Rescaling(1.0, dtype="float32")(inputs))
outputs = devices.for_every_process(network).predict(np.float32([[1 + 2**-20], [70000]] * 2), verbose=0)
print(outputs.dtype, *outputs[:2].ravel().astype("float64"))
"""
    done = run_python("-c", code, **SEVERAL)
    assert done.stdout.splitlines()[-1].split() == ["float32", str(1 + 2**-20), "70000.0"], done.stderr


@on_jax
@pytest.mark.parametrize("taken", [False, True], ids=["nobody joins", "another program has the port"])
def test_processes_that_do_not_start_together_end_with_a_sentence(taken):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        if not taken:
            server.close()
        code = "from pipeline.settings import devices, process; devices.JOIN_SECONDS = 3\n"
        code += "process.run(lambda: devices.join('jax'))"
        together = {"JOB_ADDRESSES": address, "NUM_PROCESSES": "2", "PROCESS_ID": "0"}
        variables = {f"KERAS_DISTRIBUTION_{name}": value for name, value in together.items()}
        done = run_python("-c", code, **ONE_THREAD, **variables)
    assert done.returncode == 2, done.stderr
    assert ("no other program uses" if taken else "All 2 processes must start within 0.05 minutes") in done.stderr
    assert address in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("processes", "process", "address", "words"),
    [
        ("", "1", "here:1", "KERAS_DISTRIBUTION_NUM_PROCESSES must be a whole number"),
        ("0", "0", "here:1", "KERAS_DISTRIBUTION_NUM_PROCESSES must be a whole number"),
        ("two", "0", "here:1", "KERAS_DISTRIBUTION_NUM_PROCESSES must be a whole number"),
        ("2", "", "here:1", "KERAS_DISTRIBUTION_PROCESS_ID must be a whole number"),
        ("2", "2", "here:1", "KERAS_DISTRIBUTION_PROCESS_ID must be from 0 to 1"),
        ("2", "1", "", "KERAS_DISTRIBUTION_JOB_ADDRESSES must be the first machine's HOST:PORT"),
        ("2", "1", "here:x", "KERAS_DISTRIBUTION_JOB_ADDRESSES must be the first machine's HOST:PORT"),
    ],
)
def test_wrong_variables_of_several_processes_are_named(processes, process, address, words, monkeypatch):
    monkeypatch.setenv("KERAS_DISTRIBUTION_NUM_PROCESSES", processes)
    monkeypatch.setenv("KERAS_DISTRIBUTION_PROCESS_ID", process)
    monkeypatch.setenv("KERAS_DISTRIBUTION_JOB_ADDRESSES", address)
    with pytest.raises(InputError, match=words):
        devices.processes()


def test_the_variables_of_several_processes(monkeypatch):
    assert devices.processes() == (0, 1)
    monkeypatch.setenv("KERAS_DISTRIBUTION_NUM_PROCESSES", "4")
    monkeypatch.setenv("KERAS_DISTRIBUTION_PROCESS_ID", "3")
    monkeypatch.setenv("KERAS_DISTRIBUTION_JOB_ADDRESSES", "node1:3333,node2:3333,node3:3333,node4:3333")
    assert devices.processes() == (3, 4)
    with pytest.raises(InputError, match="`KERAS_BACKEND` must be jax"):
        devices.join("torch")
    rows = [devices.Devices(8, number, 4).rows(24) for number in range(4)]
    assert [(each.start, each.stop) for each in rows] == [(0, 6), (6, 12), (12, 18), (18, 24)]


@on_jax
@pytest.mark.parametrize(
    ("wanted", "rows", "words"),
    [("64", 64, "`DEVICES` must be at most 4"), ("3", 128, "`DEVICES` must divide a batch")],
)
def test_a_number_of_devices_that_is_not_possible_is_refused(wanted, rows, words):
    code = (
        "from pipeline.settings import keras_settings; keras_settings.apply()\n"
        f"from pipeline.settings import devices; devices.distribute('{wanted}', {rows})"
    )
    done = run_python("-c", code, **SEVERAL)
    assert done.returncode == 1 and words in done.stderr


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="about the other backends")
def test_the_other_backends_use_one_device_and_say_which_backend_uses_all(monkeypatch, capsys):
    with pytest.raises(InputError, match=r"`DEVICES` must be 1 on .*KERAS_BACKEND=jax"):
        devices.distribute("2", 128)
    assert devices.distribute("auto", 128) == devices.distribute("1", 128) == devices.Devices(1, 0, 1)
    assert devices.device_count() == 1
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(devices, "_gpus", lambda backend: 4)
    assert devices.distribute("auto", 128).count == 1
    assert "One of 4 GPUs is used" in (printed := capsys.readouterr().out) and "KERAS_BACKEND=jax" in printed
