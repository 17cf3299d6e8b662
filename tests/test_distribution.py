"""Several devices on JAX, made of one CPU: the losses, weights and embeddings of one device, but for rounding."""

import csv
import json

import keras
import numpy as np
import pytest
from processes import run_python, run_script

from pipeline.errors import InputError
from pipeline.settings import devices

on_jax = pytest.mark.skipif(keras.backend.backend() != "jax", reason="JAX alone divides batches between devices")
SEVERAL = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "KERAS_BACKEND": "jax"}
SMALL = ("--dataset", "digits", "--backbone", "SmallConvNet", "--weights", "none", "--image-size", "8", "--epochs", "2")

TRAINS = """
import json, sys
from pathlib import Path
from pipeline.settings import keras_settings
keras_settings.apply()
import keras, numpy as np
from fine_tune_model import fine_tuned_models, triplet_model
from pipeline.data.batches import Batches, in_order, training_batches
from pipeline.data.splits import Images
from pipeline.settings import devices
from triplet_loss_functions import InBatchTripletLoss, MergeTripletLoss

generator = np.random.default_rng(0)
labels = np.repeat(np.arange(5, dtype="int32"), 13)
data = Images(generator.integers(0, 256, (65, 3, 8, 8), "uint8"), labels)
results = []
for number in map(int, sys.argv[2:]):
    keras.distribution.set_distribution(None)
    parallel = devices.distribute(str(number), 16)
    keras.utils.set_random_seed(0)
    model = fine_tuned_models((3, 8, 8), 8, "scale", "SmallConvNet", "none", 0, 16)
    merge = sys.argv[1] == "merge"
    trained = triplet_model(model) if merge else keras.Model(model.inputs, model.outputs)
    loss = MergeTripletLoss(0.3) if merge else InBatchTripletLoss(0.3, sys.argv[1])
    settings = ("merge" if merge else "in_batch"), 4, 4, 0, "shift_flip", 4
    batches = training_batches(data, list("abcde"), *settings)
    trained.compile(keras.optimizers.SGD(0.02), loss, metrics=loss.metrics())
    losses = []
    for epoch in range(2):
        batches.start_epoch(epoch)
        losses += trained.fit(batches, shuffle=False, verbose=0).history["loss"]
    embeddings = model.predict(Batches(data, in_order(65, 16, parallel)), verbose=0)[:65]
    on = {len(each.value.sharding.device_set) for each in model.trainable_variables}
    results.append([sorted(on), losses, embeddings.tolist()])
print(json.dumps(results))
"""


@on_jax
@pytest.mark.parametrize("loss", ["batch_all", "batch_hard", "semi_hard", "all_semi_hard", "merge"])
def test_two_devices_train_as_one_does(loss):
    """By gradient descent: Adam makes as large a step along a gradient of rounding errors as along any other."""
    done = run_python("-c", TRAINS, loss, 1, 2, **SEVERAL)
    assert done.returncode == 0, done.stderr
    (on_one, losses, embeddings), (on_two, *others) = json.loads(done.stdout.splitlines()[-1])
    assert (on_one, on_two) == ([1], [2]) and losses[0] != losses[1]
    np.testing.assert_allclose(others[0], losses, rtol=2e-5)
    np.testing.assert_allclose(others[1], embeddings, atol=1e-3)


@on_jax
def test_a_run_on_two_devices_has_the_report_of_one_and_resumes_on_another_number(tmp_path):
    settings = (*SMALL, "--images-per-class", "4", "--learning-rate", "3e-3")
    histories = []
    for number in (1, 2):
        done = run_script(*settings, "--devices", number, "--run-folder", f"run {number}", cwd=tmp_path, **SEVERAL)
        assert done.returncode == 0, done.stderr
        assert ("between 2 devices: cpu:0, cpu:1" in done.stdout) == (number == 2)
        with open(tmp_path / f"run {number}" / "history.csv", newline="") as file:
            histories.append([[float(value) for value in row] for row in list(csv.reader(file))[1:]])
    np.testing.assert_allclose(histories[0], histories[1], rtol=0.02)
    scores = [json.loads((tmp_path / f"run {number}" / "report.json").read_text()) for number in (1, 2)]
    assert scores[0]["raw pixels"] == scores[1]["raw pixels"]
    assert abs(scores[0]["triplet loss"]["accuracy"] - scores[1]["triplet loss"]["accuracy"]) < 0.02


@on_jax
@pytest.mark.parametrize(
    ("wanted", "batch_size", "words"),
    [("64", 64, "`DEVICES` must be at most 4"), ("3", 128, "`DEVICES` must divide CLASSES_PER_BATCH")],
)
def test_a_number_of_devices_that_is_not_possible_is_refused(wanted, batch_size, words):
    code = (
        "from pipeline.settings import keras_settings; keras_settings.apply()\n"
        f"from pipeline.settings import devices; devices.distribute('{wanted}', {batch_size})"
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
