"""Why a backend does not use the NVIDIA GPU of this machine, and what to install."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

NVIDIA_FILES = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg")  # the last under WSL


class _Backend(NamedTuple):
    """Code that asks a backend for its own reason, and pip's arguments that install what it needs for NVIDIA GPUs."""

    code: str
    install: str


BACKENDS = {
    "tensorflow": _Backend(
        "import tensorflow as tf; tf.config.list_physical_devices('GPU')", "--upgrade 'tensorflow[and-cuda]'"
    ),
    "jax": _Backend("import jax; jax.devices('cuda')", "--upgrade 'jax[cuda13]'"),
    "torch": _Backend("import torch; torch.zeros(1, device='cuda')", "--force-reinstall torch"),
}
REASON = re.compile("cuda|gpu|driver|cudnn|dlopen|librar", re.IGNORECASE)
LOG_PREFIX = re.compile(r"^[IWEF]\d{4} .*?\] |^\d{4}-\d\d-\d\d .*?\] |^\w+(\.\w+)*Error: ")


def why_no_gpu(backend: str) -> str:
    """The backend's own reason and the command that installs what it needs; `""` if there is no NVIDIA GPU.

    It asks a process of its own, in which the backend's messages are not hidden; that takes some seconds.

    Args:
        backend: `"tensorflow"`, `"jax"` or `"torch"`, which has found no GPU.
    """
    if not _has_nvidia_gpu():
        return ""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and hidden.strip() in ("", "-1", "NoDevFiles"):
        return f"The environment variable CUDA_VISIBLE_DEVICES = {hidden!r} hides it."
    command = f"To install what it needs: pip install {BACKENDS[backend].install}"
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "0", "JAX_PLATFORMS": ""}
    try:
        done = subprocess.run(
            [sys.executable, "-c", BACKENDS[backend].code],
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=120,
        )
    except (OSError, subprocess.TimeoutExpired):
        return command
    lines = [LOG_PREFIX.sub("", line).strip() for line in done.stderr.splitlines() if not line.startswith(" ")]
    reasons = [line for line in lines if REASON.search(line)]
    return f"{backend} says: {reasons[-1][:300].rstrip('.')}. {command}" if reasons else command


def _has_nvidia_gpu():
    """Whether this machine has an NVIDIA GPU and its driver, or the driver's tool lists one."""
    if any(Path(path).exists() for path in NVIDIA_FILES):
        return True
    tool = shutil.which("nvidia-smi")
    try:
        return bool(tool) and subprocess.run([tool, "-L"], capture_output=True, timeout=30).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
