"""A file is complete or unchanged, whatever ends the process that writes it."""

import errno
import os
import signal
import stat

import pytest
from processes import run_python

from pipeline import files
from pipeline.errors import InputError


def test_a_block_that_fails_leaves_the_file_unchanged_and_no_other(tmp_path):
    path = tmp_path / "file"
    files.write_text(path, "first")
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), files.open_atomic(path) as file:
            file.write(b"half of the sec")
            raise error
        assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("file", "first")]
    files.write_text(path, "the second, très long")
    assert path.read_bytes() == "the second, très long".encode()


def test_a_file_is_on_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    """Otherwise a power cut after the end of a run leaves an empty model next to a complete report."""
    path, steps = tmp_path / "model.keras", []
    monkeypatch.setattr(os, "fsync", lambda file: steps.append((os.fstat(file).st_size, path.exists())))
    with files.atomic_path(path) as temporary:
        assert (temporary.parent, temporary.suffix) == (tmp_path, ".keras")  # Keras chooses the format by the suffix
        temporary.write_bytes(b"model")
    assert steps[0] == (5, False)
    if os.name == "posix":
        assert steps[1][1] and len(steps) == 2  # the folder, after the rename
    assert path.read_bytes() == b"model"


def test_a_file_that_cannot_be_flushed_or_renamed_is_removed(tmp_path, monkeypatch):
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    with pytest.raises(OSError), files.open_atomic(tmp_path / "folder") as file:  # a folder has its name
        file.write(b"content")
    assert [each.name for each in tmp_path.iterdir()] == ["folder"]

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"`RUN_FOLDER` must stay writable.* free space.*No space left on device"):
        files.write_text(tmp_path / "report.txt", "text")
    assert [each.name for each in tmp_path.iterdir()] == ["folder"]


def test_a_folder_that_has_disappeared_is_reported(tmp_path):
    with pytest.raises(InputError, match=r"`RUN_FOLDER` must stay writable.*removed"):
        files.write_text(tmp_path / "removed" / "file", "text")


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9")
def test_a_killed_process_leaves_the_file_unchanged_and_a_partial_file_that_is_removed(tmp_path):
    path, other = tmp_path / "file", tmp_path / ".hidden"
    files.write_text(path, "first")
    other.write_text("not a partial file")
    code = (
        "import os, signal, sys\nfrom pipeline import files\n"
        "with files.open_atomic(sys.argv[1]) as file:\n"
        "    file.write(b'half of the sec')\n    file.flush()\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert run_python("-c", code, path).returncode == -signal.SIGKILL
    assert path.read_text() == "first"
    assert len(list(tmp_path.iterdir())) == 3
    files.remove_partial_files(tmp_path)
    assert {each.name for each in tmp_path.iterdir()} == {"file", ".hidden"}


def test_the_checksum_is_crc_32_of_the_content_and_0_without_a_file(tmp_path):
    (tmp_path / "weights").write_bytes(b"123456789")
    assert files.checksum(tmp_path / "weights") == 0xCBF43926  # the check value in the catalogues of CRCs
    assert files.checksum(tmp_path / "none") == files.checksum(tmp_path) == 0


def test_a_file_that_another_program_holds_open_is_written_once_it_is_released(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("old")
    tries, replace = [], os.replace

    def held(source, target):
        tries.append(source)
        if len(tries) < 4:
            raise PermissionError(errno.EACCES, "in use by another process")
        replace(source, target)

    monkeypatch.setattr(os, "replace", held)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    files.write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new" and len(tries) == 4


def test_a_file_that_stays_held_is_reported_and_keeps_its_content(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("old")
    monkeypatch.setattr(files, "HELD_SECONDS", 0.2)

    def held(source, target):
        raise OSError(errno.EBUSY, "in use by another process")

    monkeypatch.setattr(os, "replace", held)
    with pytest.raises(InputError, match="in use by another process") as raised:
        files.write_text(tmp_path / "a.txt", "new")
    assert files.is_held(raised.value.__cause__)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


@pytest.mark.skipif(os.name != "posix", reason="folders are not flushed there")
@pytest.mark.parametrize("number", [errno.EBADF, errno.EINVAL])
def test_a_file_system_that_cannot_flush_a_folder_is_no_error(number, tmp_path, monkeypatch):
    flush = os.fsync

    def of_files_only(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", of_files_only)
    files.write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"
