"""The project's keras.json, each case in a process of its own, since Keras reads its settings once."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent
SETTINGS = json.loads((FOLDER / "keras.json").read_text(encoding="utf-8"))


def apply_settings(folder, **environment):
    """Applies the keras.json of a folder as init.py does, and prints what Keras made of it."""
    code = (
        "import command_line, keras_settings; command_line.run(keras_settings.apply); import json, keras; "
        "print(json.dumps([keras.backend.backend(), keras.config.image_data_format(), keras.config.floatx(), "
        "keras.config.epsilon()]))"
    )
    own = ("KERAS_BACKEND", "KERAS_HOME", "TF_CPP_MIN_LOG_LEVEL")
    environment = {name: value for name, value in os.environ.items() if name not in own} | environment
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)


def test_the_settings_win_over_those_of_the_users_home_and_nothing_else_is_printed(tmp_path):
    theirs = {"backend": "torch", "image_data_format": "channels_last", "floatx": "float16", "epsilon": 0.5}
    (tmp_path / "keras.json").write_text(json.dumps(theirs))
    done = apply_settings(FOLDER, KERAS_HOME=str(tmp_path), KERAS_BACKEND="")  # empty is as good as unset
    assert done.stderr == ""
    assert SETTINGS["image_data_format"] == "channels_first"
    assert json.loads(done.stdout) == [SETTINGS[key] for key in theirs]
    assert json.loads((tmp_path / "keras.json").read_text()) == theirs


def test_channels_first_convolutions_work_on_the_cpu_also_where_tensorflow_switches_them_off():
    """As it does by itself on processors without AVX-512."""
    code = (
        "import keras_settings; keras_settings.apply(); import keras; "
        "print(keras.ops.conv(keras.ops.ones((1, 3, 8, 8)), keras.ops.ones((3, 3, 3, 4))).shape)"
    )
    environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": "0"}
    done = subprocess.run([sys.executable, "-c", code], cwd=FOLDER, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "(1, 4, 6, 6)", done.stderr


def test_the_backend_of_the_environment_wins_and_one_that_is_not_installed_is_told(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')")
    done = apply_settings(FOLDER, KERAS_BACKEND="torch", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert re.match("-c: `KERAS_BACKEND` must name an installed backend.* torch .*no torch here", done.stderr)


WRONG = {
    "no file": (None, "`keras.json` must lie beside `init.py`"),
    "no JSON": ("{'backend': ", "`keras.json` must be a JSON object"),
    "a list": ("[1, 2]", "`keras.json` must be a JSON object"),
    "a setting missing": (json.dumps({"backend": "tensorflow"}), "`keras.json` must be .*'image_data_format'"),
    "no text": (json.dumps(SETTINGS | {"backend": None}), "`keras.json` must be a JSON object"),
    "an unknown backend": (json.dumps(SETTINGS | {"backend": "theano"}), "`KERAS_BACKEND` must name .*theano"),
    "an unknown format": (json.dumps(SETTINGS | {"image_data_format": "first"}), "`keras.json` must have .*=first"),
}


@pytest.mark.parametrize(("content", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_told_in_one_line(content, message, tmp_path):
    for name in ("keras_settings.py", "command_line.py", "backbones.py"):
        shutil.copy(FOLDER / name, tmp_path)
    if content is not None:
        (tmp_path / "keras.json").write_text(content)
    done = apply_settings(tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert re.match(f"-c: {message}", done.stderr), done.stderr
