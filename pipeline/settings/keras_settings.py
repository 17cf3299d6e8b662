"""Imports Keras with the settings of the repository's `keras.json`, and chooses the precision for the device.

Keras itself reads a `keras.json` once, when it is imported, from `KERAS_HOME` or `~/.keras`. If that file is missing
or malformed, it silently uses channels_last. Setting `KERAS_HOME` would also hide the weights and data sets that a user
has already downloaded. So the settings are applied here.
"""

import contextlib
import json
import logging
import os
import platform
import sys
import traceback
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from pipeline.downloads import NO_DOWNLOAD
from pipeline.errors import InputError
from pipeline.settings import devices
from pipeline.settings.nvidia import BACKENDS, why_no_gpu

SETTINGS_FILE = Path(__file__).resolve().parents[2] / "keras.json"


def apply(trains: bool = False) -> None:
    """Imports Keras with the settings of `keras.json`. Call it before anything else imports Keras.

    The environment variable `KERAS_BACKEND` wins over the file's `backend`, as it does in Keras. GPU memory is taken as
    it is needed, unless the user's environment says otherwise.

    Args:
        trains: bool, whether this process joins those that train together (`devices.join`).

    Raises:
        InputError: if `keras.json` cannot be read or has a missing or wrong setting, the backend is not installed or is
            not the one that this notebook already uses, or Keras cannot be imported; the message has the reason.
    """
    try:
        settings = json.loads(SETTINGS_FILE.read_text(encoding="utf-8"))
        backend = os.environ["KERAS_BACKEND"] = os.environ.get("KERAS_BACKEND") or settings["backend"]
        image_data_format, floatx, epsilon = (settings[key] for key in ("image_data_format", "floatx", "epsilon"))
    except OSError as error:
        raise InputError(f"`keras.json` must be in the same folder as `init.py`. Received: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            "`keras.json` must be a JSON object with backend, image_data_format, floatx and epsilon. "
            f"Received: {type(error).__name__}: {error}"
        ) from error

    if backend not in BACKENDS or find_spec(backend) is None:
        raise InputError(f"`KERAS_BACKEND` must be one of {', '.join(BACKENDS)}, and installed. Received: {backend}")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # hides notes; TensorFlow raises its errors
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # the same of notes in Python, such as about retracing
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"  # or TensorFlow has no channels-first convolution on the CPU
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    if "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        with quiet_standard_error():
            import keras
    except Exception as error:  # a broken or half installed package raises whatever it meets
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise InputError(
            f"Keras and {backend} must be importable; to repair them: pip install --upgrade -r requirements.txt. "
            f"Received: {type(error).__name__}: {error} ({place.filename}, line {place.lineno})"
        ) from error
    if keras.backend.backend() != backend:
        used = keras.backend.backend()
        raise InputError(f"`KERAS_BACKEND` must stay {used} until the notebook is restarted. Received: {backend}")
    if trains:
        devices.join(backend)
    try:
        with quiet_standard_error():
            keras.config.set_image_data_format(image_data_format)
            keras.config.set_floatx(floatx)
            keras.config.set_epsilon(float(epsilon))
            keras.ops.zeros(1)  # the first tensor initialises the device, which prints notes of its own
    except (TypeError, ValueError) as error:
        raise InputError(f"`keras.json` must have settings that Keras knows. Received: {error}") from error


def set_seed(seed: int) -> None:
    """Seeds Python, NumPy and the backend; without TensorFlow's notes, which Keras seeds too where it is installed."""
    import keras

    with quiet_standard_error():
        keras.utils.set_random_seed(seed)


def set_precision(precision: str, image_size: int) -> str:
    """Sets Keras' dtype policy for this device, and prints the versions, the device and the policy.

    Args:
        precision: `"auto"`, mixed_float16 on a GPU and float32 on a CPU; or the name of a policy.
        image_size: int, height and width of the network's input in pixels.

    Returns:
        The name of the dtype policy.

    Raises:
        InputError: if `precision` is a 16-bit policy and there is no GPU, or the backend has no channels-first
            convolution on this device.
    """
    import keras

    is_cpu = on_cpu()
    if is_cpu and precision not in ("auto", "float32"):
        raise InputError(f'`PRECISION` must be "auto" or "float32" on a machine without a GPU. Received: {precision!r}')
    policy = ("float32" if is_cpu else "mixed_float16") if precision == "auto" else precision
    keras.config.set_dtype_policy(policy)
    backend, device = keras.backend.backend(), "the CPU (no GPU found)" if is_cpu else "a GPU"
    print(f"Keras {keras.__version__} on {backend}, on {device}, with precision {policy}")
    reason = why_no_gpu(backend) if is_cpu else ""
    if reason:
        print(f"Warning: this machine has an NVIDIA GPU that {backend} does not use. {reason}")
    if is_cpu and image_size > 64:
        print(
            f"Warning: without a GPU, training at IMAGE_SIZE = {image_size} may take days. A smaller --image-size is "
            f"faster. {NO_DOWNLOAD}"
        )
    try:
        keras.ops.conv(keras.ops.zeros((1, 3, 8, 8)), keras.ops.zeros((3, 3, 3, 4)), data_format="channels_first")
    except Exception as error:  # each backend raises a type of its own
        raise InputError(
            "`KERAS_BACKEND` must be a backend with channels-first convolutions on this machine, such as jax "
            f"(pip install jax; export KERAS_BACKEND=jax). Received: {backend} ({str(error)[:200]})"
        ) from error
    return policy


def environment() -> dict[str, str]:
    """The versions and the device that a run uses."""
    import keras

    backend = keras.backend.backend()
    packages = {name: version(name) for name in ("keras", backend, "numpy", "scikit-learn")}
    number, name = devices.device_count(), str(keras.ops.zeros(1).device).rsplit("device:")[-1]
    device = f"{f'{number} x ' * (number > 1)}{name}, {os.cpu_count()} CPU cores"
    return {
        "Python": platform.python_version(),
        **packages,
        "device": f"{device}, {platform.system()} on {platform.machine()}",
        "precision": keras.config.dtype_policy().name,
    }


def on_cpu() -> bool:
    """Whether Keras computes on a CPU."""
    import keras

    return "cpu" in str(keras.ops.zeros(1).device).lower()


@contextlib.contextmanager
def quiet_standard_error() -> Iterator[None]:
    """Holds back what libraries write to file descriptor 2, and prints it if they fail."""
    import tempfile  # slow to import, and not needed to report a wrong constant

    sys.stderr.flush()
    original = os.dup(2)
    with tempfile.TemporaryFile() as held_back:
        os.dup2(held_back.fileno(), 2)
        try:
            yield
        except (ImportError, ValueError):
            raise  # the caller reports it in one sentence
        except BaseException:
            held_back.seek(0)
            os.write(original, held_back.read())
            raise
        finally:
            os.dup2(original, 2)
            os.close(original)
