"""The stages of a run: settings, data, training, report. Nothing here imports the scripts in the folder above."""
