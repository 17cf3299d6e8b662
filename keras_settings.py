"""Makes the `keras.json` beside this file take effect, without a copy in a home folder.

Keras itself reads `keras.json` from `KERAS_HOME` (else `~/.keras`), once, when it is imported, and falls back
to channels_last without a word if that file is missing or malformed. `KERAS_HOME` would also move the downloaded
weights and data sets away from the cache that a user already has. So the settings are applied here instead.
"""

import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path

from command_line import InputError

SETTINGS_FILE = Path(__file__).with_name("keras.json")


def apply():
    """Imports Keras with the settings of `keras.json`. Call it before anything else imports Keras.

    The environment variable `KERAS_BACKEND` wins over the file's `backend`, as it does in Keras.

    Raises:
        InputError: if `keras.json` cannot be read, lacks a setting or has a wrong one, or names a backend that is
            not installed.
    """
    try:
        settings = json.loads(SETTINGS_FILE.read_text(encoding="utf-8"))
        backend = os.environ["KERAS_BACKEND"] = os.environ.get("KERAS_BACKEND") or settings["backend"]
        image_data_format, floatx, epsilon = (settings[key] for key in ("image_data_format", "floatx", "epsilon"))
    except OSError as error:
        raise InputError(f"`keras.json` must lie beside `init.py`. Received: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            "`keras.json` must be a JSON object with backend, image_data_format, floatx and epsilon. "
            f"Received: {type(error).__name__}: {error}"
        ) from error

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # notes; what is wrong it raises
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"  # or TensorFlow has no channels-first convolution on the CPU
    try:
        with _quiet_standard_error():
            import keras
    except (ImportError, ValueError) as error:  # not installed, or not known to Keras
        raise InputError(
            f"`KERAS_BACKEND` must name an installed backend: tensorflow, jax or torch. Received: {backend} ({error})"
        ) from error
    try:
        with _quiet_standard_error():
            keras.config.set_image_data_format(image_data_format)
            keras.config.set_floatx(floatx)
            keras.config.set_epsilon(epsilon)
            keras.ops.zeros(1)  # the first tensor wakes the device, which has notes of its own
    except ValueError as error:
        raise InputError(f"`keras.json` must have settings that Keras knows. Received: {error}") from error


def cache_folder():
    """The folder into which Keras downloads weights and data sets."""
    return Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser()


@contextlib.contextmanager
def _quiet_standard_error():
    """Holds back what libraries write to file descriptor 2, and lets it out if they fail."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held_back:
        os.dup2(held_back.fileno(), 2)
        try:
            yield
        except (ImportError, ValueError):
            raise  # told in one sentence by the caller
        except BaseException:
            held_back.seek(0)
            os.write(kept, held_back.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
