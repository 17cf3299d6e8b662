"""Where Keras keeps what it downloads, and what to do when a download fails."""

import os
from pathlib import Path

from pipeline.errors import InputError

NO_DOWNLOAD = "To try the project without any download: python init.py --constants examples/digits.json"


def cache_folder() -> Path:
    """The folder into which Keras downloads weights and data sets: in /tmp, if there is no writable home folder."""
    home = os.environ.get("KERAS_HOME") or os.path.expanduser("~")
    folder = Path(home) if "KERAS_HOME" in os.environ else Path(home, ".keras")
    return folder if os.access(home, os.W_OK) else Path("/tmp", ".keras")


def failed(what: str, error: Exception, address: str, place: Path) -> InputError:
    """The error to raise when Keras could not download a file.

    Args:
        what: what was downloaded, such as `"CIFAR-10"`.
        error: Keras' exception.
        address: URL, or a description, of the file.
        place: where Keras would find it on the disk.

    Returns:
        An `InputError` whose message says how to put the file in place by hand.
    """
    return InputError(
        f"{what} could not be downloaded ({error}). Download {address} by hand and save it as {place}. {NO_DOWNLOAD}"
    )
