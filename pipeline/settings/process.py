"""How the process ends: exit codes, signals, closed output and failing disks, each with one sentence."""

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.errors import InputError, Interrupted

NO_SPACE_OR_ACCESS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
DEVICE_FAILED = (errno.EIO, errno.ENODEV, errno.ESTALE)  # the disk, the terminal or the network behind them
SIGPIPE = 13  # also on systems that have no such signal


def run(main: Callable[[], object]) -> None:
    """Runs `main`; where it is stopped early, prints one sentence and ends the process.

    The exit code is 2 for `InputError` and for a disk that fails, and 128 plus the signal's number for Ctrl-C, SIGTERM
    and a closed standard output (`| head`).
    """
    name = Path(sys.argv[0]).name
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))
    for stream in (sys.stdout, sys.stderr):
        # Names that the terminal's encoding does not have are escaped; each line appears at once, in a file too.
        stream.reconfigure(errors="backslashreplace", line_buffering=True)
    try:
        main()
        sys.stdout.flush()
        return
    except InputError as error:
        _print_error(f"{name}: {error}")
        code = 2
    except Interrupted as error:
        if error.saved:
            _print_error("Stopped. A checkpoint was saved: run the same command to resume.")
        else:
            _print_error("Stopped. The weights were not finite and were not saved: lower LEARNING_RATE.")
        code = 128 + error.signal_number
    except KeyboardInterrupt:
        _print_error("Stopped. The same command resumes from the last checkpoint, if there is one.")
        code = 128 + signal.SIGINT
    except BrokenPipeError:
        _print_error("Stopped: the output was closed. The same command resumes from the last checkpoint.")
        code = 128 + SIGPIPE
    except OSError as error:
        if error.errno not in NO_SPACE_OR_ACCESS + DEVICE_FAILED:
            raise
        _print_error(
            f"{name}: the disks of `RUN_FOLDER`, `DATASET` and the output must be accessible and have free space. "
            f"Received: {error}"
        )
        code = 2
    _flush(sys.stdout)
    sys.exit(code)


@contextlib.contextmanager
def silent_interrupts() -> Iterator[None]:
    """Lets Ctrl-C end the process at once and silently, as the system does by default.

    It is for slow imports, in which extension modules may turn KeyboardInterrupt into an ImportError, or ignore it.
    """
    previous = signal.getsignal(signal.SIGINT)
    if previous is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


@contextlib.contextmanager
def stop_requests(request_stop: Callable[[int], None]) -> Iterator[None]:
    """Turns Ctrl-C, SIGTERM and a closed standard output into a call of `request_stop(signal_number)`.

    A second Ctrl-C or SIGTERM raises KeyboardInterrupt. Outside the main thread, which alone receives signals, it does
    nothing.
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
    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
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
        print(sentence, file=sys.stderr)
    _flush(sys.stderr)


def _flush(stream):
    """Flushes a stream; if its other end is closed, sends the rest to the null device."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # or Python would report it at exit
