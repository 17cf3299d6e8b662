"""The command embed_folder.py: the embeddings and classes of classify.py, each image once, also after interruptions."""

import os
import shutil

import numpy as np
import pytest
from processes import ROOT, run_python
from runs import KNOWN, write_images, write_run

import embed_folder
from pipeline.classifier import Classifier
from pipeline.errors import InputError

pytest.importorskip("ray")
parquet = pytest.importorskip("pyarrow.parquet")
from pipeline.embedding_table import EmbeddingTable  # noqa: E402 - needs pyarrow


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a run, and 1,000 images of known and unknown classes, of which one cannot be read."""
    place = tmp_path_factory.mktemp("place")
    write_run(place / "run")
    write_images(place / "photos", [*KNOWN, "yellow"], -(-1000 // (len(KNOWN) + 1)), seed=20)
    (place / "photos" / "no_image.png").write_text("text")
    return place


def embed(place, *arguments):
    return run_python(ROOT / "embed_folder.py", *arguments, cwd=place, RAY_ADDRESS=None)


def assert_same_as_classify(place, table):
    """That the rows of a table without an error are what the run's classifier answers."""
    rows = [number for number, error in enumerate(table["error"]) if error is None]
    paths, *found = ([table[name][row] for row in rows] for name in ("path", "embedding", "class", "share", "distance"))
    assert len(rows) >= len(table["error"]) - 1
    classifier = Classifier(place / "run")
    answers = classifier.predict(paths)
    np.testing.assert_allclose(found[0], classifier.embed(paths)[0], atol=1e-6)
    assert found[1] == [answer.class_name for answer in answers]
    np.testing.assert_allclose(found[2], [answer.share for answer in answers], atol=1e-6)
    np.testing.assert_allclose(found[3], [answer.distance for answer in answers], atol=1e-5)
    assert set(found[1]) == {*KNOWN, "unknown"}


@pytest.mark.slow
def test_a_command_that_is_killed_continues(place):
    """After three parts of 64 images; the second command embeds only what the first has not written."""
    code = f"""
import itertools, os, runpy, sys
from pipeline import ray_cluster

def killed(*arguments):
    yield from itertools.islice(embedded(*arguments), 3)
    os.kill(os.getpid(), 9)

embedded, ray_cluster.embedded, ray_cluster.PART = ray_cluster.embedded, killed, 64
sys.argv[1:] = ["run", "photos", "killed.parquet"]
runpy.run_path({str(ROOT / "embed_folder.py")!r}, run_name="__main__")
"""
    assert run_python("-c", code, cwd=place, RAY_ADDRESS=None).returncode != 0
    table = parquet.read_table(place / "killed.parquet")
    assert len(table) == 3 * 64
    done = embed(place, "run", "photos", "killed.parquet")
    assert done.returncode == 0 and f"{table['error'].null_count:,} of them embedded before" in done.stdout, done.stderr
    table = parquet.read_table(place / "killed.parquet").to_pydict()
    assert sorted(table["path"]) == sorted(str(path) for path in place.glob("photos/**/*.png"))
    assert_same_as_classify(place, table)


@pytest.mark.slow
def test_every_image_is_embedded_once_as_classify_does_also_in_two_commands(place):
    """First 300 images and one that cannot be read, from a list; then the folder, in which it can be read."""
    wrong, right = place / "photos" / "no_image.png", place / "photos" / "red" / "0.png"
    paths = sorted(str(path) for path in place.glob("photos/**/*.png"))
    assert len(paths) > 1000
    first = [str(wrong), *[path for path in paths if path != str(wrong)][:300]]
    (place / "list.txt").write_text("\n".join(path.replace(str(place), "./.") for path in first))
    done = embed(place, "run", "list.txt", "out.parquet")
    assert done.returncode == 0 and "301 images, 0 of them embedded before" in done.stdout, done.stderr
    assert "\n1 images could not be read" in done.stdout
    table = parquet.read_table(place / "out.parquet").to_pydict()
    assert sorted(table["path"]) == sorted(first)
    row = {name: values[table["path"].index(str(wrong))] for name, values in table.items()}
    assert row["error"] and {value for name, value in row.items() if name not in ("path", "error")} == {None}

    wrong.write_bytes(right.read_bytes())
    done = embed(place, "run", "photos", "out.parquet")
    assert done.returncode == 0, done.stderr
    assert f"{len(paths):,} images, 300 of them embedded before" in done.stdout
    assert "\n0 images could not be read" in done.stdout
    table = parquet.read_table(place / "out.parquet").to_pydict()
    assert sorted(table["path"]) == paths and set(table["error"]) == {None}
    assert_same_as_classify(place, table)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nothing", "photos", "new.parquet"), "`RUN_FOLDER` must be the folder of a finished run"),
        (("run", "nothing", "new.parquet"), "FOLDER_OR_LIST must be a folder, or a text file"),
        (("run", "empty.txt", "new.parquet"), "FOLDER_OR_LIST must be a text file with a path on each line"),
        (("run", "photos/red/0.png", "new.parquet"), "FOLDER_OR_LIST must be a text file with a path on each line"),
        (("run", "photos", "notes.parquet"), "OUT.parquet must be a new folder, .* which has 'notes.txt'"),
        (("run", "photos", "other.parquet"), "OUT.parquet must be a new folder, or one of the same run"),
        (("run", "photos", "empty.txt"), "OUT.parquet must be a new folder, or one of the same run"),
    ],
)
def test_wrong_arguments_are_named(arguments, words, place, monkeypatch):
    (place / "empty.txt").write_text("\n")
    (place / "other.parquet").mkdir(exist_ok=True)
    (place / "other.parquet" / "part-000001.parquet").write_text("not a table")
    (place / "notes.parquet").mkdir(exist_ok=True)
    (place / "notes.parquet" / "notes.txt").write_text("something else")
    monkeypatch.chdir(place)
    monkeypatch.setattr("sys.argv", ["embed_folder.py", *arguments])
    with pytest.raises(InputError, match=words):
        embed_folder.main()
    assert not (place / "new.parquet").exists() and os.listdir(place / "notes.parquet") == ["notes.txt"]


def row(path, error=""):
    return {"path": [path], "class": ["b"], "share": [1], "distance": [0.5], "embedding": [[1, 0]], "error": [error]}


def test_a_table_continues_where_it_was_interrupted_and_is_of_one_run_and_one_process(place, tmp_path):
    folder = tmp_path / "out"
    table = EmbeddingTable(folder, place / "run")
    table.write([row("a"), row("b", "cannot be read")], 2)
    assert table.unreadable == 1
    with pytest.raises(InputError, match="in use by another process"):
        EmbeddingTable(folder, place / "run")
    table.lock.close()  # the process ends
    (folder / ".part.part-000003.parquet").write_bytes(b"half of a fi")
    (folder / ".DS_Store").touch()
    table = EmbeddingTable(folder, place / "run")
    assert table.missing(["c", "b", "a", "c"]) == ["c", "b"] and table.unreadable == 0
    table.write([row("c")], 1)
    table.lock.close()
    assert sorted(parquet.read_table(folder)["path"].to_pylist()) == ["a", "c"]

    shutil.copytree(place / "run", tmp_path / "run")
    with open(tmp_path / "run" / "references.npz", "ab") as file:
        file.write(b"changed")
    with pytest.raises(InputError, match="of another run"):
        EmbeddingTable(folder, tmp_path / "run")
