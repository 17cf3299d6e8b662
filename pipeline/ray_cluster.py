"""Embeds and classifies image files on all GPUs of a machine, or of all machines of a Ray cluster."""

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import InputError
from pipeline.settings import process

LEAST, MOST, PARTS = 64, 1024, 100  # images that a worker gets at once, at least, at most, and of how many
PART, PART_SECONDS = 8192, 60  # images of a part that is returned, unless it takes more seconds
RESTARTS = 3  # of a worker that crashes; without a limit, an image that crashes it would do so for ever
ROOT = Path(__file__).resolve().parent.parent


class Worker:
    """Embeds and classifies the images of one batch after another; an actor of Ray.

    Args:
        run_folder: path of the folder of a finished run.
    """

    def __init__(self, run_folder: str):
        os.environ.pop("OMP_NUM_THREADS", None)  # to which Ray gives 1
        from pipeline.settings import keras_settings

        keras_settings.apply()
        from pipeline.classifier import Classifier

        self.classifier = Classifier(run_folder)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """The columns of `EmbeddingTable` for the files in `batch["path"]`, in which paths are bytes."""
        paths = [os.fsdecode(path) for path in batch["path"]]
        names, shares, distances, errors = [], [], [], []
        size = self.classifier.references.embeddings.shape[1]
        embeddings = np.zeros((len(paths), size), "float32")
        for _, wrong, embedded, answers in self.classifier.in_batches(paths):
            place, found = len(errors), iter(answers)
            embeddings[place + np.flatnonzero([error is None for error in wrong])] = embedded
            for error in wrong:
                answer = None if error else next(found)
                names.append(answer.class_name if answer else "")
                shares.append(answer.share if answer else 0)
                distances.append(answer.distance if answer else 0)
                errors.append(f"{error}" or type(error).__name__ if error else "")
        columns = {"class": np.array(names, "O"), "share": np.array(shares), "distance": np.array(distances)}
        return {"path": batch["path"], **columns, "embedding": embeddings, "error": np.array(errors, "O")}


def embedded(run_folder: str, paths: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Embeds and classifies image files: one worker a GPU or, without GPUs, one a machine.

    Without a cluster (the environment variable RAY_ADDRESS, or one that runs on this machine) it uses this machine.

    Args:
        run_folder: path of the folder of a finished run.
        paths: of image files.

    Yields:
        Parts of `EmbeddingTable`, in which paths are text again, in any order.

    Raises:
        InputError: if there is no connection to the cluster, or a worker cannot start or fails.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    variables = {name: os.environ[name] for name in ("KERAS_BACKEND", "KERAS_HOME") if name in os.environ}
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    settings = {"log_to_driver": False, "logging_level": "ERROR", "include_dashboard": False}
    try:
        ray.init(runtime_env={"env_vars": variables}, **settings)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"Ray must start, or find the cluster of RAY_ADDRESS. Received: {error}") from error
    process.at_end(ray.shutdown)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.raise_original_map_exception = True  # or Ray's message has no reason
    gpus = int(ray.cluster_resources().get("GPU", 0))
    machines = sum(node["Alive"] for node in ray.nodes())
    # Without a GPU, a worker computes on all cores, whatever Ray counts: half a core leaves Ray some for its own tasks.
    needs = {"num_gpus": 1} if gpus else {"num_cpus": 0.5}
    actors = {"max_restarts": RESTARTS, "max_task_retries": RESTARTS, "scheduling_strategy": "SPREAD"}
    batch = min(max(len(paths) // PARTS, LEAST), MOST)
    items, blocks = [{"path": os.fsencode(path)} for path in paths], -(-len(paths) // batch)
    workers = min(gpus or machines, blocks)
    print(f"{workers} of {gpus} GPUs" if gpus else f"{workers} machines without GPUs")
    found = ray.data.from_items(items, override_num_blocks=blocks).map_batches(
        Worker,
        fn_constructor_args=[os.path.abspath(run_folder)],
        batch_size=batch,
        compute=ray.data.ActorPoolStrategy(size=workers),
        ray_remote_args_fn=lambda: actors,
        **needs,
    )
    try:
        for part in _parts(found.iter_batches(batch_size=batch, batch_format="numpy")):
            yield {**part, "path": [os.fsdecode(path) for path in part["path"]]}
    except Exception as error:  # whatever a worker raises
        raise InputError(f"A worker has failed; the same command continues. Received: {_reason(error)}") from error


def _parts(batches):
    """Joins batches to parts."""
    joined, began = [], time.monotonic()
    for batch in batches:
        joined.append(batch)
        if sum(len(each["path"]) for each in joined) >= PART or time.monotonic() - began >= PART_SECONDS:
            yield _joined(joined)
            joined, began = [], time.monotonic()
    if joined:
        yield _joined(joined)


def _joined(batches):
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def _reason(error):
    """The last line of an error's message: the first ones are Ray's own."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
