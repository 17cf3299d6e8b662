"""Validation, history, alarms, the learning rate, and checkpoints to resume from."""
