"""Several devices on JAX, made of one CPU: the losses, gradients and embeddings of one device, but for rounding."""

import json
import os
import subprocess
import sys
import time

import keras
import pytest
from processes import SCRIPT, run_python, run_script

from pipeline.errors import InputError
from pipeline.settings import devices

on_jax = pytest.mark.skipif(keras.backend.backend() != "jax", reason="JAX alone divides batches between devices")
SEVERAL = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "KERAS_BACKEND": "jax"}
SMALL = ("--dataset", "digits", "--backbone", "SmallConvNet", "--weights", "none", "--image-size", "8", "--epochs", "2")

GRADIENTS = """
import json, sys
from pipeline.settings import keras_settings
keras_settings.apply()
import keras, numpy as np
from fine_tune_model import fine_tuned_models, triplet_model
from pipeline.data.batches import Batches, in_order, training_batches
from pipeline.data.splits import Images
from pipeline.settings import devices
from triplet_loss_functions import InBatchTripletLoss, MergeTripletLoss

labels = np.repeat(np.arange(5, dtype="int32"), 13)
data = Images(np.random.default_rng(0).integers(0, 256, (65, 3, 8, 8), "uint8"), labels)
for name in ("batch_all", "batch_hard", "semi_hard", "all_semi_hard", "merge"):
    found = []
    for number in (1, 2):
        parallel = devices.distribute(str(number), 16)
        keras.utils.set_random_seed(0)
        model = fine_tuned_models((3, 8, 8), 8, "scale", "SmallConvNet", "none", 0, 16)
        merge = name == "merge"
        trained = triplet_model(model) if merge else keras.Model(model.inputs, model.outputs)
        loss = MergeTripletLoss(0.3) if merge else InBatchTripletLoss(0.3, name)
        settings = ("merge", 4, 5) if merge else ("in_batch", 4, 4)
        batches = training_batches(data, list("abcde"), *settings, 0, "shift_flip")
        trained.compile(keras.optimizers.SGD(1.0), loss)
        start, values = model.get_weights(), []
        for batch in range(5):
            model.set_weights(start)
            values.append([float(np.asarray(trained.train_on_batch(*batches[batch])))])
            trained.reset_metrics()
            changes = [(one - two).ravel() for one, two in zip(model.get_weights(), start)]
            values[-1] += np.concatenate(changes).tolist()
        model.set_weights(start)
        embeddings = model.predict(Batches(data, in_order(65, 16, parallel)), verbose=0)[:65]
        on = {len(each.value.sharding.device_set) for each in model.trainable_variables}
        found.append((values, embeddings, on == {number}))
    (one, embedded, _), (two, others, _) = found
    differences = [np.linalg.norm(np.subtract(a, b)) / np.linalg.norm(a) for a, b in zip(one, two)]
    print(json.dumps([name, max(differences), float(np.abs(embedded - others).max()), all(each[2] for each in found)]))
"""


@on_jax
def test_losses_gradients_and_embeddings_on_two_devices_are_those_of_one():
    """The loss and the step of plain gradient descent from the same weights, for five batches of each loss."""
    done = run_python("-c", GRADIENTS, **SEVERAL)
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert [name for name, *_ in results] == ["batch_all", "batch_hard", "semi_hard", "all_semi_hard", "merge"]
    for name, difference, of_embeddings, as_many_devices in results:
        assert difference < 1e-5 and of_embeddings < 1e-5 and as_many_devices, name


@on_jax
def test_a_run_that_was_killed_resumes_on_another_number_of_devices(tmp_path):
    """An odd number of test images; and a second process that is not told how many devices there are."""
    settings = [*SMALL, "--images-per-class", "4", "--checkpoint-minutes", "0.0001", "--run-folder", tmp_path / "run"]
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
    assert "Resuming" in done.stdout and "devices" not in done.stdout
    assert json.loads((tmp_path / "run" / "report.json").read_text())["triplet loss"]["accuracy"] > 0.8


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
    assert devices.distribute("auto", 128) == devices.distribute("1", 128) == devices.device_count() == 1
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(devices, "_gpus", lambda backend: 4)
    assert devices.distribute("auto", 128) == 1
    assert "One of 4 GPUs is used" in (printed := capsys.readouterr().out) and "KERAS_BACKEND=jax" in printed
