"""The devices that train, of one machine or of several: the only module that divides work between them."""

import io
import json
import os
import socket
import sys
import tarfile
import threading
import time
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.errors import InputError
from pipeline.settings import process

ADDRESS, PROCESSES, PROCESS = (
    f"KERAS_DISTRIBUTION_{name}" for name in ("JOB_ADDRESSES", "NUM_PROCESSES", "PROCESS_ID")
)
JOIN_SECONDS = 300  # how long processes wait for each other
END_SECONDS = 3600  # how long the first to end waits for the others
PIECE = 2**26  # bytes that are sent at once
_replicated = weakref.WeakKeyDictionary()  # network -> what `for_every_process` has made of it


class Devices(NamedTuple):
    """The devices between which each batch is divided.

    Attributes:
        count: int, of all processes.
        process: int, the number of this process, from 0.
        processes: int, of which each has as many of the devices.
    """

    count: int = 1
    process: int = 0
    processes: int = 1

    def rows(self, batch: int) -> slice:
        """Which rows of a batch are for the devices of this process; `count` divides the batch."""
        return slice(batch * self.process // self.processes, batch * (self.process + 1) // self.processes)


def processes() -> tuple[int, int]:
    """The number of this process, and how many train together, by Keras' environment variables: `(0, 1)` for one alone.

    Raises:
        InputError: if the variables are not numbers that fit together, or there is no address.
    """
    values = {name: os.environ.get(name, "") for name in (PROCESSES, PROCESS)}
    if values[PROCESSES] == "1" or not any(values.values()):
        return 0, 1
    for name, value in values.items():
        if not value.isdecimal() or (name == PROCESSES and int(value) == 0):
            rule = "a whole number" + " above 0" * (name == PROCESSES)
            raise InputError(f"The environment variable {name} must be {rule}. Received: {value!r}")
    number, count = int(values[PROCESS]), int(values[PROCESSES])
    if number >= count:
        raise InputError(f"The environment variable {PROCESS} must be from 0 to {count - 1}. Received: {number}")
    host, _, port = _address().rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 65536):
        rule = f"The environment variable {ADDRESS} must be the first machine's HOST:PORT"
        raise InputError(f"{rule}, such as node1:3333. Received: {_address()!r}")
    return number, count


def _address():
    return os.environ.get(ADDRESS, "").partition(",")[0]


def join(backend: str) -> None:
    """Joins the processes that train together; call it before the backend computes. One process alone does nothing.

    From then on all but the first print nothing but errors. It calls JAX itself: under Slurm,
    `keras.distribution.initialize` lets JAX take one GPU of each machine alone.

    Raises:
        InputError: if the backend is not JAX, the first process does not answer within five minutes, its port is in
            use, or JAX cannot join them. If not all have started within five minutes, the process ends with a sentence.
    """
    number, count = processes()
    if count == 1:
        return
    if backend != "jax":
        raise InputError(f"`KERAS_BACKEND` must be jax where several processes train together. Received: {backend}")
    import jax

    address = _address()
    print(f"Waiting for the {count} processes that train together, at {address} ...")
    if number:
        _wait_for(address)
        sys.stdout = open(os.devnull, "w", encoding="utf-8", errors="backslashreplace")
    else:
        _check_free(address)
    process.is_one_of_several(number)
    # Later, JAX would end the process with a stack trace.
    late = threading.Timer(JOIN_SECONDS, process.end, [f"{_started_together(count)} Received: {address!r}"])
    late.daemon = True
    late.start()
    settings = {"initialization_timeout": 2 * JOIN_SECONDS, "shutdown_timeout_seconds": END_SECONDS}
    try:
        jax.distributed.initialize(address, count, number, cluster_detection_method="deactivate", **settings)
        highest(0)  # connects them, before one is late because it reads its images more slowly
    except Exception as error:  # JAX documents RuntimeError alone
        raise InputError(f"{_started_together(count)} Received: {process.in_short(error)}") from error
    finally:
        late.cancel()


def _started_together(count):
    minutes = f"{JOIN_SECONDS / 60:g} minutes"
    return f"All {count} processes must start within {minutes}, with the same address in {ADDRESS}."


def _check_free(address):
    """Raises InputError if another program uses the port of this process, where JAX may crash."""
    try:
        with socket.socket() as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # JAX takes a port that has just been used
            tried.bind(("", int(address.rpartition(":")[2])))
    except OSError as error:
        rule = f"The environment variable {ADDRESS} must have a port that no other program uses"
        raise InputError(f"{rule}. Received: {address!r} ({error})") from error


def _wait_for(address):
    """Waits until something listens at an address; JAX would end the process without an error that can be caught."""
    host, _, port = address.rpartition(":")
    end = time.monotonic() + JOIN_SECONDS
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                rule = f"The environment variable {ADDRESS} must be the address of the first process, which must train"
                raise InputError(f"{rule}. Received: {address!r} ({error})") from error
            time.sleep(0.5)


def distribute(wanted: str, rows: int) -> Devices:
    """Lets Keras divide each batch between devices; call it before a variable exists.

    On JAX, the loss sees the whole batch (`keras.distribution.DataParallel`), so that triplets are found in all of it
    and the result is that of one device, but for rounding.

    Args:
        wanted: `"auto"`, all GPUs of all processes if the backend is JAX, else one device; or a number, for one process
            alone. On a CPU, XLA makes as many devices as its flag `--xla_force_host_platform_device_count` says. One
            process with `"auto"` leaves GPUs out if they do not divide the batch.
        rows: int, the number of images or triplets in a batch.

    Returns:
        `Devices`.

    Raises:
        InputError: if there are not so many devices, the backend uses one alone, or they do not divide the batch.
    """
    import keras

    backend, (number, of_processes) = keras.backend.backend(), processes()
    if backend != "jax":
        if wanted not in ("auto", "1"):
            raise InputError(
                f"`DEVICES` must be 1 on {backend}; with KERAS_BACKEND=jax it may be more. Received: {wanted}"
            )
        if (gpus := _gpus(backend)) > 1:
            print(f"One of {gpus} GPUs is used: {backend} trains on one. KERAS_BACKEND=jax uses all of them.")
        return Devices()
    found = keras.distribution.list_devices()
    if of_processes > 1:
        import jax

        if len(found) != of_processes * (own := jax.local_device_count()):
            raise InputError(f"All processes must have equally many devices. Received: {own} here, {len(found)} in all")
        if wanted not in ("auto", str(len(found))):
            raise InputError(f'`DEVICES` must be "auto" where several processes train together. Received: {wanted}')
        if rows % len(found):
            raise InputError(
                f"`CLASSES_PER_BATCH` times `IMAGES_PER_CLASS` must give a batch that the {len(found)} devices of all "
                f"{of_processes} processes divide. Received: {rows} images or triplets in a batch"
            )
        wanted = str(len(found))
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
            raise InputError(
                f"`DEVICES` must divide a batch, which has {rows} images or triplets (`CLASSES_PER_BATCH` and "
                f"`IMAGES_PER_CLASS`). Received: {wanted}"
            )
    parallel = None
    if count > 1:
        where = f" of {of_processes} processes" * (of_processes > 1)
        print(f"Each batch is divided between {count} devices{where}: {', '.join(found[:count])}")
        parallel = keras.distribution.DataParallel(devices=found[:count], auto_shard_dataset=False)
        process.at_end(lambda: keras.distribution.set_distribution(None))  # in a notebook
    keras.distribution.set_distribution(parallel)
    return Devices(count, number, of_processes)


def device_count() -> int:
    """The number of devices between which Keras divides each batch."""
    import keras

    parallel = keras.distribution.distribution()
    return 1 if parallel is None else parallel.num_model_replicas


def for_every_process(network):
    """A `keras.Model` whose `predict` gives each process the outputs for all rows, not for those of its devices alone.

    Args:
        network: `keras.Model`.

    Returns:
        `network`, or a model with the same weights.
    """
    import keras

    if processes()[1] == 1:
        return network
    mesh = keras.distribution.distribution().device_mesh

    class Replicated(keras.layers.Layer):
        def call(self, rows):
            everywhere = keras.distribution.TensorLayout([None] * len(rows.shape), mesh)
            return keras.distribution.distribute_tensor(rows, everywhere)

    if network not in _replicated:  # or each prediction would be compiled again
        # Not the policy's dtype, which may round embeddings to 16 bits.
        outputs = [Replicated(dtype="float32")(output) for output in network.outputs]
        _replicated[network] = keras.Model(network.inputs, outputs if len(outputs) > 1 else outputs[0])
    return _replicated[network]


def highest(number: int) -> int:
    """The highest of the numbers that all processes give, once each has given one; all call it equally often."""
    if processes()[1] == 1:
        return number
    from jax.experimental import multihost_utils

    return int(multihost_utils.process_allgather(np.array(number)).max())


def from_first(value: Any) -> Any:
    """The value that the first process gives; all call it equally often.

    Args:
        value: what JSON can hold.
    """
    return value if processes()[1] == 1 else json.loads(_broadcast(json.dumps(value).encode()))


def check_same(values: dict[str, Any]) -> None:
    """Compares values of this process with those of the first one; all call it equally often.

    Args:
        values: dict from names for the user to what JSON can hold.

    Raises:
        InputError: if some differ; it names them.
    """
    values = json.loads(json.dumps(values))
    others = from_first(values)
    if changed := [name for name in values if values[name] != others.get(name)]:
        raise InputError(f"All processes must have the same {', '.join(changed)}. This one has another than the first.")


def copy_from_first(folder: Path, names: Iterable[str]) -> None:
    """Copies files of a folder of the first process into a folder of each other one; all call it equally often.

    Args:
        folder: path; on each machine it may be another one.
        names: of the files, relative to the folder; those of the first process count.
    """
    number, count = processes()
    if count == 1:
        return
    packed = io.BytesIO()
    if number == 0:
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for name in names:
                archive.add(folder / name, name)
    content = _broadcast(packed.getbuffer())
    if number:
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            archive.extractall(folder, filter="data")


def _broadcast(content):
    """The bytes that the first process gives."""
    from jax.experimental import multihost_utils

    # Two numbers, since JAX has integers of 32 bits.
    pieces, rest = map(int, multihost_utils.broadcast_one_to_all(np.array(divmod(len(content), PIECE))))
    received, is_first = bytearray(), processes()[0] == 0
    for number in range(pieces + 1):
        size = PIECE if number < pieces else rest
        piece = np.zeros(size, "uint8")
        if is_first:
            piece = np.frombuffer(content[number * PIECE : number * PIECE + size], "uint8")
        received += np.asarray(multihost_utils.broadcast_one_to_all(piece)).astype("uint8").tobytes()
    return bytes(received)


def _gpus(backend):
    """The number of GPUs that TensorFlow or PyTorch finds."""
    library = sys.modules[backend]
    return library.cuda.device_count() if backend == "torch" else len(library.config.list_physical_devices("GPU"))
