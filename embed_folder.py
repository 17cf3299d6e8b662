"""Embeds and classifies any number of images with a finished run, on all GPUs of a machine or of a Ray cluster.

    pip install -r requirements-large.txt
    python embed_folder.py run photos/ photos.parquet          all images below a folder
    python embed_folder.py run list.txt photos.parquet         a text file with a path on each line

`photos.parquet` is a folder of Parquet files with the columns path, class (or "unknown"), share, distance, embedding
and error. If the command is interrupted, the same command continues. On a cluster, every machine needs this folder, the
run and the images at the same paths.
"""

import os
from importlib.util import find_spec
from pathlib import Path

from pipeline.data.folders import images_in
from pipeline.data.image_list import in_lines
from pipeline.errors import InputError
from pipeline.finished_run import constants_of_finished
from pipeline.settings import options, process


def main():
    parser = options.Parser(description=__doc__, formatter_class=options.argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_folder", metavar="RUN_FOLDER", help="folder of a finished run")
    parser.add_argument(
        "images", metavar="FOLDER_OR_LIST", help="folder of images, or text file with a path on each line"
    )
    parser.add_argument("output", metavar="OUT.parquet", help="folder that is written")
    given = parser.parse_args()
    constants_of_finished(given.run_folder)
    if missing := [name for name in ("pyarrow", "ray") if find_spec(name) is None]:
        raise InputError(f"The package {missing[0]} must be installed: pip install -r requirements-large.txt")
    from pipeline.data.pixels import image_suffixes
    from pipeline.embedding_table import EmbeddingTable
    from pipeline.ray_cluster import embedded

    problems = []
    paths = listed(given.images)
    paths = paths or [os.path.abspath(each) for each in images_in([given.images], image_suffixes(), problems)]
    if problems:
        raise InputError(f"Folders must be readable and have images. Received:{in_lines(problems)}")
    table = EmbeddingTable(given.output, given.run_folder)
    missing = table.missing(paths)
    print(f"{len(paths):,} images, {len(paths) - len(missing):,} of them embedded before")
    if missing:
        table.write(embedded(given.run_folder, missing), len(missing))
    print(f"The embeddings are in {given.output}\n{table.unreadable:,} images could not be read (column error)")


def listed(path: str) -> list[str]:
    """The paths in a text file, relative to its folder; none if `path` is a folder. Raises InputError without any."""
    if os.path.isdir(path):
        return []
    try:
        text = Path(path).read_text(encoding="utf-8-sig", errors="surrogateescape")  # Windows begins it with a mark
    except OSError as error:
        raise InputError(f"FOLDER_OR_LIST must be a folder, or a text file. Received: {path!r} ({error})") from error
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines or "\0" in text:
        raise InputError(f"FOLDER_OR_LIST must be a text file with a path on each line. Received: {path!r}")
    return [os.path.abspath(os.path.join(os.path.dirname(path), line)) for line in lines]


if __name__ == "__main__":
    process.run(main, trains=False)
