"""Keras with the project's settings, for every test."""

from pipeline.settings import keras_settings

keras_settings.apply()
