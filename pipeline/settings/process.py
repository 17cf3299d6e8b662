"""How the process ends: exit codes, signals, closed output, failing disks, no memory, each with one sentence."""

import builtins
import contextlib
import errno
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.errors import InputError, Interrupted
from pipeline.files import DEVICE_FAILED

NO_SPACE_OR_ACCESS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
SIGPIPE = 13  # also on systems that have no such signal
# What stops training with a checkpoint: besides Ctrl-C, Docker's and Slurm's SIGTERM, the SIGUSR1 that Slurm sends
# before its time limit, and the end of an ssh session.
STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name)]
# Words in the errors of NumPy, TensorFlow, JAX, PyTorch, CUDA and the system when memory runs out.
OUT_OF_MEMORY = re.compile(
    "out of memory|resource ?_?exhausted|OOM when allocating|can't allocate memory|cannot allocate memory|"
    "not enough memory|can't start new thread|unable to allocate|failed to allocate|bad_alloc|STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)
OWN_MODULES = ("pipeline", "fine_tune_model", "triplet_loss_functions")
PEER_ENDED = re.compile(r"\bgloo\b|\bnccl\b|coordination service|connection (closed|reset) by peer", re.IGNORECASE)
_at_end = []  # functions that `run` calls when the main function has ended
_process = None  # the number of this process, if several train together


def run(main: Callable[[], object], trains: bool = True) -> None:
    """Runs `main`; where it is stopped early, prints one sentence and ends the process.

    The sentence says how to resume if `main` trains. The exit code is 2 for `InputError`, for a missing package, for a
    disk that fails and for too little memory, and 128 plus the signal's number for `STOP_SIGNALS` and a closed standard
    output (`| head`).
    """
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not in a notebook
            # Names that the terminal's encoding does not have are escaped; each line appears at once, in a file too.
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
    if not in_notebook():  # the figures need no window, and a notebook's own backend may be missing here
        os.environ["MPLBACKEND"] = "agg"
    try:
        main()
        sys.stdout.flush()
        return
    except BaseException as error:
        ending = _ending(error, trains)
        if ending is None and _process is None:
            raise
        code, sentence = ending or (1, traceback.format_exc())
        all_stop = isinstance(error, Interrupted)
    finally:
        while _at_end:
            _at_end.pop()()
    _print_error(_named(sentence) if code == 2 else sentence)
    _flush(sys.stdout)
    if _process is not None and not all_stop:
        os._exit(code)  # at a normal exit JAX would wait for the other processes, which wait for this one
    sys.exit(code)


def end(sentence: str) -> None:
    """Ends the process as `InputError` does, from another thread, while no exception would reach the main one."""
    _print_error(_named(sentence))
    os._exit(2)


def _named(sentence):
    """A sentence after the name of the script and, of several that train together, the number of the process."""
    which = "" if _process is None else f" (process {_process})"
    return f"{Path(sys.argv[0]).name}{which}: {sentence}"


def _ending(error: BaseException, trains: bool) -> tuple[int, str] | None:
    """The exit code and the sentence for an exception, None for one that is a bug or SystemExit."""
    match error:
        case KeyboardInterrupt() if not trains:
            return 128 + signal.SIGINT, "Stopped."
        case BrokenPipeError() if not trains:
            return 128 + SIGPIPE, ""
        case InputError():
            return 2, str(error)
        case Interrupted(saved=True):
            return 128 + error.signal_number, "Stopped. A checkpoint was saved: run the same command to resume."
        case Interrupted():
            reason = "The weights were not finite and were not saved: lower LEARNING_RATE."
            return 128 + error.signal_number, f"Stopped. {reason}"
        case KeyboardInterrupt():
            resumes = "The same command resumes from the last checkpoint, if there is one."
            return 128 + signal.SIGINT, f"Stopped. {resumes}"
        case BrokenPipeError():
            return 128 + SIGPIPE, "Stopped: the output was closed. The same command resumes from the last checkpoint."
        case OSError(errno=number) if number in NO_SPACE_OR_ACCESS + DEVICE_FAILED:
            rule = "the disks of `RUN_FOLDER`, `DATASET` and the output must be accessible and have free space"
            return 2, f"{rule}. Received: {error}"
        case ModuleNotFoundError(name=str(module)) if module.partition(".")[0] not in OWN_MODULES:
            return 2, f"the package {module} must be installed: pip install -r requirements.txt"
        case Exception() if is_out_of_memory(error):
            rule = "`IMAGES_PER_CLASS` or `IMAGE_SIZE` must be smaller, since memory ran out"
            return 2, f"{rule if trains else 'memory ran out'}. Received: {in_short(error)}"
        case Exception() if _process is not None and PEER_ENDED.search(str(error)):
            resumes = "the same commands resume from the last checkpoint, if there is one"
            return 2, f"another process of this run has ended, see its message; {resumes}. Received: {in_short(error)}"
    return None


def at_end(function: Callable[[], object]) -> None:
    """Calls a function when the main function has ended: in a notebook, the process lives on."""
    _at_end.append(function)


def is_one_of_several(number: int) -> None:
    """Says which of the processes that train together this one is; its errors then have the number, from 0."""
    global _process
    _process = number


def in_notebook() -> bool:
    """Whether the process is one of IPython, which a notebook or `%run` keeps using afterwards."""
    return hasattr(builtins, "__IPYTHON__")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of any backend, or of NumPy, means that the host's or the GPU's memory ran out."""
    return isinstance(error, MemoryError) or bool(OUT_OF_MEMORY.search(f"{type(error).__name__}: {error}"))


def in_short(error: BaseException) -> str:
    """The type of an error and its message, or the part of it about memory, in one short line."""
    message = " ".join(str(error).split())
    found = OUT_OF_MEMORY.search(message)
    start = max(0, found.start() - 60) if found and found.start() > 100 else 0
    return f"{type(error).__name__}: {'... ' * (start > 0)}{message[start : start + 150]}"


@contextlib.contextmanager
def silent_interrupts() -> Iterator[None]:
    """Lets Ctrl-C end the process at once and silently, as the system does by default.

    It is for slow imports, in which extension modules may turn KeyboardInterrupt into an ImportError, or ignore it. The
    process of a notebook must survive, so there it does nothing.
    """
    previous = signal.getsignal(signal.SIGINT)
    is_main_thread = threading.current_thread() is threading.main_thread()
    if previous is not signal.default_int_handler or not is_main_thread or in_notebook():
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


@contextlib.contextmanager
def stop_requests(request_stop: Callable[[int], None]) -> Iterator[None]:
    """Turns `STOP_SIGNALS` and a closed standard output into a call of `request_stop(signal_number)`.

    A second signal raises KeyboardInterrupt. SIGHUP stays ignored under `nohup`. Outside the main thread, which alone
    receives signals, it does nothing.
    """
    requested = []

    def handle(number, frame):
        if requested:
            raise KeyboardInterrupt
        requested.append(number)
        request_stop(number)
        with contextlib.suppress(OSError):  # a closed terminal; and not `print`, which a signal may interrupt
            os.write(2, b"\nStopping after this step with a checkpoint. Press Ctrl-C again to stop at once.\n")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    under_nohup = hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    handled = [number for number in STOP_SIGNALS if not (under_nohup and number == signal.SIGHUP)]
    previous = {number: signal.signal(number, handle) for number in handled}
    try:
        with contextlib.redirect_stdout(_Output(sys.stdout, request_stop)):
            yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class _Output:
    """A stream that calls `request_stop` once its other end is closed, and from then on discards what is written."""

    def __init__(self, stream, request_stop):
        self.stream, self.request_stop = stream, request_stop

    def write(self, text):
        with self._requesting_stop():
            self.stream.write(text)
        return len(text)

    def flush(self):
        with self._requesting_stop():
            self.stream.flush()

    @contextlib.contextmanager
    def _requesting_stop(self):
        try:
            yield
        except OSError:  # a pipe, a terminal or a disk at its other end
            self.request_stop(SIGPIPE)

    def __getattr__(self, name):
        return getattr(self.stream, name)


def _print_error(sentence):
    with contextlib.suppress(OSError):
        print(sentence, end="\n" * bool(sentence), file=sys.stderr)
    _flush(sys.stderr)


def _flush(stream):
    """Flushes a stream; if its other end is closed, sends the rest to the null device."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # or Python would report it at exit
