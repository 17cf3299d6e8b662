"""Keras with the project's settings, for every test."""

import os

from pipeline.settings import keras_settings

if "PYTEST_XDIST_WORKER" in os.environ:  # each of several workers has a core, and so have the scripts that it starts
    os.environ.setdefault("OMP_NUM_THREADS", "1")
keras_settings.apply()
