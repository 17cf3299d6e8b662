"""The project's keras.json and the precision; what must happen before Keras is imported, in a process of its own."""

import json
import random
import re
import shutil

import keras
import numpy as np
import pytest
from processes import ROOT, run_python

from pipeline.errors import InputError
from pipeline.settings import keras_settings

SETTINGS = json.loads((ROOT / "keras.json").read_text(encoding="utf-8"))
APPLY = "from pipeline.settings import keras_settings, process; process.run(keras_settings.apply)"
UNSET = {"KERAS_BACKEND": None, "KERAS_HOME": None, "TF_CPP_MIN_LOG_LEVEL": None}


def test_the_settings_win_over_those_of_the_users_home_and_of_tensorflow(tmp_path):
    """TensorFlow switches channels-first convolutions off on processors without AVX-512, as the variable does."""
    theirs = {"backend": "torch", "image_data_format": "channels_last", "floatx": "float16", "epsilon": 0.5}
    (tmp_path / "keras.json").write_text(json.dumps(theirs))
    code = (
        f"{APPLY}\nimport json, keras\n"
        "shape = keras.ops.conv(keras.ops.ones((1, 3, 8, 8)), keras.ops.ones((3, 3, 3, 4))).shape\n"
        "print(json.dumps([keras.backend.backend(), keras.config.image_data_format(), keras.config.floatx(), "
        "keras.config.epsilon(), list(shape)]))"
    )
    own = {"KERAS_HOME": str(tmp_path), "KERAS_BACKEND": "", "TF_ENABLE_ONEDNN_OPTS": "0"}  # empty is as good as unset
    done = run_python("-c", code, cwd=tmp_path, **UNSET | own)
    assert done.stderr == ""  # TensorFlow's notes are hidden
    assert SETTINGS["image_data_format"] == "channels_first"
    assert json.loads(done.stdout) == [SETTINGS[key] for key in theirs] + [[1, 4, 6, 6]]
    assert json.loads((tmp_path / "keras.json").read_text()) == theirs


def test_the_backend_of_the_environment_wins_and_one_that_is_not_installed_is_refused(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')")
    path = f"{tmp_path}:{ROOT}" if shutil.os.name == "posix" else f"{tmp_path};{ROOT}"
    done = run_python("-c", APPLY, **UNSET | {"KERAS_BACKEND": "torch", "PYTHONPATH": path})
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert re.match(r"-c: Keras and torch must be importable.*no torch here .*torch\.py, line 1", done.stderr)
    assert "KERAS_BACKEND" not in done.stderr  # which is right


def test_the_file_next_to_init_py_counts_and_an_unknown_backend_in_it_is_refused(tmp_path):
    shutil.copytree(ROOT / "pipeline", tmp_path / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "keras.json").write_text(json.dumps(SETTINGS | {"backend": "theano"}))
    done = run_python("-c", APPLY, cwd=tmp_path, **UNSET | {"PYTHONPATH": str(tmp_path)})
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert re.match("-c: `KERAS_BACKEND` must be one of .*theano", done.stderr), done.stderr


IN_USE = SETTINGS | {"backend": keras.backend.backend()}  # as in this process, which cannot take another one
WRONG = {
    "no file": (None, "`keras.json` must be in the same folder as `init.py`"),
    "not text": (b"\x89PNG\xff", "`keras.json` must be a JSON object"),
    "not JSON": (b"{'backend': ", "`keras.json` must be a JSON object"),
    "a list": (b"[1, 2]", "`keras.json` must be a JSON object"),
    "a missing setting": ({"backend": "tensorflow"}, "`keras.json` must be .*'image_data_format'"),
    "a backend that is not text": (SETTINGS | {"backend": None}, "`keras.json` must be a JSON object"),
    "an unknown format": (IN_USE | {"image_data_format": "first"}, "`keras.json` must have .*first"),
    "an unknown precision": (IN_USE | {"floatx": "float17"}, "`keras.json` must have .*float17"),
    "a list as precision": (IN_USE | {"floatx": ["float32"]}, "`keras.json` must have .*list"),
    "an epsilon that is not a number": (IN_USE | {"epsilon": "small"}, "`keras.json` must have .*small"),
}


@pytest.mark.parametrize(("content", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_refused_in_one_sentence(content, message, tmp_path, monkeypatch):
    path = tmp_path / "keras.json"
    monkeypatch.setattr(keras_settings, "SETTINGS_FILE", path)
    monkeypatch.setenv("KERAS_BACKEND", "")  # so that the file's backend counts; restored with the environment
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    before = keras.config.image_data_format(), keras.config.floatx(), keras.config.epsilon()
    with pytest.raises(InputError, match=message) as caught:
        keras_settings.apply()
    assert "\n" not in str(caught.value)
    assert (keras.config.image_data_format(), keras.config.floatx(), keras.config.epsilon()) == before


@pytest.fixture
def on_device(monkeypatch):
    """A function that makes Keras' tensors claim to be on a device; the dtype policy is restored afterwards."""

    class Tensor:
        def __init__(self, device):
            self.device = device

    policy = keras.config.dtype_policy()
    monkeypatch.setattr(keras.ops, "conv", lambda *given, **named: None)
    yield lambda device: monkeypatch.setattr(keras.ops, "zeros", lambda shape: Tensor(device))
    keras.config.set_dtype_policy(policy)


CPUS = ["/job:localhost/replica:0/task:0/device:CPU:0", "TFRT_CPU_0", "cpu"]  # TensorFlow's, JAX's and PyTorch's names
GPUS = ["/job:localhost/replica:0/task:0/device:GPU:0", "cuda:0"]
POLICIES = ["float32", "mixed_float16", "mixed_bfloat16"]


def test_the_seed_repeats_all_random_numbers():
    def drawn():
        numbers = random.random(), np.random.standard_normal()  # noqa: NPY002 - what Keras seeds
        return *numbers, *keras.ops.convert_to_numpy(keras.random.normal((4,))).tolist()

    keras_settings.set_seed(3)
    first, second = drawn(), drawn()
    keras_settings.set_seed(3)
    assert drawn() == first != second


@pytest.mark.parametrize("device", CPUS + GPUS)
def test_the_precision_follows_the_device(device, on_device, capsys):
    on_device(device)
    on_cpu = device in CPUS
    automatic = "float32" if on_cpu else "mixed_float16"
    for precision in ["auto", *POLICIES]:
        expected = automatic if precision == "auto" else precision
        if on_cpu and expected != "float32":
            with pytest.raises(InputError, match=f"`PRECISION` must be .*float32.* GPU. Received: '{precision}'"):
                keras_settings.set_precision(precision, 32)
            continue
        assert keras_settings.set_precision(precision, 32) == expected
        assert keras.config.dtype_policy().name == expected
        printed = capsys.readouterr().out
        assert expected in printed and ("no GPU" in printed) == on_cpu


@pytest.mark.parametrize(("device", "size", "warned"), [("cpu", 64, False), ("cpu", 65, True), ("cuda:0", 224, False)])
def test_large_images_without_a_gpu_are_warned_about(device, size, warned, on_device, capsys):
    on_device(device)
    keras_settings.set_precision("auto", size)
    assert ("Warning" in capsys.readouterr().out) == warned


def test_a_backend_without_channels_first_convolutions_is_refused(on_device, monkeypatch):
    """Before any data are loaded."""

    def refuse(*given, **named):
        raise RuntimeError("only NHWC here")

    monkeypatch.setattr(keras.ops, "conv", refuse)
    on_device("cpu")
    with pytest.raises(InputError, match=r"`KERAS_BACKEND` must be .*channels-first.*jax.*only NHWC here"):
        keras_settings.set_precision("float32", 32)


def test_channels_first_convolutions_are_tried_on_this_machine():
    policy = keras.config.dtype_policy()
    assert keras_settings.set_precision("float32", 32) == "float32"
    keras.config.set_dtype_policy(policy)
