"""The folder of a run: one run, one process at a time, and constants that do not change."""

import json
import os
import time
from pathlib import Path
from typing import Any

from pipeline import files, lock
from pipeline.checkpoint_files import CROSS_ENTROPY_FOLDER, checkpoint_paths, remove_checkpoints
from pipeline.errors import InputError
from pipeline.run_identity import changed_constants, changed_sources
from pipeline.settings import devices, process
from pipeline.settings.options import STARTED_WITH, with_new_names

# The files of a run, except its checkpoints.
FILES = (
    "report.txt",
    "report.json",
    "embedding_model.keras",
    "references.npz",
    "history.csv",
    "training_curves.png",
    "report.html",
    "audit.csv",
    "embeddings.csv",
    "metadata.tsv",
    "tensors.tsv",
    "projector_config.pbtxt",
    "embedding_map.png",  # of earlier versions, like the next two
    "confusion_matrix.png",
    "neighbours.png",
    "controls.npz",
    "controls.json",  # of earlier versions
    "cross_entropy.npz",
    "constants.json",
)
COPIED = ("constants.json", "controls.npz", "cross_entropy.npz")  # for each process that trains with the first
RESULTS = ("embedding_model.keras", "references.npz")  # a run without them is not finished
# Constants that do not mean that a finished model is to be trained further: it would not fit, has seen what is now
# tested, or is as it should be.
NEEDS_ANOTHER_START = (
    "CONTROL",
    "EXPORT_EMBEDDINGS",
    "DATASET",
    "BACKBONE",
    "EMBEDDING_SIZE",
    "HELD_OUT_CLASSES",
    "SEED",
    "TEST_FRACTION",
)
ADVICE = "choose another folder with --run-folder, or replace the run with --overwrite"
DEVICE_COUNT = "number of devices"  # in constants.json, of the last process
FIRST_TIME = 3653 * 24 * 3600  # seconds, 1980 and a day: checkpoints and models, as zip files, know no earlier time


def print_finished(folder: str, constants: dict[str, Any], overwrite: bool) -> bool:
    """Prints the report of the finished run in a folder, if there is one and it is not to be overwritten.

    Where several processes train together, the first one alone prints it and checks the folder.

    Args:
        folder: path of the run folder; it need not exist.
        constants: the constants of this command.
        overwrite: bool.

    Returns:
        Whether there is one.

    Raises:
        InputError: as `finished_report`.
    """
    if devices.processes()[0] > 0:  # it may be on another machine
        return not overwrite and bool(read_run(Path(folder))[1])
    report = finished_report(folder, None if overwrite else constants)
    if report:
        remove_checkpoints(folder)  # left if the process was killed before it removed them
        print(f"The run in {folder} is finished; --overwrite trains it again.\n\n{report}")
    return bool(report)


def finished_report(folder: str | os.PathLike, constants: dict[str, Any] | None) -> str:
    """The report of the finished run in a folder, or `""`.

    Args:
        folder: path of the run folder; it need not exist.
        constants: the constants of this command, or None if the run in the folder does not matter.

    Returns:
        str.

    Raises:
        InputError: if the clock is not set; if the folder is not writable, holds files that a run would replace but no
            run, or is in use by another process; if it holds a run with other constants (the message names them) that
            has trained; or a finished run without its model and references, and without a checkpoint from which to
            write them again.
    """
    import tempfile  # slow to import, and not needed to report a wrong constant

    folder = Path(folder)
    if (now := time.time()) < FIRST_TIME:
        raise InputError(f"The clock of this machine must be set. Received: {time.ctime(now)}")
    try:
        existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
        tempfile.TemporaryFile(dir=existing).close()  # `os.access` answers yes too often
    except (OSError, RuntimeError) as error:  # no permission, a name that is too long, a link to itself
        raise InputError(f"`RUN_FOLDER` must be a writable folder. Received: {str(folder)!r}") from error
    _check_no_foreign_files(folder)
    lock.check_not_in_use(folder)
    if constants is None:
        return ""
    stored, report = read_run(folder)
    if stored is None:
        return ""
    changed = changed_constants(stored, constants, any_path=not report)
    if changed and _has_trained(folder):
        named = "; ".join(f"{name} was {stored.get(name)!r}, now {constants.get(name)!r}" for name in changed)
        advice = ADVICE
        if report and not any(name in NEEDS_ANOTHER_START for name in changed):
            model = folder / "embedding_model.keras"
            advice = f"to train its model further, use --weights {model} with another --run-folder; or else {ADVICE}"
        raise InputError(f"`RUN_FOLDER` {str(folder)!r} has a run with other constants ({named}); {advice}.")
    missing = [name for name in RESULTS if not (folder / name).exists()]
    if report and missing and not checkpoint_paths(folder):
        raise InputError(f"`RUN_FOLDER` {str(folder)!r} has a finished run without {', '.join(missing)}; {ADVICE}.")
    return "" if missing else report


def start(
    folder: str | os.PathLike, constants: dict[str, Any], overwrite: bool, sources: dict[str, Any], of_devices: int = 1
) -> Path:
    """Creates a run folder, locks it against other processes, and writes the constants into it.

    Where several processes train together, the first alone does so. The others train in a temporary copy, in which
    each of them resumes from the same checkpoint.

    Args:
        folder: path.
        constants: the constants of this command.
        overwrite: bool, whether a run in the folder is removed first: its checkpoints, results and constants. A run
            that the same command started with `overwrite`, and that is not finished, is resumed instead. A run with
            other constants that has not trained yet is removed without it.
        sources: what else the run depends on, such as a checksum of its images; the keys are names for the user.
        of_devices: int, how many devices train; a line says so if a resumed run had another number.

    Returns:
        Path of the folder.

    Raises:
        InputError: if it is not writable, another process uses it or has just finished the run, or the run in it has
            other constants or sources.
    """
    sources = json.loads(json.dumps(sources))  # as they will be read again: no tuples
    is_first = devices.processes()[0] == 0
    folder = _start(Path(folder), constants, overwrite, sources, of_devices) if is_first else _temporary_folder()
    paths = [*(folder / name for name in COPIED), *checkpoint_paths(folder)]
    paths += checkpoint_paths(folder / CROSS_ENTROPY_FOLDER)
    devices.copy_from_first(folder, [path.relative_to(folder).as_posix() for path in paths if path.exists()])
    return folder


def _temporary_folder():
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp())
    process.at_end(lambda: shutil.rmtree(folder, ignore_errors=True))
    return folder


def _start(folder, constants, overwrite, sources, of_devices):
    """`start` of the first process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check_no_foreign_files(folder)
        if not lock.lock(folder):
            print(f"Warning: {folder} is on a file system without locks: never start two processes in this folder.")
        process.at_end(lambda: lock.unlock(folder))
        files.remove_partial_files(folder)
        replaced = overwrite and not _is_same_overwrite(folder, constants, sources)
        if replaced or not (_has_trained(folder) or _is_same_run(folder, constants, sources)):
            remove_checkpoints(folder)
            for name in FILES:  # the constants last: until then it is the old run
                (folder / name).unlink(missing_ok=True)
        if finished_report(folder, constants):  # of a process that was still running when this one started
            raise InputError(f"`RUN_FOLDER` {str(folder)!r} has a run that another process has just finished.")
        stored, _ = read_run(folder)
        changed = changed_sources(stored or {}, sources)
        if changed:
            raise InputError(f"`RUN_FOLDER` {str(folder)!r} has a run with other {', other '.join(changed)}; {ADVICE}.")
        before = (stored or {}).get(STARTED_WITH, {}).get(DEVICE_COUNT, 1)
        if before != of_devices and _has_trained(folder):
            print(f"Devices that train: {of_devices}, before {before}. Results differ by rounding alone.")
        kept = {name: value for name, value in constants.items() if name != "OVERWRITE"}
        started_with = {**sources, "OVERWRITE": overwrite}
        if of_devices > 1:
            started_with[DEVICE_COUNT] = of_devices
        text = json.dumps({**kept, STARTED_WITH: started_with}, indent=4) + "\n"
        files.write_text(folder / "constants.json", text)
    except OSError as error:
        raise InputError(f"`RUN_FOLDER` must be a writable folder. Received: {error}") from error
    return folder


def finish(folder: Path, report: str) -> None:
    """Writes the report, which marks a run as finished, and removes its checkpoints."""
    files.write_text(folder / "report.txt", report)
    remove_checkpoints(folder)


def read_run(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """The constants of the run in a folder, None if there is none, and its report, `""` if it is not finished.

    Raises:
        InputError: if a file cannot be read; its cause is the reason.
    """
    try:
        stored = json.loads((folder / "constants.json").read_text(encoding="utf-8"))
        if not isinstance(stored, dict):
            raise ValueError("constants.json has no constants")
        stored = with_new_names(stored)
        if not isinstance(stored.get(STARTED_WITH, {}), dict):
            raise ValueError(f"constants.json has a wrong entry, {STARTED_WITH!r}")
        report = folder / "report.txt"
        return stored, report.read_text(encoding="utf-8") if report.exists() else ""
    except FileNotFoundError:
        return None, ""
    except (OSError, ValueError) as error:
        raise InputError(
            f"`RUN_FOLDER` must be new or have a readable run. Received: {str(folder)!r} ({error}); {ADVICE}."
        ) from error


def _has_trained(folder):
    """Whether a folder has a result of training: a checkpoint, a report or a model."""
    checkpoints = checkpoint_paths(folder) + checkpoint_paths(folder / CROSS_ENTROPY_FOLDER)
    return bool(checkpoints) or any((folder / name).exists() for name in ("report.txt", *RESULTS))


def _is_same_run(folder, constants, sources):
    """Whether a folder has an unfinished run with these constants and sources."""
    stored, report = read_run(folder)
    if stored is None or report or changed_sources(stored, sources):
        return False
    return not changed_constants(stored, constants, any_path=True)


def _is_same_overwrite(folder, constants, sources):
    """Whether it is one that the same command has started with `overwrite`."""
    try:
        stored, _ = read_run(folder)
        if not _is_same_run(folder, constants, sources):
            return False
    except InputError:
        return False
    return bool(stored.get("OVERWRITE") or stored.get(STARTED_WITH, {}).get("OVERWRITE"))


def _check_no_foreign_files(folder):
    """Raises InputError if a folder has no run, but files that a run would replace or resume from."""
    if not (folder / "constants.json").exists():
        foreign = [name for name in FILES if (folder / name).exists()]
        foreign += [path.name for path in checkpoint_paths(folder)]
        if foreign:
            raise InputError(
                f"`RUN_FOLDER` must be new, empty or of an earlier run. Received: {str(folder)!r}, without a run, and "
                f"with files that a run would replace: {', '.join(foreign)}"
            )
