"""The two exceptions that end a run with one sentence for its user instead of a traceback."""


class InputError(ValueError):
    """The user's input cannot be used. The message names the constant or file, and says what to do."""


class Interrupted(Exception):
    """The user or the system asked training to stop.

    Args:
        signal_number: int, the signal that asked for it.
        saved: bool, whether a checkpoint was written.
    """

    def __init__(self, signal_number: int, saved: bool):
        super().__init__(signal_number, saved)
        self.signal_number, self.saved = signal_number, saved
