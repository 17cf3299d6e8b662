"""The rate of classify.py compared with that of its network alone, the time to its first answer, and its memory.

    python benchmarks/classify.py RUN_FOLDER FOLDER [COUNT ...]

FOLDER has image files, in class folders or not; COUNT are numbers of them, 100 and 2,000 if not given. The network
alone predicts the same images from memory, in batches of the same size: as it is saved, channels_last inside, and as it
was trained, channels_first. Rates are medians of turns. Time and memory are of a classifier in a process of its own,
and count from the end of the loading of the model.

Writes a table, `benchmarks/results/classify.md`.
"""

import os
import platform
import statistics
import sys
import time
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))

import psutil

from pipeline.settings import keras_settings

TURNS = 3


def files_in(folder):
    from pipeline.data.folders import images_in
    from pipeline.data.pixels import image_suffixes

    return list(images_in([folder], image_suffixes(), []))


def in_a_process(run_folder, folder, count):
    """Seconds to load the model, to the first answer and in all; MiB of memory after the loading and at most."""
    keras_settings.apply()
    from pipeline.classifier import Classifier

    paths = files_in(folder)[:count]
    start = time.perf_counter()
    classifier = Classifier(run_folder)
    loaded, process = time.perf_counter(), psutil.Process()
    before = process.memory_info().rss
    answers, first, most = classifier.answers(paths), None, before
    for number, _ in enumerate(answers):
        first = first or time.perf_counter()
        if number % 100 == 0:
            most = max(most, process.memory_info().rss)
    end = time.perf_counter()
    return loaded - start, first - loaded, end - loaded, before / 2**20, max(most, process.memory_info().rss) / 2**20


def rates(run_folder, folder, count):
    """Images a second: the network as it was trained, as it is saved, and from files to answers."""
    keras_settings.apply()
    import keras
    import numpy as np

    from fine_tune_model import fine_tuned_models
    from pipeline.classifier import Classifier
    from pipeline.data.pixels import rgb_pixels
    from pipeline.finished_run import constants_of_finished

    classifier, constants = Classifier(run_folder), constants_of_finished(run_folder)
    paths, settings = files_in(folder)[:count], (constants["IMAGE_SIZE"], constants["FIT"], constants["BACKBONE"])
    first = fine_tuned_models(
        classifier.model.input_shape[1:], *settings, "none", 0, classifier.references.embeddings.shape[1]
    )
    first.set_weights(classifier.model.get_weights())
    images = np.array([rgb_pixels(path, classifier.size, classifier.fit, classifier.value_range) for path in paths])
    works = {
        "network, channels_first": lambda: first.predict(images, batch_size=classifier.batch_size, verbose=0),
        "network as saved": lambda: classifier.model.predict(images, batch_size=classifier.batch_size, verbose=0),
        "classifier, from files": lambda: list(classifier.answers(paths)),
    }
    embeddings = [keras.ops.convert_to_numpy(model(images[:8])) for model in (first, classifier.model)]
    seconds = {name: [] for name in works}
    for turn in range(TURNS + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if turn:  # the first compiles
                seconds[name].append(time.perf_counter() - start)
    difference = float(np.abs(embeddings[0] - embeddings[1]).max())
    return {name: count / statistics.median(each) for name, each in seconds.items()}, difference


def main():
    run_folder, folder, *counts = sys.argv[1:]
    counts = [int(count) for count in counts] or [100, 2000]
    context = get_context("spawn")
    with context.Pool(1, maxtasksperchild=1) as pool:
        found, difference = pool.apply(rates, (run_folder, folder, min(2000, max(counts))))
        times = {count: pool.apply(in_a_process, (run_folder, folder, count)) for count in counts}
    packages = ", ".join(f"{name} {version(name)}" for name in ("keras", "tensorflow", "scikit-learn", "pillow"))
    rows = [
        "`python benchmarks/classify.py RUN_FOLDER FOLDER`: images a second, and a process of its own.",
        "",
        f"{os.cpu_count()} CPU cores, {platform.machine()}; {packages}. Embeddings of the two networks differ by "
        f"{difference:.0e} at most.",
        "",
        "| | images a second | times the network's |",
        "|---|---|---|",
    ]
    rows += [f"| {name} | {rate:.0f} | {rate / found['network as saved']:.2f} |" for name, rate in found.items()]
    rows += [
        "",
        "| images | loading, s | first answer, s | all, s | MiB after loading | MiB at most |",
        "|---" * 6 + "|",
    ]
    rows += [f"| {count:,} | " + " | ".join(f"{each:.2f}" for each in values) + " |" for count, values in times.items()]
    text = "\n".join(rows) + "\n"
    print(text)
    (FOLDER / "results" / "classify.md").write_text(text)


if __name__ == "__main__":
    main()
