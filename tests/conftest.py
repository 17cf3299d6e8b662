"""Keras with the project's settings, for every test."""

import os

# Several processes may share a GPU: pytest's with -n, and the scripts that they run. So none takes all of its memory.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

from pipeline.settings import keras_settings

keras_settings.apply()
