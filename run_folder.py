"""The folder of a run: begun once, by one process at a time, with constants that stay; its files whole or not there."""

import contextlib
import json
import os
import tempfile
import zlib
from pathlib import Path

from command_line import DATASET_CLASSES, InputError

# Constants that may change between two commands of one run.
FREE = ("RUN_FOLDER", "START_AFRESH", "CHECKPOINT_MINUTES")
# What a run leaves, without its checkpoints.
FILES = (
    "report.txt",
    "report.json",
    "embedding_model.keras",
    "references.npz",
    "history.csv",
    "training_curves.png",
    "confusion_matrix.png",
    "embedding_map.png",
    "neighbours.png",
    "controls.json",
    "constants.json",
)
RESULTS = ("embedding_model.keras", "references.npz")  # without which a run is not finished
SOURCES = "begun with"  # beside the constants in constants.json
AFRESH = "name another with --run-folder, or begin it again with --start-afresh True"
_locks = {}  # files that stay open as long as the process lives, by folder


def finished_report(folder, constants):
    """The report of the finished run in a folder, or `""`.

    Args:
        folder: path of the run folder, which need not exist.
        constants: dict of the constants of the command, or None if the run in the folder does not matter.

    Returns:
        str.

    Raises:
        InputError: if the folder cannot be written, holds files that a run would replace and no run, another process
            runs in it, it holds a run, finished or not, with other constants (it names those that differ), or a
            finished one without its model and references, and no checkpoint to make them from.
    """
    folder = Path(folder)
    try:
        existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
        tempfile.TemporaryFile(dir=existing).close()  # not `os.access`, which is sure of too much
    except (OSError, RuntimeError) as error:  # closed, too long, a link to itself, below a folder that is closed
        raise InputError(f"`RUN_FOLDER` must be a folder that can be written. Received: {str(folder)!r}") from error
    _refuse_foreign(folder)
    _refuse_if_in_use(folder)
    if constants is None:
        return ""
    begun, report = _stored(folder)
    if begun is None:
        return ""
    differing = _differing(begun, constants, FREE)
    if differing:
        named = "; ".join(f"{name} {begun.get(name)!r} there, {constants.get(name)!r} now" for name in differing)
        raise InputError(f"`RUN_FOLDER` {str(folder)!r} holds a run begun with other constants ({named}); {AFRESH}.")
    gone = [name for name in RESULTS if not (folder / name).exists()]
    if report and gone and not checkpoints(folder):
        raise InputError(
            f"`RUN_FOLDER` {str(folder)!r} holds a finished run whose {', '.join(gone)} has been removed; {AFRESH}."
        )
    return "" if gone else report


def begin(folder, constants, afresh, sources):
    """Makes a run folder, keeps other processes out of it, and writes the constants into it.

    Args:
        folder: path.
        constants: dict of the constants, to be written as JSON.
        afresh: bool, whether a run in the folder is removed first: its checkpoints, results and constants. One that
            the same command began afresh, and that is not finished, goes on.
        sources: dict of what else the run goes by, such as a checksum of its images, by names for the user.

    Returns:
        `pathlib.Path` of the folder.

    Raises:
        InputError: if it cannot be written, another process runs in it or has finished there, or the run in it has
            other constants or sources.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_foreign(folder)
        _lock(folder)
        for left in folder.glob(".part.*"):  # by a process that was killed while it wrote
            left.unlink()
        if afresh and not _goes_on(folder, constants, sources):
            remove_checkpoints(folder)
            for name in FILES:  # its constants last, so that until then it is the old run
                (folder / name).unlink(missing_ok=True)
        if finished_report(folder, constants):  # by a process that was still at it when this one began
            raise InputError(f"`RUN_FOLDER` {str(folder)!r} holds a run that has just finished; it is left as it is.")
        begun, _ = _stored(folder)
        changed = _changed(begun or {}, sources)
        if changed:
            raise InputError(
                f"`RUN_FOLDER` {str(folder)!r} holds a run begun with other {', other '.join(changed)}; {AFRESH}."
            )
        write_whole(folder / "constants.json", json.dumps({**constants, SOURCES: sources}, indent=4) + "\n")
    except OSError as error:
        raise InputError(f"`RUN_FOLDER` must be a folder that can be written. Received: {error}") from error
    return folder


def _stored(folder):
    """The constants of the run in a folder, None if there is none, and its report, `""` if it is not finished."""
    try:
        begun = json.loads((folder / "constants.json").read_text(encoding="utf-8"))
        if not isinstance(begun, dict):
            raise ValueError("constants.json has no constants")
        return begun, (folder / "report.txt").read_text(encoding="utf-8") if (folder / "report.txt").exists() else ""
    except FileNotFoundError:
        return None, ""
    except (OSError, ValueError) as error:
        raise InputError(
            f"`RUN_FOLDER` must hold a run that can be read, or be new. Received: {str(folder)!r} ({error}); {AFRESH}."
        ) from error


def _differing(begun, constants, free):
    """Names of the constants that are not those of a run, those aside that are free to change."""
    names = {*begun, *constants} - {*free, SOURCES}
    return sorted(name for name in names if not _same(name, begun.get(name), constants.get(name)))


def _same(name, first, second):
    """Whether two values of a constant are equal, or paths of the same images."""
    paths = name == "DATASET" and isinstance(first, str) and not {first, second} & set(DATASET_CLASSES)
    return first == second or (paths and os.path.realpath(first) == os.path.realpath(second))


def _changed(begun, sources):
    """Names of the sources that are not those of a run."""
    before = begun.get(SOURCES) or {}
    return [name for name, value in sources.items() if before.get(name, value) != value]


def _refuse_foreign(folder):
    """Raises InputError for a folder without a run whose files a run would replace, or take for its own."""
    if not (folder / "constants.json").exists():
        foreign = [name for name in FILES if (folder / name).exists()] + [path.name for path in checkpoints(folder)]
        if foreign:
            raise InputError(
                f"`RUN_FOLDER` must be new, empty or of an earlier run. Received: {str(folder)!r}, with no run in it "
                f"and files that a run would replace: {', '.join(foreign)}"
            )


def _goes_on(folder, constants, sources):
    """Whether a folder holds an unfinished run that the same command, START_AFRESH included, has begun."""
    try:
        begun, report = _stored(folder)
    except InputError:
        return False
    if begun is None or report or _changed(begun, sources):
        return False
    return not _differing(begun, constants, set(FREE) - {"START_AFRESH"})


def finish(folder, report):
    """Writes the report, which says that a run is finished, and removes its checkpoints."""
    write_whole(Path(folder) / "report.txt", report)
    remove_checkpoints(folder)


def checkpoints(folder):
    """Paths of a run's checkpoints, newest first."""
    return sorted(Path(folder).glob("checkpoint-[0-9]*-[0-9]*.npz"), reverse=True)


def remove_checkpoints(folder, kept=0, newest=None):
    """Removes the checkpoints of a run but `kept` of them: `newest`, and those before it.

    If there are some after `newest`, the run did not go on from them, since they are damaged.
    """
    paths = checkpoints(folder)
    first = paths.index(newest) if newest else 0
    for path in paths[:first] + paths[first + kept :]:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def whole(path):
    """Gives a path to write at, beside `path`, whose name the file gets only when it is whole and on the disk."""
    path = Path(path)
    beside = path.with_name(f".part.{path.name}")
    try:
        yield beside
        with open(beside, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
        if os.name == "posix":  # the rename itself, too
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def written_whole(path):
    """Opens a binary file to write that gets its name only when it is whole and on the disk."""
    with whole(path) as beside, open(beside, "wb") as file:
        yield file


def write_whole(path, text):
    """Writes a text file whole, or not at all; raises InputError if it cannot be written."""
    try:
        with written_whole(path) as file:
            file.write(text.encode("utf-8"))
    except OSError as error:
        raise InputError(
            f"`RUN_FOLDER` must stay a folder that can be written, with room. Received: {error}"
        ) from error


def checksum(path):
    """An int by which a changed file is noticed (CRC-32); 0 where there is no such file."""
    return zlib.crc32(Path(path).read_bytes()) if Path(path).is_file() else 0


def remembered(path, compute):
    """The dict that was computed once and written as JSON at `path`, else what `compute()` gives, written there."""
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        if isinstance(values, dict):
            return values
    except (FileNotFoundError, ValueError):
        pass
    values = compute()
    write_whole(path, json.dumps(values, indent=4) + "\n")
    return values


def _refuse_if_in_use(folder):
    """Raises InputError if another process has locked a folder; leaves it unlocked."""
    if (folder / ".lock").exists() and os.path.realpath(folder) not in _locks:
        _lock(folder)
        _locks.pop(os.path.realpath(folder)).close()


def _lock(folder):
    """Locks a folder until the process ends, however it ends; raises InputError if another process has it."""
    file = open(folder / ".lock", "a+b")
    try:
        _lock_file(file)
    except BlockingIOError as error:
        file.close()
        raise InputError(
            f"`RUN_FOLDER` must not be in use by another process; one runs in {str(folder)!r}. Wait, or name another."
        ) from error
    _locks[os.path.realpath(folder)] = file


def _lock_file(file):
    if os.name == "posix":
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        import msvcrt

        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError(str(error)) from error
