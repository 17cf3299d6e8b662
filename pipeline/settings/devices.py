"""The devices that train: how many, and why a backend does not use the NVIDIA GPU of this machine."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import InputError
from pipeline.settings import process

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


def distribute(wanted: str, rows: int) -> int:
    """Lets Keras divide each batch between devices; call it before a variable exists.

    On JAX, the loss sees the whole batch (`keras.distribution.DataParallel`), so that triplets are found in all of it
    and the result is that of one device, but for rounding.

    Args:
        wanted: `"auto"`, all GPUs of this machine if the backend is JAX and they divide the batch, else one device; or
            a number. On a CPU, XLA makes as many devices as its flag `--xla_force_host_platform_device_count` says.
        rows: int, the number of images or triplets in a batch.

    Returns:
        The number of devices.

    Raises:
        InputError: if there are not so many devices, the backend uses one alone, or they do not divide the batch.
    """
    import keras

    backend = keras.backend.backend()
    if backend != "jax":
        if wanted not in ("auto", "1"):
            raise InputError(
                f"`DEVICES` must be 1 on {backend}; with KERAS_BACKEND=jax it may be more. Received: {wanted}"
            )
        if (gpus := _gpus(backend)) > 1:
            print(f"One of {gpus} GPUs is used: {backend} trains on one. KERAS_BACKEND=jax uses all of them.")
        return 1
    found = keras.distribution.list_devices()
    if wanted == "auto":
        most = 1 if found[0].startswith("cpu") else len(found)
        count = next(each for each in range(most, 0, -1) if rows % each == 0)
        if count < most:
            print(f"{count} of {most} GPUs are used: {rows} images or triplets in a batch cannot be divided by {most}.")
    else:
        count = int(wanted)
        if count > len(found):
            raise InputError(f"`DEVICES` must be at most {len(found)}, the devices that JAX finds. Received: {wanted}")
        if rows % count:
            raise InputError(f"`DEVICES` must divide a batch, which has {rows} images or triplets. Received: {wanted}")
    parallel = None
    if count > 1:
        print(f"Each batch is divided between {count} devices: {', '.join(found[:count])}")
        parallel = keras.distribution.DataParallel(devices=found[:count], auto_shard_dataset=False)
        process.at_end(lambda: keras.distribution.set_distribution(None))  # in a notebook
    keras.distribution.set_distribution(parallel)
    return count


def device_count() -> int:
    """The number of devices between which Keras divides each batch."""
    import keras

    parallel = keras.distribution.distribution()
    return 1 if parallel is None else parallel.num_model_replicas


def _gpus(backend):
    """The number of GPUs that TensorFlow or PyTorch finds."""
    library = sys.modules[backend]
    return library.cuda.device_count() if backend == "torch" else len(library.config.list_physical_devices("GPU"))


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
