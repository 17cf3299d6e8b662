"""Keras with the project's settings, for every test."""

import keras_settings

keras_settings.apply()
