"""Exit codes, signals and closed streams, most of them of real processes."""

import errno
import io
import os
import re
import signal
import subprocess
import sys
import threading

import pytest
from processes import ROOT, run_python, run_script

from pipeline.settings import process

IMPORTS = (
    "import errno, signal, sys\n"
    "from pipeline.errors import InputError, Interrupted\n"
    "from pipeline.settings import process\n"
)
ENDS = {
    "raise InputError('`SEED` must be odd.')": (2, "-c: `SEED` must be odd"),
    "raise Interrupted(signal.SIGINT, True)": (130, "Stopped.* checkpoint was saved.* same command to resume"),
    "raise Interrupted(signal.SIGTERM, True)": (143, "Stopped.* checkpoint was saved.* same command to resume"),
    "raise Interrupted(signal.SIGINT, False)": (130, "Stopped.* not saved.*LEARNING_RATE"),
    "raise KeyboardInterrupt": (130, "Stopped.* same command resumes from the last checkpoint"),
    "raise OSError(errno.EIO, 'the disk is broken')": (2, "-c: .*`RUN_FOLDER`, `DATASET` and .*the disk is broken"),
    "raise OSError(errno.ENOSPC, 'no room')": (2, "-c: .*`RUN_FOLDER`, `DATASET` and .* free space.*no room"),
    "raise OSError(errno.EMFILE, 'too many open files')": (2, "-c: .*too many open files"),
    "import a_package_that_is_missing": (2, "-c: the package a_package_that_is_missing must be installed: pip install"),
    **{
        f"raise {error}": (2, "-c: `IMAGES_PER_CLASS` or `IMAGE_SIZE` must be smaller.*Received: ")
        for error in (
            "MemoryError()",
            "OSError(errno.ENOMEM, 'Cannot allocate memory')",
            "type('ResourceExhaustedError', (Exception,), {})('OOM when allocating tensor with shape[128,64]')",
            "RuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 34 bytes')",
            "RuntimeError('CUDA out of memory. Tried to allocate 2.00 GiB')",
            'RuntimeError("[enforce fail] DefaultCPUAllocator: can\'t allocate memory")',
            "RuntimeError('CUDNN_STATUS_ALLOC_FAILED')",
        )
    },
}


NOTEBOOK = {"MPLBACKEND": "module://a_backend_of_notebooks"}


def run(body, *arguments, **environment):
    """Runs a main function with this body in process.run; returns the CompletedProcess."""
    return run_python("-c", f"{IMPORTS}def main():\n    {body}\nprocess.run(main)", *arguments, **environment)


@pytest.mark.parametrize(("body", "expected"), ENDS.items(), ids=ENDS)
def test_each_early_end_has_an_exit_code_and_one_line(body, expected):
    done = run(f"print('printed before', end=''); {body}")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (expected[0], "printed before", 1)
    assert re.match(expected[1], done.stderr), done.stderr


@pytest.mark.parametrize("error", ["ValueError('a bug')", "FileNotFoundError(errno.ENOENT, 'a bug')"])
def test_a_bug_keeps_its_traceback(error):
    done = run(f"raise {error}")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback") and "a bug" in done.stderr


def test_a_normal_end_and_names_that_the_terminal_cannot_show():
    done = run("print('caf\\udce9 grün'); print('日', file=sys.stderr)", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout, done.stderr) == (0, "caf\\udce9 gr\\xfcn\n", "\\u65e5\n")


def test_figures_need_no_window_and_no_backend_of_a_notebook():
    """The variable is what a notebook exports to the processes that it starts."""
    code = (
        "from matplotlib.figure import Figure; Figure().savefig(sys.argv[1]); print(os.path.getsize(sys.argv[1]) > 0)"
    )
    done = run(f"import os; {code}", os.devnull + ".png" if os.name == "nt" else "/dev/shm/figure.png", **NOTEBOOK)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def test_a_notebook_stays_alive_and_can_run_the_script_again():
    """`%run` gives streams without `reconfigure`, and the process survives an interruption while Keras is imported."""
    code = (
        f"import builtins, io, os\n{IMPORTS}"
        "class OutStream(io.StringIO):\n    reconfigure = property()\n"
        "builtins.__IPYTHON__, shown = True, sys.stdout\n"
        "sys.stdout = sys.stderr = OutStream()\n"
        "os.environ['MPLBACKEND'] = 'own'\n"
        "released = []\n"
        "def main():\n"
        "    process.at_end(lambda: released.append('lock'))\n"
        "    with process.silent_interrupts():\n        signal.raise_signal(signal.SIGINT)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored by what a script runs in background
        "for _ in range(2):\n"
        "    try:\n        process.run(main)\n"
        "    except SystemExit as error:\n        print(error.code, released, os.environ['MPLBACKEND'], file=shown)\n"
    )
    done = run_python("-c", code)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["130 ['lock'] own", "130 ['lock', 'lock'] own"]


@pytest.mark.skipif(os.name != "posix", reason="another shell")
@pytest.mark.parametrize(("closed", "code"), [(">&-", 0), ("2>&-", 2)])
def test_a_closed_stream_is_no_failure(closed, code, tmp_path):
    (tmp_path / "code.py").write_text(
        f"{IMPORTS}def main():\n    print('unread')\n    if sys.argv[1] == '2': raise InputError('unread too')\n"
        "process.run(main)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(f"{sys.executable} code.py {code} {closed}", shell=True, cwd=tmp_path, env=environment)
    assert done.returncode == code


def test_output_that_is_closed_ends_in_one_line():
    """As with `| head`."""
    code = f"{IMPORTS}process.run(lambda: [print('line', number) for number in range(10**5)])"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as started:
        assert started.stdout.readline() == "line 0\n"
        started.stdout.close()
        errors = started.stderr.read()
    assert started.returncode == 141
    assert re.fullmatch("Stopped: .*output was closed.* resumes from the last checkpoint.\n", errors)


def test_output_that_is_closed_before_the_last_line_is_written_ends_in_one_line():
    """Python writes it at its end, and would report the error itself, with the exit code 120."""
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONUNBUFFERED", None)
    code = f"{IMPORTS}process.run(lambda: print('short'))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert done.returncode == 141
    assert re.fullmatch("Stopped: .*output was closed.*\n", done.stderr)


@pytest.fixture
def handlers():
    """Handlers of SIGINT and SIGTERM of the test's own, as found and left by `stop_requests`; restored afterwards."""

    def own(number, frame):
        raise AssertionError("the handler before")

    before = {number: signal.signal(number, own) for number in (signal.SIGINT, signal.SIGTERM)}
    hangup = signal.signal(signal.SIGHUP, signal.SIG_DFL) if hasattr(signal, "SIGHUP") else None  # under nohup
    yield lambda: [signal.getsignal(number) is own for number in before]
    for number, handler in before.items():
        signal.signal(number, handler)
    if hangup is not None:
        signal.signal(signal.SIGHUP, hangup)


IMPORTS_OF_KERAS = {
    "Python": "import signal, time\nsignal.raise_signal(signal.SIGINT)\ntime.sleep(60)\n",
    # As NumPy's extension does when KeyboardInterrupt is raised while it imports `datetime`.
    "extension": (
        "import signal, time\n"
        "try:\n    signal.raise_signal(signal.SIGINT)\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    raise ImportError('cannot import datetime') from None\n"
    ),
}


@pytest.mark.parametrize("code", IMPORTS_OF_KERAS.values(), ids=IMPORTS_OF_KERAS)
def test_ctrl_c_while_keras_is_imported_ends_the_script_without_a_traceback(code, handlers, tmp_path):
    """In place of Keras, a module to which the signal comes while it is imported."""
    # Python starts with its own handler because of the fixture: a shell may ignore SIGINT for what runs in background.
    (tmp_path / "keras.py").write_text(code)
    done = run_script("--run-folder", "run", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode in (130, -signal.SIGINT)
    assert done.stderr == "" or re.fullmatch("Stopped.*\n", done.stderr)
    assert list(tmp_path.iterdir()) == [tmp_path / "keras.py"]


@pytest.mark.parametrize("first", process.STOP_SIGNALS)
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_requests_a_stop_and_the_second_stops_at_once(first, second, handlers, capfd):
    requests = []
    with pytest.raises(KeyboardInterrupt), process.stop_requests(requests.append):
        assert handlers() == [False, False]
        signal.raise_signal(first)
        assert requests == [first]
        assert "Press Ctrl-C again to stop at once" in capfd.readouterr().err
        signal.raise_signal(second)
    assert requests == [first]
    assert handlers() == [True, True]


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no such signal")
def test_nohup_is_respected(handlers):
    requests, before = [], signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with process.stop_requests(requests.append):
        signal.raise_signal(signal.SIGHUP)
    assert requests == [] and signal.signal(signal.SIGHUP, before) == signal.SIG_IGN


def test_the_streams_and_handlers_are_restored(handlers):
    requests, stdout = [], sys.stdout
    with process.stop_requests(requests.append):
        assert sys.stdout is not stdout
        assert sys.stdout.isatty() == stdout.isatty()  # which Keras asks
    with pytest.raises(ZeroDivisionError), process.stop_requests(requests.append):
        raise ZeroDivisionError
    assert (sys.stdout, handlers(), requests) == (stdout, [True, True], [])


def test_another_thread_changes_nothing(handlers):
    """Python lets only the main thread handle signals; elsewhere `signal.signal` raises."""
    seen = []

    def work():
        with process.stop_requests(seen.append):
            seen.append(handlers())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [[True, True]]


def closed_pipe():
    reading, writing = os.pipe()
    os.close(reading)
    return open(writing, "w", buffering=1)


class LostTerminal(io.StringIO):
    def write(self, text):
        raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("stream", [closed_pipe, LostTerminal])
def test_a_closed_output_requests_a_stop_and_is_no_error(stream, monkeypatch):
    """As `tee` at the other end of a pipe ends with the same Ctrl-C."""
    requests, output = [], stream()
    monkeypatch.setattr(sys, "stdout", output)
    with process.stop_requests(requests.append):
        assert requests == []
        print("a progress bar", flush=True)
        assert requests and set(requests) == {13}
        print("discarded")
    if stream is closed_pipe:
        os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())  # or closing it would raise
