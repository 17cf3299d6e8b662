"""A run folder has one run, one process at a time, and constants that do not change."""

import errno
import json
import os
import subprocess
import sys
import time

import pytest
from processes import ROOT, run_python

from pipeline import checkpoint_files, lock, run_folder
from pipeline.errors import InputError
from pipeline.finished_run import constants_of_finished
from pipeline.settings.options import STARTED_WITH

CONSTANTS = {"EPOCHS": 3, "SEED": 0, "RUN_FOLDER": "here", "OVERWRITE": False, "CHECKPOINT_MINUTES": 5.0}
SOURCES = {"images in DATASET": 1, "KERAS_BACKEND": "tensorflow", "value range": (100.0, 4095.0)}
READ_AGAIN = SOURCES | {"value range": [100.0, 4095.0]}
OTHER_IMAGES = SOURCES | {"images in DATASET": 2}
KEPT = {name: value for name, value in CONSTANTS.items() if name != "OVERWRITE"}
CHECKPOINT = "checkpoint-00001-0000002.npz"


def start(folder, overwrite=False, sources=SOURCES, **changed):
    """Starts a run as a command does, which has OVERWRITE among its constants."""
    return run_folder.start(folder, CONSTANTS | {"OVERWRITE": overwrite} | changed, overwrite, sources)


def start_again(folder, overwrite=False, sources=SOURCES, **changed):
    """Starts a run as the next process does, after the first has ended."""
    lock.unlock(folder)
    return start(folder, overwrite, sources, **changed)


def stored(folder):
    return json.loads((folder / "constants.json").read_text(encoding="utf-8"))


def finish(folder, report="done"):
    for name in run_folder.RESULTS:
        (folder / name).write_text("")
    run_folder.finish(folder, report)


def test_a_new_folder_has_no_report_and_gets_the_constants(tmp_path):
    folder = tmp_path / "a" / "b"
    assert run_folder.finished_report(folder, CONSTANTS) == ""
    assert start(folder) == folder
    assert stored(folder) == KEPT | {STARTED_WITH: READ_AGAIN | {"OVERWRITE": False}}
    assert run_folder.finished_report(folder, CONSTANTS) == ""
    (folder / CHECKPOINT).write_text("")
    finish(folder, "très bien")
    assert run_folder.finished_report(folder, CONSTANTS) == "très bien"
    assert checkpoint_files.checkpoint_paths(folder) == []


def test_a_finished_run_is_printed_unless_it_is_overwritten(tmp_path, capsys):
    start(tmp_path)
    assert not run_folder.print_finished(tmp_path, CONSTANTS, overwrite=False)
    finish(tmp_path, "accuracy 0.9")
    (tmp_path / CHECKPOINT).write_text("left by a process that was killed before it removed it")
    others = CONSTANTS | {"SEED": 1}
    assert not run_folder.print_finished(tmp_path, others, overwrite=True)
    assert capsys.readouterr().out == ""
    with pytest.raises(InputError, match="SEED was 0, now 1"):
        run_folder.print_finished(tmp_path, others, overwrite=False)
    assert (tmp_path / CHECKPOINT).exists()
    assert run_folder.print_finished(tmp_path, CONSTANTS, overwrite=False)
    printed = capsys.readouterr().out
    assert "--overwrite" in printed and "accuracy 0.9" in printed
    assert not (tmp_path / CHECKPOINT).exists()


@pytest.mark.parametrize("finished", [False, True])
def test_all_changed_constants_are_named_at_once(finished, tmp_path):
    start(tmp_path)
    if finished:
        finish(tmp_path)
    else:
        (tmp_path / CHECKPOINT).touch()
    others = CONSTANTS | {"EPOCHS": 4, "SEED": 1, "MARGIN": 0.5, "RUN_FOLDER": "there", "CHECKPOINT_MINUTES": 1.0}
    with pytest.raises(InputError) as caught:
        run_folder.finished_report(tmp_path, others)
    for part in ("EPOCHS was 3, now 4", "MARGIN was None, now 0.5", "SEED was 0, now 1", "--overwrite"):
        assert part in str(caught.value)
    assert "MINUTES" not in str(caught.value)
    unchanged = CONSTANTS | {"RUN_FOLDER": "there", "CHECKPOINT_MINUTES": 1.0}
    assert run_folder.finished_report(tmp_path, unchanged) == ("done" if finished else "")


@pytest.mark.parametrize("content", ["", "{", "\x00\x01", "[]", "null", "3", '{"EPOCHS": 3, "started with": 5}'])
def test_unreadable_constants_are_refused_and_can_be_overwritten(content, tmp_path):
    (tmp_path / "constants.json").write_text(content)
    with pytest.raises(InputError, match=r"`RUN_FOLDER` must be new or have a readable run.*--overwrite"):
        run_folder.finished_report(tmp_path, CONSTANTS)
    assert not run_folder.print_finished(tmp_path, CONSTANTS, overwrite=True)
    start(tmp_path, overwrite=True)
    assert run_folder.finished_report(tmp_path, CONSTANTS) == ""


def test_overwriting_removes_the_run_and_nothing_else(tmp_path):
    start(tmp_path)
    for name in (*run_folder.FILES, CHECKPOINT, "notes.txt", ".part.checkpoint"):
        (tmp_path / name).write_text("old")
    start_again(tmp_path, overwrite=True, EPOCHS=9)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "constants.json", "notes.txt"]
    assert stored(tmp_path)["EPOCHS"] == 9


def test_a_second_process_is_refused_until_the_first_has_ended(tmp_path):
    start(tmp_path)
    code = (
        "from pipeline import run_folder\n"
        "from pipeline.errors import InputError\n"
        "try: {call}; print('started')\n"
        "except InputError as error: print(error)\n"
    )
    starting = code.format(call=f"run_folder.start({str(tmp_path)!r}, {CONSTANTS!r}, False, {SOURCES!r})")
    early = code.format(call=f"run_folder.finished_report({str(tmp_path)!r}, {CONSTANTS!r})")  # before Keras is loaded
    for each in (starting, early):
        assert "`RUN_FOLDER` must not be in use by another process" in run_python("-c", each).stdout
    assert stored(tmp_path) == KEPT | {STARTED_WITH: READ_AGAIN | {"OVERWRITE": False}}
    lock.unlock(tmp_path)
    assert run_python("-c", starting).stdout == "started\n"
    start(tmp_path)  # the other process has ended


@pytest.fixture
def other_process(tmp_path):
    """Another process that has locked the folder; it releases it one second after a line is written to it."""
    code = (
        "import sys, time\n"
        "from pipeline import lock\n"
        f"lock.lock({str(tmp_path)!r})\n"
        "print('locked', flush=True)\n"
        "sys.stdin.readline()\n"
        "time.sleep(1)\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, **pipes) as process:
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_a_lock_waits_for_another_process_that_releases_it(other_process, tmp_path):
    other_process.stdin.write("\n")
    other_process.stdin.flush()
    began = time.monotonic()
    assert lock.lock(tmp_path, seconds=60)
    assert 0.3 < time.monotonic() - began < 30  # it had to wait, and did not wait much longer
    lock.check_not_in_use(tmp_path)  # by another process than this one
    lock.unlock(tmp_path)


@pytest.mark.parametrize("seconds", [0, 0.5])
def test_a_lock_waits_no_longer_than_it_may(seconds, other_process, tmp_path):
    began = time.monotonic()
    with pytest.raises(InputError, match="`RUN_FOLDER` must not be in use by another process"):
        lock.lock(tmp_path, seconds)
    assert seconds <= time.monotonic() - began < seconds + 5
    with pytest.raises(InputError, match="`RUN_FOLDER` must not be in use by another process"):
        lock.check_not_in_use(tmp_path)
    lock.unlock(tmp_path)  # what this process has not locked stays locked
    with pytest.raises(InputError, match="`RUN_FOLDER` must not be in use by another process"):
        lock.lock(tmp_path)


def test_a_check_leaves_a_folder_unlocked_and_makes_no_lock_file(tmp_path):
    lock.check_not_in_use(tmp_path)
    assert list(tmp_path.iterdir()) == []
    lock.lock(tmp_path)
    lock.unlock(tmp_path)
    lock.check_not_in_use(tmp_path)
    code = f"from pipeline import lock; print(lock.lock({str(tmp_path)!r}))"
    assert run_python("-c", code).stdout == "True\n"


@pytest.mark.parametrize("name", ["report.txt", "embedding_model.keras", CHECKPOINT])
def test_files_that_no_run_has_left_are_neither_replaced_nor_shown(name, tmp_path):
    (tmp_path / name).write_text("someone else's")
    for attempt in (
        lambda: run_folder.finished_report(tmp_path, CONSTANTS),
        lambda: run_folder.finished_report(tmp_path, None),
        lambda: start(tmp_path, overwrite=True),
    ):
        with pytest.raises(InputError, match=rf"`RUN_FOLDER` must be new, empty or of an earlier run.*{name}"):
            attempt()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "someone else's")]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_writable_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    for attempt in (start, lambda folder: run_folder.finished_report(folder, CONSTANTS)):
        with pytest.raises(InputError, match="`RUN_FOLDER` must be a writable folder"):
            attempt(tmp_path / "new")


def test_a_clock_that_is_not_set_is_refused_before_training(tmp_path, monkeypatch):
    """Model files are zip files, whose times begin in 1980."""
    monkeypatch.setattr("time.time", lambda: 86400.0)
    with pytest.raises(InputError, match=r"clock .* must be set.*1970"):
        run_folder.finished_report(tmp_path, CONSTANTS)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "taken").write_text("")
    for attempt in (start, lambda folder: run_folder.finished_report(folder, CONSTANTS)):
        with pytest.raises(InputError, match="`RUN_FOLDER` must be a writable folder"):
            attempt(tmp_path / "taken")


@pytest.mark.skipif(os.name != "posix", reason="other limits")
def test_a_path_that_cannot_be_a_folder_is_refused(tmp_path):
    (tmp_path / "itself").symlink_to(tmp_path / "itself")
    for folder in (tmp_path / ("x" * 300), tmp_path / "itself" / "run"):
        with pytest.raises(InputError, match="`RUN_FOLDER` must "):
            run_folder.finished_report(folder, CONSTANTS)


def test_a_finished_run_without_its_model_is_not_shown_as_finished(tmp_path):
    start(tmp_path)
    finish(tmp_path)
    (tmp_path / "embedding_model.keras").unlink()
    with pytest.raises(InputError, match=r"a finished run without embedding_model\.keras; choose another"):
        run_folder.finished_report(tmp_path, CONSTANTS)
    (tmp_path / CHECKPOINT).write_text("")  # from which the model is written again
    assert run_folder.finished_report(tmp_path, CONSTANTS) == ""


@pytest.mark.parametrize("finished", [False, True])
def test_another_path_of_the_same_files_is_not_a_changed_constant(finished, tmp_path, monkeypatch):
    """Of an unfinished run any path may be another, as in the next job of a cluster: `start` compares the contents."""
    monkeypatch.chdir(tmp_path)
    paths = {"DATASET": "pictures", "WEIGHTS": "a.keras"}
    start(tmp_path / "run", **paths)
    (tmp_path / "run" / CHECKPOINT).touch()
    if finished:
        finish(tmp_path / "run")
    for same in ("pictures/", "./pictures", str(tmp_path / "pictures")):
        assert run_folder.finished_report(tmp_path / "run", CONSTANTS | paths | {"DATASET": same}) == "done" * finished
    elsewhere = CONSTANTS | {"DATASET": "/scratch/7/pictures", "WEIGHTS": "/scratch/7/a.keras"}
    if finished:  # whose images are not read again
        with pytest.raises(InputError, match=r"DATASET was 'pictures'.*WEIGHTS was 'a\.keras'"):
            run_folder.finished_report(tmp_path / "run", elsewhere)
    else:
        assert run_folder.finished_report(tmp_path / "run", elsewhere) == ""
        start_again(tmp_path / "run", **{name: elsewhere[name] for name in paths})
        assert stored(tmp_path / "run")["DATASET"] == "/scratch/7/pictures"
        with pytest.raises(InputError, match="a run with other images in DATASET"):
            start_again(tmp_path / "run", sources=OTHER_IMAGES, **paths)
    for name, other in (("DATASET", "digits"), ("WEIGHTS", "none")):
        with pytest.raises(InputError, match=f"{name} was .*, now '{other}'"):
            run_folder.finished_report(tmp_path / "run", CONSTANTS | paths | {name: other})
    start(tmp_path / "other", DATASET="digits")
    (tmp_path / "other" / CHECKPOINT).touch()
    with pytest.raises(InputError, match=r"DATASET was 'digits', now '\./digits'"):
        run_folder.finished_report(tmp_path / "other", CONSTANTS | {"DATASET": "./digits"})


def test_a_finished_run_says_how_to_train_its_model_further(tmp_path):
    start(tmp_path)
    finish(tmp_path)
    with pytest.raises(InputError) as caught:
        run_folder.finished_report(tmp_path, CONSTANTS | {"EPOCHS": 30})
    advice = f"--weights {tmp_path / 'embedding_model.keras'} with another --run-folder"
    assert "EPOCHS was 3, now 30" in str(caught.value) and advice in str(caught.value)


def test_a_run_that_has_not_trained_may_get_other_constants(tmp_path):
    """As after the advice to lower a constant, when memory has run out in the first step."""
    start(tmp_path)
    (tmp_path / "controls.npz").write_text("of the other constants")
    assert run_folder.finished_report(tmp_path, CONSTANTS | {"EPOCHS": 5}) == ""
    start_again(tmp_path, EPOCHS=5)
    assert stored(tmp_path)["EPOCHS"] == 5
    assert not (tmp_path / "controls.npz").exists()
    (tmp_path / "controls.npz").write_text("of these constants")
    start_again(tmp_path, EPOCHS=5)
    assert (tmp_path / "controls.npz").exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_a_run_starts_with_one_warning(number, tmp_path, monkeypatch, capsys):
    def unsupported(*_):
        raise OSError(number, os.strerror(number))

    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", unsupported)
    for _ in range(2):  # the second finds the lock file
        assert run_folder.finished_report(tmp_path, CONSTANTS) == ""
        start_again(tmp_path)
        printed = capsys.readouterr().out
        assert printed.count("\n") == 1 and "without locks: never start two processes" in printed


def test_an_overwritten_run_is_resumed_by_the_same_command(tmp_path):
    checkpoint = tmp_path / CHECKPOINT
    start(tmp_path)
    checkpoint.write_text("of the previous run")
    start_again(tmp_path, overwrite=True)
    assert not checkpoint.exists()
    checkpoint.write_text("new")
    start_again(tmp_path, overwrite=True)
    assert checkpoint.exists()
    finish(tmp_path)
    start_again(tmp_path, overwrite=True)  # a finished run is trained again
    assert not (tmp_path / "report.txt").exists()
    checkpoint.write_text("new")
    start_again(tmp_path, overwrite=True, SEED=1)
    assert not checkpoint.exists()
    checkpoint.write_text("of images that have changed")
    start_again(tmp_path, overwrite=True, SEED=1, sources=OTHER_IMAGES)
    assert not checkpoint.exists()
    checkpoint.write_text("of the overwriting run")
    start_again(tmp_path, overwrite=False, SEED=1, sources=OTHER_IMAGES)  # without the option it is resumed too
    assert checkpoint.exists()


def test_a_run_is_not_resumed_with_other_sources_or_after_another_process_has_finished_it(tmp_path):
    start(tmp_path)
    (tmp_path / CHECKPOINT).touch()
    with pytest.raises(InputError, match="a run with other images in DATASET; choose another"):
        start_again(tmp_path, sources=OTHER_IMAGES)
    with pytest.raises(InputError, match="other images in DATASET, other KERAS_BACKEND"):
        start_again(tmp_path, sources=OTHER_IMAGES | {"KERAS_BACKEND": "jax"})
    with pytest.raises(InputError, match="EPOCHS was 3, now 5"):
        start_again(tmp_path, EPOCHS=5)
    finish(tmp_path)
    with pytest.raises(InputError, match="has just finished"):
        start_again(tmp_path)
    assert stored(tmp_path) == KEPT | {STARTED_WITH: READ_AGAIN | {"OVERWRITE": False}}


def write_run_of_an_earlier_version(folder, overwritten):
    constants = KEPT | {"START_AFRESH": overwritten}
    (folder / "constants.json").write_text(json.dumps({**constants, "begun with": SOURCES}, indent=4) + "\n")
    (folder / CHECKPOINT).write_text("of the earlier version")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("overwritten", [False, True])
def test_an_unfinished_run_of_an_earlier_version_is_resumed_or_overwritten(overwritten, overwrite, tmp_path):
    write_run_of_an_earlier_version(tmp_path, overwritten)
    assert not run_folder.print_finished(tmp_path, CONSTANTS | {"OVERWRITE": overwrite}, overwrite)
    # A source that the earlier version did not store counts as unchanged.
    start(tmp_path, overwrite, SOURCES | {"precision": "float32"})
    assert (tmp_path / CHECKPOINT).exists() == (overwritten or not overwrite)
    expected = {**READ_AGAIN, "precision": "float32", "OVERWRITE": overwrite}
    assert stored(tmp_path) == KEPT | {STARTED_WITH: expected}


def test_a_run_of_an_earlier_version_is_refused_with_other_constants_or_sources(tmp_path):
    write_run_of_an_earlier_version(tmp_path, overwritten=True)
    before = (tmp_path / "constants.json").read_bytes()
    with pytest.raises(InputError, match=r"\(SEED was 0, now 1\)"):
        run_folder.finished_report(tmp_path, CONSTANTS | {"SEED": 1})
    with pytest.raises(InputError, match="a run with other images in DATASET; choose another"):
        start(tmp_path, sources=OTHER_IMAGES)
    assert (tmp_path / "constants.json").read_bytes() == before
    assert (tmp_path / CHECKPOINT).exists()


def test_a_finished_run_of_an_earlier_version_is_shown(tmp_path):
    write_run_of_an_earlier_version(tmp_path, overwritten=False)
    finish(tmp_path, "the report")
    assert run_folder.finished_report(tmp_path, CONSTANTS) == "the report"
    assert run_folder.finished_report(tmp_path, CONSTANTS | {"SMALL_CLASSES": "stop"}) == "the report"
    with pytest.raises(InputError, match="SMALL_CLASSES was"):  # which did not exist, and was as good as "stop"
        run_folder.finished_report(tmp_path, CONSTANTS | {"SMALL_CLASSES": "skip"})


def test_a_run_of_an_earlier_version_held_no_class_out_and_had_the_usual_rate(tmp_path):
    write_run_of_an_earlier_version(tmp_path, overwritten=False)
    finish(tmp_path, "the report")
    added = {"HELD_OUT_CLASSES": "none", "FALSE_REJECTION_RATE": 0.01}
    assert run_folder.finished_report(tmp_path, CONSTANTS | added) == "the report"
    for name, other in (("HELD_OUT_CLASSES", "1"), ("FALSE_REJECTION_RATE", 0.02)):
        with pytest.raises(InputError, match=rf"\({name} was "):
            run_folder.finished_report(tmp_path, CONSTANTS | added | {name: other})


def test_the_constants_of_a_finished_run_are_read(tmp_path):
    rule = "^`RUN_FOLDER` must be the folder of a finished run of init.py"
    with pytest.raises(InputError, match=f"{rule}.*gone', which is no folder"):
        constants_of_finished(tmp_path / "gone")
    with pytest.raises(InputError, match=rf"{rule}.* without constants\.json, embedding_model\.keras, references\.npz"):
        constants_of_finished(tmp_path)
    start(tmp_path, NEIGHBOURS=5)
    with pytest.raises(InputError, match=f"{rule}.*not finished"):
        constants_of_finished(tmp_path)
    finish(tmp_path)
    assert constants_of_finished(tmp_path) == stored(tmp_path)
    for name in run_folder.RESULTS:
        (tmp_path / name).unlink()
        with pytest.raises(InputError, match=rf"{rule}.* without {name}$"):
            constants_of_finished(str(tmp_path))
        (tmp_path / name).touch()


def test_checkpoints_are_listed_newest_first_and_all_but_the_newest_are_removed(tmp_path):
    names = ["checkpoint-00002-0000000.npz", "checkpoint-00001-0000100.npz", "checkpoint-00001-0000020.npz"]
    for name in [*reversed(names), "checkpoint-notes.npz"]:
        (tmp_path / name).write_text("")
    assert [path.name for path in checkpoint_files.checkpoint_paths(tmp_path)] == names
    checkpoint_files.remove_checkpoints(tmp_path, keep=2)
    assert [path.name for path in checkpoint_files.checkpoint_paths(tmp_path)] == names[:2]
    checkpoint_files.remove_checkpoints(tmp_path, keep=2, newest=tmp_path / names[1])  # names[0] is corrupt
    assert [path.name for path in checkpoint_files.checkpoint_paths(tmp_path)] == names[1:2]
    checkpoint_files.remove_checkpoints(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-notes.npz"]


def test_waiting_in_vain_for_a_lock_does_not_release_it(tmp_path):
    """As another thread of the process might."""
    lock.lock(tmp_path)
    for _ in range(2):
        with pytest.raises(InputError, match="in use by another process"), lock.locked(tmp_path, 0):
            pass
    lock.unlock(tmp_path)
    with lock.locked(tmp_path, 0):
        pass
    assert lock.lock(tmp_path)
    lock.unlock(tmp_path)
