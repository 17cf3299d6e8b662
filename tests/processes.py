"""Python in a process of its own, as users start it."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "init.py"


def run_python(*arguments, cwd=ROOT, **environment):
    """Runs Python with the project importable; returns the CompletedProcess, with text in stdout and stderr.

    An environment variable given as None is removed.
    """
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", **environment}
    variables = {name: value for name, value in variables.items() if value is not None}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, encoding="utf-8")


def run_script(*options, cwd, **environment):
    """Runs init.py with options; returns the CompletedProcess."""
    return run_python(SCRIPT, *options, cwd=cwd, **environment)
