"""Which checkpoints a run folder has, and which of them are removed."""

import contextlib
import os
from pathlib import Path

from pipeline import files

CROSS_ENTROPY_FOLDER = "cross_entropy"  # in the run folder, with the checkpoints of that training


def checkpoint_paths(folder: str | os.PathLike) -> list[Path]:
    """Paths of a run's checkpoints, newest first."""
    return sorted(Path(folder).glob("checkpoint-[0-9]*-[0-9]*.npz"), reverse=True)


def remove_checkpoints(folder: str | os.PathLike, keep: int = 0, newest: Path | None = None) -> None:
    """Removes the checkpoints of a run except `keep` of them: `newest` and those before it.

    Checkpoints after `newest` are corrupt, or the run would have resumed from them; they are removed too. If none is
    kept, those of the training with cross-entropy are removed too.
    """
    control = Path(folder, CROSS_ENTROPY_FOLDER)
    if not keep and control.is_dir():
        files.remove_partial_files(control)
        remove_checkpoints(control)
        with contextlib.suppress(OSError):  # files of somebody else
            control.rmdir()
    paths = checkpoint_paths(folder)
    first = paths.index(newest) if newest else 0
    for path in paths[:first] + paths[first + keep :]:
        path.unlink(missing_ok=True)
