"""What this machine has: why a backend does not use its NVIDIA GPU, and how much memory is free."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
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


def used_memory() -> int:
    """Bytes of memory that this process has, on Linux."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def free_memory() -> int | None:
    """Bytes that this process can still take, None where that is unknown: of the machine, the container, the limit."""
    try:
        import resource

        machine = Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]
        limits = [int(machine) * 1024]
        virtual = resource.getrlimit(resource.RLIMIT_AS)[0]
        if virtual != resource.RLIM_INFINITY:
            taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            limits.append(virtual - taken)
    except (ImportError, OSError, IndexError, ValueError):
        return None
    return max(0, min([*limits, *_free_in_groups()]))


def _free_in_groups():
    """Bytes that are free in the control groups of this process, with which Docker and Slurm limit memory."""
    try:
        lines = [line.split(":", 2) for line in OWN_GROUPS.read_text(errors="replace").splitlines()]
    except OSError:
        return
    for _, controllers, path in lines:
        if not controllers:  # version 2
            top, names = GROUPS, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top, names = GROUPS / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = top / path.strip("/")
        for folder in (group, *group.parents):
            try:
                limit, used = (int((folder / name).read_text()) for name in names[:2])
                details = (folder / "memory.stat").read_text() if (folder / "memory.stat").exists() else ""
                cached = re.search(rf"^{names[2]} (\d+)$", details, re.MULTILINE)
                yield limit - used + int(cached[1] if cached else 0)  # files that have been read can be forgotten
            except (OSError, ValueError):  # no such folder, or "max"
                pass
            if folder == top:
                break


def _has_nvidia_gpu():
    """Whether this machine has an NVIDIA GPU and its driver, or the driver's tool lists one."""
    if any(Path(path).exists() for path in NVIDIA_FILES):
        return True
    tool = shutil.which("nvidia-smi")
    try:
        return bool(tool) and subprocess.run([tool, "-L"], capture_output=True, timeout=30).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
