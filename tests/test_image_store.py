"""Decoded images on disk: the same as in memory, found again, resumed, bounded, and never mixed up."""

import errno
import gc
import os
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from processes import run_python

from pipeline import system_memory
from pipeline.data import cache_folders, image_files, image_store
from pipeline.data.image_files import read_data_set
from pipeline.data.image_store import Place
from pipeline.errors import InputError


def save(folder, count, size=(20, 20), seed=0):
    """Saves `count` images of noise, and one file that is no image; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    generator, paths = np.random.default_rng(seed), [folder / f"{number:03}.png" for number in range(count)]
    for path in paths:
        Image.fromarray(generator.integers(0, 256, (*size, 3), "uint8")).save(path)
    (folder / "no image.png").write_text("no image")
    return [*paths, folder / "no image.png"]


@pytest.fixture
def counted(monkeypatch):
    """The paths that are decoded."""
    decoded, read = [], image_files.rgb_and_details

    def counting(path, *settings):
        decoded.append(path)
        return read(path, *settings)

    monkeypatch.setattr(image_files, "rgb_and_details", counting)
    return decoded


def folder_of(paths, size, fit, cache):
    return Place(paths, fit, "disk", cache).folder(size)


def on_disk(paths, cache, image_size=16, fit="scale"):
    return read_data_set(paths, image_size, fit, "disk", str(cache))


def waiting_process(paths, cache, line, capsys):
    """A thread that reads the images as another process would, once it has printed that it waits; and its results."""
    results, printed = [], ""
    waiting = threading.Thread(target=lambda: results.append(on_disk(paths, cache)), daemon=True)
    waiting.start()
    while line not in printed and waiting.is_alive():
        waiting.join(0.1)
        printed += capsys.readouterr().out
    assert not results and waiting.is_alive()
    return waiting, results


def assert_same(one, other):
    np.testing.assert_array_equal(one.images[:-1], other.images[:-1])
    assert one.digests == other.digests and one.value_range == other.value_range
    assert {number: str(error) for number, error in one.errors.items()} == {
        number: str(error) for number, error in other.errors.items()
    }


@pytest.mark.parametrize("wide", [False, True], ids=["8 bits", "some of 16 bits"])
@pytest.mark.parametrize("sizes", [[(20, 20)], [(12, 10)], [(12, 10), (9, 9)], [(9, 9), (40, 30)]], ids=str)
def test_images_on_disk_are_those_in_memory_and_are_decoded_once(sizes, wide, tmp_path, counted, capsys):
    paths = [path for number, size in enumerate(sizes) for path in save(tmp_path / f"{number}", 9, size)[:-1]]
    paths.append(save(tmp_path / "last", 0)[0])
    if wide:
        for number in (3, 5):
            values = np.arange(number, np.prod(sizes[0]) + number, dtype="uint16").reshape(sizes[0])
            Image.fromarray(values * 100).save(paths[number])
    in_memory, stored = read_data_set(paths, 16, "scale"), on_disk(paths, tmp_path / "cache")
    assert_same(stored, in_memory)
    assert not stored.images.flags.writeable and (stored.value_range is not None) == wide
    counted.clear()
    capsys.readouterr()
    assert_same(on_disk(paths, tmp_path / "cache"), in_memory)
    assert counted == paths[-1:]  # the file that could not be read
    assert "decoded by an earlier run" in capsys.readouterr().out
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_images_are_decoded_anew_if_a_file_the_size_or_the_fit_changes(tmp_path, counted):
    paths, cache = save(tmp_path / "images", 9), tmp_path / "cache"
    on_disk(paths, cache)
    for change, settings in (
        (lambda: None, (12, "scale")),
        (lambda: None, (16, "pad")),
        (lambda: save(tmp_path / "images", 1, seed=7), (16, "scale")),
        (lambda: os.utime(paths[4], ns=(1, 1)), (16, "scale")),
        (lambda: paths.pop(2), (16, "scale")),
        (lambda: paths.insert(0, paths.pop(5)), (16, "scale")),
    ):
        change()
        counted.clear()
        assert_same(on_disk(paths, cache, *settings), read_data_set(paths, *settings))
        assert len(counted) == 2 * len(paths)


def test_sixteen_bit_files_that_become_readable_are_scaled_like_the_others(tmp_path):
    paths = save(tmp_path / "images", 4, (9, 9))[:-1]
    for number in (1, 2):
        Image.fromarray(np.arange(81, dtype="uint16").reshape(9, 9) * 10 * number).save(paths[number])
    content = paths[2].read_bytes()
    status = os.stat(paths[2])
    paths[2].write_bytes(bytes(len(content)))
    os.utime(paths[2], ns=(status.st_atime_ns, status.st_mtime_ns))
    assert on_disk(paths, tmp_path / "cache").value_range == (0, 800)
    paths[2].write_bytes(content)
    os.utime(paths[2], ns=(status.st_atime_ns, status.st_mtime_ns))
    for _ in range(2):
        assert_same(on_disk(paths, tmp_path / "cache"), read_data_set(paths, 16, "scale"))


def test_a_folder_that_has_moved_is_found_again(tmp_path, counted):
    paths = save(tmp_path / "before" / "images", 9)
    on_disk(paths, tmp_path / "cache")
    (tmp_path / "before").rename(tmp_path / "after")
    counted.clear()
    on_disk([tmp_path / "after" / "images" / path.name for path in paths], tmp_path / "cache")
    assert len(counted) == 1


def test_an_interrupted_run_continues_where_it_was(tmp_path, counted, monkeypatch):
    monkeypatch.setattr(image_files, "CHUNK", 4)
    monkeypatch.setattr(image_files, "SAVE_SECONDS", 0)
    paths, read = save(tmp_path / "images", 21), image_files.rgb_and_details

    def interrupted(path, *settings):
        if path == paths[13]:
            raise OSError(errno.EIO, "the disk has failed")
        return read(path, *settings)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="the disk has failed"):
        patch.setattr(image_files, "rgb_and_details", interrupted)
        on_disk(paths, tmp_path / "cache")
    counted.clear()
    assert_same(on_disk(paths, tmp_path / "cache"), read_data_set(paths, 16, "scale"))
    assert len(counted) == len(paths) + len(paths) - 12  # all for the comparison; the first three chunks were saved


@pytest.mark.parametrize("name", [cache_folders.PIXELS, cache_folders.RECORDS, cache_folders.STATE])
@pytest.mark.parametrize("damage", ["missing", "short", "changed"])
def test_a_corrupt_cache_is_written_again(name, damage, tmp_path):
    paths = save(tmp_path / "images", 9)
    on_disk(paths, tmp_path / "cache")
    path = folder_of(paths, (16, 16), "scale", str(tmp_path / "cache")) / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:-7] if damage == "short" else bytes(255 - byte for byte in content))
    assert_same(on_disk(paths, tmp_path / "cache"), read_data_set(paths, 16, "scale"))


def test_a_corrupt_cache_that_another_process_uses_is_written_again_afterwards(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: threading.Event().wait(0.01))
    paths = save(tmp_path / "images", 9)
    on_disk(paths, tmp_path / "cache")
    gc.collect()
    folder = folder_of(paths, (16, 16), "scale", str(tmp_path / "cache"))
    pixels = folder / cache_folders.PIXELS
    pixels.write_bytes(bytes(255 - byte for byte in pixels.read_bytes()))
    lock, _ = cache_folders.locked(folder, shared=True)
    waiting, results = waiting_process(paths, tmp_path / "cache", "which uses corrupt images", capsys)
    lock.close()
    waiting.join(30)
    assert_same(results[0], read_data_set(paths, 16, "scale"))


@pytest.mark.parametrize("is_complete", [False, True], ids=["stopped", "complete"])
def test_a_second_process_waits_until_the_first_one_has_read_the_images(is_complete, tmp_path, capsys, monkeypatch):
    """And no longer: the first one trains on them, while the second one finds them complete."""
    monkeypatch.setattr(time, "sleep", lambda seconds: threading.Event().wait(0.01))
    paths = save(tmp_path / "images", 9)
    first = Place(paths, "scale", "disk", str(tmp_path / "cache")).opened((16, 16))
    other, results = waiting_process(paths, tmp_path / "cache", "Waiting for another process", capsys)
    expected = read_data_set(paths, 16, "scale")
    if is_complete:
        for number, pixels in enumerate(expected.images[:-1]):
            first.write(number, pixels)
            first.records[number] = (image_store.READ, expected.digests[number], False, False, 0, 0)
        first.save([0, len(paths) - 1])
        first.finish(None)
    trained_on = first.array
    first.close()
    other.join(30)
    assert_same(results[0], expected)
    assert len(trained_on) == len(paths)


def test_data_sets_that_were_not_used_for_longest_make_room_for_others(tmp_path, monkeypatch, capsys):
    sets = [save(tmp_path / f"images {number}", 40, seed=number) for number in range(4)]
    cache = tmp_path / "cache"
    folders = [folder_of(paths, (16, 16), "scale", str(cache)) for paths in sets]
    for number, paths in enumerate(sets[:3]):
        on_disk(paths, cache)  # 31,488 bytes of pixels, 40 KiB on the disk
        os.utime(folders[number] / cache_folders.LOCK, (number + 1, number + 1))
    on_disk(sets[0], cache)  # used again
    gc.collect()  # now none is in use
    (cache / "of somebody else").mkdir()
    (cache / "of somebody else" / cache_folders.LOCK).touch()
    monkeypatch.setattr(cache_folders.shutil, "disk_usage", lambda path: SimpleNamespace(free=140_000))
    capsys.readouterr()
    on_disk(sets[3], cache)
    assert [folder.exists() for folder in folders] == [True, False, True, True]
    assert (cache / "of somebody else" / cache_folders.LOCK).exists()
    assert capsys.readouterr().out.count("Removing the decoded images of another data set") == 1


def test_what_another_process_uses_is_not_removed(tmp_path, monkeypatch):
    used, paths = save(tmp_path / "images", 40), save(tmp_path / "others", 40, seed=1)
    kept = on_disk(used, tmp_path / "cache").images[:2]
    monkeypatch.setattr(cache_folders.shutil, "disk_usage", lambda path: SimpleNamespace(free=40_000))
    on_disk(paths, tmp_path / "cache")
    assert folder_of(used, (16, 16), "scale", str(tmp_path / "cache")).exists()
    in_memory = read_data_set(used, 16, "scale")
    assert_same(on_disk(used, tmp_path / "cache"), in_memory)  # two runs may use the same images
    assert_same(on_disk(used, tmp_path / "cache"), in_memory)
    del kept  # as after an earlier cell of a notebook
    gc.collect()
    folder = folder_of(used, (16, 16), "scale", str(tmp_path / "cache"))
    os.utime(folder / cache_folders.LOCK, (1, 1))
    on_disk(save(tmp_path / "more", 40, seed=2), tmp_path / "cache")
    assert not folder.exists()


def test_what_another_process_writes_is_not_removed(tmp_path, monkeypatch):
    writing, paths = save(tmp_path / "images", 40), save(tmp_path / "others", 40, seed=1)
    cache = tmp_path / "cache"
    store = Place(writing, "scale", "disk", str(cache)).opened((16, 16))
    monkeypatch.setattr(cache_folders.shutil, "disk_usage", lambda path: SimpleNamespace(free=40_000))
    on_disk(paths, cache)
    store.finish(None)
    store.close()
    assert all(cache_folders.is_complete(folder) for folder in cache.iterdir()) and len(list(cache.iterdir())) == 2


def test_a_folder_that_is_removed_while_another_process_waits_for_it_is_made_again(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: threading.Event().wait(0.01))
    paths = save(tmp_path / "images", 9)
    first = Place(paths, "scale", "disk", str(tmp_path / "cache")).opened((16, 16))
    other, results = waiting_process(paths, tmp_path / "cache", "Waiting for another process", capsys)
    first.remove()
    first.close()
    other.join(30)
    assert_same(results[0], read_data_set(paths, 16, "scale"))


def test_a_failed_start_leaves_nothing_locked(tmp_path, monkeypatch):
    """In a notebook, whose traceback keeps everything alive."""
    paths = save(tmp_path / "images", 9)
    with monkeypatch.context() as patch:
        patch.setattr(cache_folders.shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
        with pytest.raises(InputError) as kept:
            on_disk(paths, tmp_path / "cache")
    assert_same(on_disk(paths, tmp_path / "cache"), read_data_set(paths, 16, "scale"))
    assert "CACHE_FOLDER" in str(kept.value)


def test_no_images_need_no_file(tmp_path):
    assert len(on_disk([], tmp_path / "cache").images) == 0


def test_a_repaired_file_of_another_size_changes_the_size_of_all(tmp_path):
    """Of complete decoded images; the repaired file has the number of bytes and the time that it had."""
    paths, broken = save(tmp_path / "images", 9, (12, 10))[:-1], tmp_path / "images" / "no image.png"
    Image.new("RGB", (9, 9)).save(tmp_path / "repaired.png")
    repaired = (tmp_path / "repaired.png").read_bytes()
    broken.write_bytes(bytes(len(repaired)))
    paths.append(broken)
    status = broken.stat()
    assert on_disk(paths, tmp_path / "cache").images.shape[2:] == (12, 10)
    broken.write_bytes(repaired)
    os.utime(broken, ns=(status.st_atime_ns, status.st_mtime_ns))
    decoded = on_disk(paths, tmp_path / "cache")
    assert decoded.images.shape[2:] == (16, 16) and not decoded.errors
    assert_same(decoded, read_data_set(paths, 16, "scale"))


def test_a_limit_of_virtual_memory_is_named(tmp_path, monkeypatch):
    """As under `ulimit -v`, where a file cannot be mapped into memory though the disk has room."""
    paths = save(tmp_path / "images", 9)

    def refused(*_, **__):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(image_store.np, "memmap", refused)
    with pytest.raises(InputError, match=r"virtual memory \(`ulimit -v`\)") as error:
        on_disk(paths, tmp_path / "cache")
    assert "CACHE_FOLDER" not in str(error.value)


def test_corrupt_pixels_are_found_again_if_their_repair_was_interrupted(tmp_path, monkeypatch):
    paths = save(tmp_path / "images", 9)
    on_disk(paths, tmp_path / "cache")
    pixels = folder_of(paths, (16, 16), "scale", str(tmp_path / "cache")) / cache_folders.PIXELS
    pixels.write_bytes(bytes(len(pixels.read_bytes())))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(image_store.Disk, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        on_disk(paths, tmp_path / "cache")
    monkeypatch.setattr(image_store, "CHECKED", 0)
    assert_same(on_disk(paths, tmp_path / "cache"), read_data_set(paths, 16, "scale"))


@pytest.mark.parametrize("free", [0, 1000])
def test_a_disk_that_is_too_small_is_named_with_the_space_that_is_needed(free, tmp_path, monkeypatch):
    paths = save(tmp_path / "images", 300, (80, 80))
    monkeypatch.setattr(cache_folders.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    with pytest.raises(InputError, match=r"`CACHE_FOLDER` must be on a disk with enough free space.* 4 MiB"):
        on_disk(paths, tmp_path / "cache", 64)


@pytest.mark.parametrize("place", ["posix_fallocate", "fsync"])
def test_a_disk_that_gets_full_is_one_sentence_and_what_was_decoded_is_kept(place, tmp_path, monkeypatch):
    if not hasattr(os, place):
        pytest.skip(f"no {place}")

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    paths = save(tmp_path / "images", 9)
    with monkeypatch.context() as patch, pytest.raises(InputError, match=r"`CACHE_FOLDER` must .*No space left"):
        patch.setattr(os, place, full)
        on_disk(paths, tmp_path / "cache")
    assert_same(on_disk(paths, tmp_path / "cache"), read_data_set(paths, 16, "scale"))


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"`CACHE_FOLDER` must be a writable folder.*file"):
        on_disk(save(tmp_path / "images", 3), tmp_path / "file")


@pytest.mark.parametrize(("free", "where"), [(10**9, "memory"), (30_000, "memory"), (20_000, "disk"), (None, "memory")])
def test_images_are_on_disk_if_they_take_more_than_half_of_the_free_memory(free, where, tmp_path, monkeypatch, capsys):
    paths = save(tmp_path / "images", 16)
    monkeypatch.setattr(system_memory, "free_memory", lambda: free)
    decoded = read_data_set(paths, 16, "scale", "auto", str(tmp_path / "cache"))  # 17 * 768 bytes
    assert decoded.images.flags.writeable == (where == "memory")
    assert f"0 MiB o{'f memory' if where == 'memory' else 'n disk'}" in capsys.readouterr().out
    assert (tmp_path / "cache").exists() == (where == "disk")


UNDER_A_LIMIT = """
import hashlib, resource, sys, threading
from pathlib import Path
threading.stack_size(2**20)  # which counts, though it is not used
import numpy as np
from pipeline.settings import keras_settings
keras_settings.apply()
from pipeline.data.batches import Batches, classes_and_images, in_order
from pipeline.data.images import load_images
from pipeline.data.splits import sample
from pipeline.report.controls import raw_pixels

def taken():
    return int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()

def everything(folder):
    "What a run reads of the images, as a checksum."
    data = load_images(folder, 224, "scale", 0.2, 0.1, 0, images_in=sys.argv[2], cache=sys.argv[3])
    read = hashlib.blake2b(repr(data.checksum).encode())
    for plan in (classes_and_images(data.train.labels, 4, 4), in_order(len(data.train.labels), 32)):
        batches = Batches(data.train, plan, 0, "shift_flip")
        for number in range(len(batches)):
            images, labels = batches[number]
            read.update(images)
            read.update(labels)
    few = sample(data.train, len(data.validation.labels), 0)
    read.update(raw_pixels([few, data.validation, data.test], Path(sys.argv[3]).parent))
    return read.hexdigest()

everything(sys.argv[1] + "/few")  # loads the libraries
if sys.argv[2] == "disk":
    allowed = int(sys.argv[4])
    resource.setrlimit(resource.RLIMIT_DATA, (taken() + allowed, resource.RLIM_INFINITY))
print(everything(sys.argv[1] + "/many"))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on memory for data alone")
def test_images_of_four_times_the_memory_that_is_allowed_are_read_with_the_same_bits(tmp_path):
    generator, count = np.random.default_rng(0), 1000  # 144 MiB
    for number in range(count):
        colours = generator.integers(0, 256, (7, 7, 3), "uint8")
        for name in ["many", "few"] if number < 60 else ["many"]:
            path = tmp_path / name / f"class {number % 4}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(colours).resize((224, 224), Image.Resampling.NEAREST).save(path, compress_level=1)
    allowed = count * 3 * 224**2 // 4
    results = [
        run_python(
            "-c",
            UNDER_A_LIMIT,
            tmp_path,
            where,
            tmp_path / "cache",
            allowed,
            KERAS_BACKEND="tensorflow",
            MALLOC_ARENA_MAX="1",
        )
        for where in ("disk", "memory")
    ]
    assert [done.returncode for done in results] == [0, 0], results[0].stderr + results[1].stderr
    assert results[0].stdout.splitlines()[-1] == results[1].stdout.splitlines()[-1]
    assert "144 MiB on disk" in results[0].stdout and "144 MiB of memory" in results[1].stdout
