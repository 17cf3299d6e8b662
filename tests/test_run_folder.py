"""A run folder has one run, one process, and whole files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import run_folder
from command_line import InputError

FOLDER = Path(__file__).resolve().parent.parent
CONSTANTS = {"EPOCHS": 3, "SEED": 0, "RUN_FOLDER": "here", "START_AFRESH": False, "CHECKPOINT_MINUTES": 5.0}
SOURCES = {"images in DATASET": 1, "KERAS_BACKEND": "tensorflow"}
OTHER_IMAGES = SOURCES | {"images in DATASET": 2}


def in_another_process(code):
    done = subprocess.run([sys.executable, "-c", code], cwd=FOLDER, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_new_folder_has_no_report_and_gets_the_constants(tmp_path):
    folder = tmp_path / "a" / "b"
    assert run_folder.finished_report(folder, CONSTANTS) == ""
    assert run_folder.begin(folder, CONSTANTS, False, SOURCES) == folder
    assert json.loads((folder / "constants.json").read_text()) == CONSTANTS | {run_folder.SOURCES: SOURCES}
    assert run_folder.finished_report(folder, CONSTANTS) == ""
    (folder / "report.txt").write_text("très bien", encoding="utf-8")
    for name in run_folder.RESULTS:
        (folder / name).write_text("")
    assert run_folder.finished_report(folder, CONSTANTS) == "très bien"


@pytest.mark.parametrize("finished", [False, True])
def test_other_constants_are_named_all_at_once(finished, tmp_path):
    run_folder.begin(tmp_path, CONSTANTS, False, SOURCES)
    if finished:
        (tmp_path / "report.txt").write_text("done")
    others = CONSTANTS | {"EPOCHS": 4, "SEED": 1, "MARGIN": 0.5, "RUN_FOLDER": "there", "CHECKPOINT_MINUTES": 1.0}
    with pytest.raises(InputError) as told:
        run_folder.finished_report(tmp_path, others)
    for part in ("EPOCHS 3 there, 4 now", "MARGIN None there, 0.5 now", "SEED 0 there, 1 now", "--start-afresh True"):
        assert part in str(told.value)
    assert "MINUTES" not in str(told.value)


@pytest.mark.parametrize("content", ["", "{", "\x00\x01", "[]", "null", "3"])
def test_constants_that_cannot_be_read_are_told(content, tmp_path):
    (tmp_path / "constants.json").write_text(content)
    with pytest.raises(InputError, match="`RUN_FOLDER` must hold a run that can be read"):
        run_folder.finished_report(tmp_path, CONSTANTS)


def test_starting_afresh_removes_the_run_and_nothing_else(tmp_path):
    run_folder.begin(tmp_path, CONSTANTS, False, SOURCES)
    for name in (*run_folder.FILES, "checkpoint-00001-0000002.npz", "notes.txt", ".part.checkpoint"):
        (tmp_path / name).write_text("old")
    run_folder._locks.popitem()[1].close()
    run_folder.begin(tmp_path, CONSTANTS | {"EPOCHS": 9}, True, SOURCES)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "constants.json", "notes.txt"]
    assert json.loads((tmp_path / "constants.json").read_text())["EPOCHS"] == 9


def test_a_second_process_is_refused_until_the_first_has_ended(tmp_path):
    run_folder.begin(tmp_path, CONSTANTS, False, SOURCES)
    code = (
        "import run_folder\n"
        f"try: run_folder.begin({str(tmp_path)!r}, {CONSTANTS!r}, False, {SOURCES!r}); print('begun')\n"
        "except run_folder.InputError as error: print(error)\n"
    )
    assert "`RUN_FOLDER` must not be in use by another process" in in_another_process(code)
    early = code.replace("begin(", "finished_report(").replace(f", False, {SOURCES!r})", ")")  # before all is loaded
    assert "`RUN_FOLDER` must not be in use by another process" in in_another_process(early)
    assert json.loads((tmp_path / "constants.json").read_text()) == CONSTANTS | {run_folder.SOURCES: SOURCES}
    run_folder._locks.popitem()[1].close()
    assert in_another_process(code) == "begun"


@pytest.mark.parametrize("name", ["report.txt", "embedding_model.keras", "checkpoint-00001-0000002.npz"])
def test_files_that_no_run_has_left_are_neither_replaced_nor_shown(name, tmp_path):
    (tmp_path / name).write_text("of somebody else")
    for attempt in (
        lambda: run_folder.finished_report(tmp_path, CONSTANTS),
        lambda: run_folder.finished_report(tmp_path, None),
        lambda: run_folder.begin(tmp_path, CONSTANTS, True, SOURCES),
    ):
        with pytest.raises(InputError, match=rf"`RUN_FOLDER` must be new, empty or of an earlier run.*{name}"):
            attempt()
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="`RUN_FOLDER` must be a folder that can be written"):
        run_folder.begin(tmp_path / "new", CONSTANTS, False, SOURCES)


def test_a_file_in_the_place_of_the_folder_is_told(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match="`RUN_FOLDER` must be a folder that can be written"):
        run_folder.begin(tmp_path / "taken", CONSTANTS, False, SOURCES)


def test_a_file_is_written_whole_or_stays_as_it_was(tmp_path):
    path = tmp_path / "file"
    run_folder.write_whole(path, "first")
    with pytest.raises(RuntimeError), run_folder.written_whole(path) as file:
        file.write(b"half of the sec")
        raise RuntimeError
    assert path.read_text() == "first"
    with pytest.raises(InputError, match="`RUN_FOLDER` must stay a folder that can be written"):
        run_folder.write_whole(tmp_path / "removed" / "file", "first")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_file_that_others_write_by_its_path_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Else a power cut after the end of a run leaves an empty model beside a whole report."""
    path, steps = tmp_path / "model.keras", []
    monkeypatch.setattr(os, "fsync", lambda file: steps.append((os.fstat(file).st_size, path.exists())))
    with run_folder.whole(path) as beside:
        assert beside.suffix == ".keras"
        beside.write_bytes(b"model")
    assert steps[0] == (5, False)
    assert path.read_bytes() == b"model"
    with pytest.raises(OSError, match="full"), run_folder.whole(path) as beside:
        beside.write_bytes(b"mo")
        raise OSError("full")
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("model.keras", b"model")]


def test_a_finished_run_without_its_model_is_not_shown_as_finished(tmp_path):
    run_folder.begin(tmp_path, CONSTANTS, False, SOURCES)
    (tmp_path / "report.txt").write_text("done")
    (tmp_path / "references.npz").write_text("")
    with pytest.raises(InputError, match=r"a finished run whose embedding_model\.keras has been removed; name another"):
        run_folder.finished_report(tmp_path, CONSTANTS)
    (tmp_path / "checkpoint-00003-0000000.npz").write_text("")  # from which it is made again
    assert run_folder.finished_report(tmp_path, CONSTANTS) == ""


def test_another_path_of_the_same_images_is_no_other_constant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_folder.begin(tmp_path / "run", CONSTANTS | {"DATASET": "pictures"}, False, SOURCES)
    for same in ("pictures/", "./pictures", str(tmp_path / "pictures")):
        assert run_folder.finished_report(tmp_path / "run", CONSTANTS | {"DATASET": same}) == ""
    for other in ("others", "digits", "./digits"):
        with pytest.raises(InputError, match="DATASET 'pictures' there"):
            run_folder.finished_report(tmp_path / "run", CONSTANTS | {"DATASET": other})
    run_folder.begin(tmp_path / "other", CONSTANTS | {"DATASET": "digits"}, False, SOURCES)
    with pytest.raises(InputError, match=r"DATASET 'digits' there, '\./digits' now"):
        run_folder.finished_report(tmp_path / "other", CONSTANTS | {"DATASET": "./digits"})


def test_what_was_computed_once_is_remembered(tmp_path):
    times = []

    def compute():
        times.append(1)
        return {"accuracy": 0.5}

    first = run_folder.remembered(tmp_path / "values.json", compute)
    assert first == run_folder.remembered(tmp_path / "values.json", compute) == {"accuracy": 0.5}
    assert len(times) == 1
    for damaged in ("", "{", "[]", "3"):
        (tmp_path / "values.json").write_text(damaged)
        assert run_folder.remembered(tmp_path / "values.json", compute) == {"accuracy": 0.5}
    assert len(times) == 5


def begin_again(folder, constants, afresh=False, sources=SOURCES):
    run_folder._locks.popitem()[1].close()
    return run_folder.begin(folder, constants, afresh, sources)


def test_a_run_that_was_begun_afresh_goes_on_when_the_same_command_comes_again(tmp_path):
    afresh = CONSTANTS | {"START_AFRESH": True}
    kept = tmp_path / "checkpoint-00001-0000002.npz"
    run_folder.begin(tmp_path, CONSTANTS, False, SOURCES)
    kept.write_text("of the run before")
    begin_again(tmp_path, afresh, True)
    assert not kept.exists()
    kept.write_text("new")
    begin_again(tmp_path, afresh, True)
    assert kept.exists()
    (tmp_path / "report.txt").write_text("done")  # a finished one begins again
    begin_again(tmp_path, afresh, True)
    assert not kept.exists()
    kept.write_text("new")
    begin_again(tmp_path, afresh | {"SEED": 1}, True)
    assert not kept.exists()
    kept.write_text("of images that have changed since")
    begin_again(tmp_path, afresh | {"SEED": 1}, True, sources=OTHER_IMAGES)
    assert not kept.exists()


def test_a_run_does_not_go_on_with_other_sources_or_after_another_process_has_finished_it(tmp_path):
    run_folder.begin(tmp_path, CONSTANTS, False, SOURCES)
    with pytest.raises(InputError, match="a run begun with other images in DATASET; name another"):
        begin_again(tmp_path, CONSTANTS, sources=OTHER_IMAGES)
    with pytest.raises(InputError, match="other images in DATASET, other KERAS_BACKEND"):
        begin_again(tmp_path, CONSTANTS, sources=OTHER_IMAGES | {"KERAS_BACKEND": "jax"})
    with pytest.raises(InputError, match="EPOCHS 3 there, 5 now"):
        begin_again(tmp_path, CONSTANTS | {"EPOCHS": 5})
    run_folder.finish(tmp_path, "done")
    for name in run_folder.RESULTS:
        (tmp_path / name).write_text("")
    with pytest.raises(InputError, match="has just finished"):
        begin_again(tmp_path, CONSTANTS)
    assert json.loads((tmp_path / "constants.json").read_text()) == CONSTANTS | {run_folder.SOURCES: SOURCES}


@pytest.mark.skipif(os.name != "posix", reason="other limits")
def test_a_path_that_cannot_be_a_folder_is_told(tmp_path):
    (tmp_path / "itself").symlink_to(tmp_path / "itself")
    for folder in (tmp_path / ("x" * 300), tmp_path / "itself" / "run"):
        with pytest.raises(InputError, match="`RUN_FOLDER` must "):
            run_folder.finished_report(folder, CONSTANTS)


def test_checkpoints_are_listed_newest_first_and_all_but_the_newest_removed(tmp_path):
    names = ["checkpoint-00002-0000000.npz", "checkpoint-00001-0000100.npz", "checkpoint-00001-0000020.npz"]
    for name in reversed(names):
        (tmp_path / name).write_text("")
    assert [path.name for path in run_folder.checkpoints(tmp_path)] == names
    run_folder.remove_checkpoints(tmp_path, kept=2)
    assert [path.name for path in run_folder.checkpoints(tmp_path)] == names[:2]
    run_folder.remove_checkpoints(tmp_path, kept=2, newest=tmp_path / names[1])  # names[0] was damaged
    assert [path.name for path in run_folder.checkpoints(tmp_path)] == names[1:2]
