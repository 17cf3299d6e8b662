"""Images a second of training batches, and of decoding image files, compared with PyTorch's loader in the same run.

    pip install -r benchmarks/requirements.txt
    python benchmarks/training_batches.py

Batches: 5,000 images at 224 pixels from a file on disk that the operating system has in its memory, shifted by up to an
eighth and mirrored. The project reads them in one thread and in two; the peer is a PyTorch `DataLoader` with two
processes, whose data set takes an image from the same file and applies torchvision's `RandomCrop` (with the border
mirrored) and `RandomHorizontalFlip`.

Decoding: 400 JPEG files of 1,024 × 768 pixels to 224 × 224, with the project's reader; with Pillow's decoder and resize
alone, in threads; and with torchvision's `ImageFolder` and `Resize` in a `DataLoader` of two processes.

The turns of all of them alternate; a figure is the median of five. Writes `benchmarks/results/training_batches.md`.
"""

import os
import platform
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")
FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))

import numpy as np
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from pipeline.data.batches import Batches, classes_and_images
from pipeline.data.image_files import read_data_set
from pipeline.data.splits import Images

COUNT, SIZE, CLASSES, BATCH, TURNS, WORKERS = 5_000, 224, 10, 128, 5, 2
FILES, WIDTH, HEIGHT = 400, 1_024, 768


class FromFile(torch.utils.data.Dataset):
    """The images of an array, shifted and mirrored by torchvision."""

    def __init__(self, images):
        padding = SIZE // 8
        self.images = images
        self.change = v2.Compose(
            [v2.RandomCrop(SIZE, padding=padding, padding_mode="reflect"), v2.RandomHorizontalFlip()]
        )

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.change(torch.from_numpy(self.images[index].copy()))


def loaded(data):
    for _ in torch.utils.data.DataLoader(data, BATCH, shuffle=True, num_workers=WORKERS):
        pass


def rates(ways, count):
    """The median of images a second for each of several functions, which take turns."""
    seconds = {name: [] for name in ways}
    for _ in range(TURNS):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    return {name: count / statistics.median(each) for name, each in seconds.items()}


def batches_ways(folder):
    generator = np.random.default_rng(0)
    stored = np.memmap(folder / "images", "uint8", "w+", shape=(COUNT, 3, SIZE, SIZE))
    for start in range(0, COUNT, 500):
        stored[start : start + 500] = generator.integers(0, 256, (500, 3, SIZE, SIZE), "uint8")
    images = np.asarray(np.memmap(folder / "images", "uint8", "r", shape=stored.shape))
    labels = np.arange(COUNT, dtype="int32") % CLASSES
    plan = classes_and_images(labels, 8, BATCH // 8)
    ours, plain = (Batches(Images(images, labels), plan, 0, augment) for augment in ("shift_flip", "none"))

    def in_threads(batches, threads):
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(batches.__getitem__, range(len(batches))):
                pass

    return {
        "the project, two threads": lambda: in_threads(ours, 2),
        "the project, one thread": lambda: in_threads(ours, 1),
        "the project, one thread, without shifting and mirroring": lambda: in_threads(plain, 1),
        f"PyTorch, {WORKERS} processes, torchvision's transforms": lambda: loaded(FromFile(images)),
    }


def decoding_ways(folder):
    generator, paths = np.random.default_rng(1), []
    (folder / "jpeg" / "one class").mkdir(parents=True)
    for number in range(FILES):
        small = Image.fromarray(generator.integers(0, 256, (48, 64, 3), "uint8"))
        paths.append(folder / "jpeg" / "one class" / f"{number}.jpg")
        small.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    peer = ImageFolder(folder / "jpeg", v2.Compose([v2.Resize((SIZE, SIZE)), v2.PILToTensor()]))

    def bare(path):
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR))

    def by_pillow():
        with ThreadPoolExecutor() as pool:
            for _ in pool.map(bare, paths):
                pass

    return {
        "the project": lambda: read_data_set(paths, SIZE, "scale"),
        "Pillow alone, in threads": by_pillow,
        f"PyTorch, {WORKERS} processes, torchvision's ImageFolder": lambda: loaded(peer),
    }


def main():
    rows = ["| | images a second | times the project's |", "|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        for title, ways, count in (
            ("training batches", batches_ways(Path(folder)), COUNT),
            ("decoding", decoding_ways(Path(folder)), FILES),
        ):
            measured = rates(ways, count)
            ours = next(iter(measured.values()))
            for name, rate in measured.items():
                rows.append(f"| {title}: {name} | {rate:,.0f} | {rate / ours:.2f} |")
                print(rows[-1], flush=True)
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "pillow", "torch", "torchvision"))
    text = [
        "`python benchmarks/training_batches.py`: images a second of training batches and of decoding.",
        "",
        f"{os.cpu_count()} CPU cores, {platform.machine()}; {packages}. Batches: {COUNT:,} images of {SIZE} pixels "
        f"in a file that is in the page cache. Decoding: {FILES} JPEG files of {WIDTH}×{HEIGHT} pixels.",
        "",
        *rows,
    ]
    (FOLDER / "results" / "training_batches.md").write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
