"""Which files of a folder are images, of which class, part and group."""

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.folders import check_folder, class_folders, images_in, list_folder
from pipeline.errors import InputError

SUFFIXES = {".png", ".jpg"}
FULL_WIDTH, NO_BREAK, PERSIAN, FAMILY = "クラス\u3000一", "a\u00a0b", "می\u200cخواهم", "👩\u200d👩\u200d👧"


def touch(folder, *names):
    for name in names:
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def listed_in(folder):
    """The (part, class, group or name, path) of each listed image."""
    found = list_folder(folder, SUFFIXES)
    names = [found.class_names[label] for label in found.labels]
    keys = [group or name for group, name in zip(found.groups, found.names, strict=True)]
    paths = [path.relative_to(folder).as_posix() for path in found.paths]
    return list(zip(found.parts, names, keys, paths, strict=True))


def test_files_are_listed_in_the_order_of_their_names(tmp_path):
    names = ["0.png", "1.png", "10.png", "2.png", "B.png", "a.png", "d/0.png", "d/e/0.png", "f/0.png"]
    for number in np.random.default_rng(0).permutation(len(names)):
        for folder in ("test/a", "train/b", "train/a"):
            touch(tmp_path, f"{folder}/{names[number]}")
    expected = [
        (part, name, inside.split("/")[0], f"{part}/{name}/{inside}")
        for part, name in (("train", "a"), ("train", "b"), ("test", "a"))
        for inside in names
    ]
    assert listed_in(tmp_path) == expected
    found = list_folder(tmp_path, SUFFIXES)
    assert (found.class_names, found.problems) == (["a", "b"], [])


def test_a_subfolder_of_a_class_is_a_group_and_its_images_share_its_key(tmp_path):
    touch(tmp_path, "a/1.png", "a/mug/1.png", "a/mug/left/2.png", "b/mug/3.png", "b/4.png")
    assert [key for _, _, key, _ in listed_in(tmp_path)] == ["1.png", "mug", "mug", "4.png", "mug"]
    assert list_folder(tmp_path, SUFFIXES).groups == ["", "mug", "mug", "", "mug"]


def test_parts_inside_the_classes_are_a_problem(tmp_path):
    for number, parts in enumerate([("Testing", "Train"), ("test_set", "train_set"), ("mug 1", "train")]):
        folder = tmp_path / str(number)
        touch(folder, *(f"{name}/{part}/1.png" for name in "ab" for part in parts))
        (problem,) = list_folder(folder, SUFFIXES).problems
        named = ", ".join(f"{part}/" for part in parts if part != "mug 1")
        assert f"subfolders {named}: the parts must be above the classes" in problem


@pytest.mark.parametrize("more", [[], ["masks/cat/1.png"], ["images/1.png"]])
def test_folders_that_all_hold_the_same_folders_may_not_be_the_classes(more, tmp_path, capsys):
    touch(tmp_path, "images/cup/1.png", "images/mug/1.png", "masks/cup/1.png", "masks/mug/1.png", *more)
    list_folder(tmp_path, SUFFIXES)
    assert ("Warning: every class has the same subfolders (cup, mug)" in capsys.readouterr().out) == (not more)


def test_the_classes_are_those_of_all_parts(tmp_path):
    touch(tmp_path, "train/a/1.png", "train/b/1.png", "test/c/1.png")
    assert list_folder(tmp_path, SUFFIXES).class_names == ["a", "b", "c"]


LITTER = (
    "@eaDir/SYNOPHOTO_THUMB_M.jpg",
    "@eaDir/1.png/SYNOPHOTO_THUMB_XL.jpg",
    "#recycle/1.png",
    "@Recycle/1.png",
    "__MACOSX/._1.png",
    "$RECYCLE.BIN/1.png",
    "System Volume Information/1.png",
    "lost+found/1.png",
    ".ipynb_checkpoints/1-checkpoint.png",
    ".thumbnails/1.png",
    "._1.png",
    ".DS_Store",
    "Thumbs.db",
    "desktop.ini",
    "RECYCLER/1.png",
    "FOUND.001/1.png",
    "_gsdata_/1.png",
    "Catalog Previews.lrdata/1.png",
    "~$1.png",
    "SYNOPHOTO_THUMB_XL.jpg",
)


@pytest.mark.parametrize("place", ["", "a", "a/deeper"])
def test_what_systems_leave_in_folders_is_no_class_and_no_image(place, tmp_path, capsys):
    touch(tmp_path, "a/1.png", "a/deeper/2.png", "b/1.png", "b/2.png")
    without = listed_in(tmp_path)
    assert capsys.readouterr().out == ""
    touch(tmp_path / place, *LITTER)
    assert listed_in(tmp_path) == without
    assert list(class_folders(tmp_path)) == ["a", "b"]
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"Skipped files and folders of the system in {tmp_path}: ")
    assert "4 hidden" in line and all(f"1 {name}" in line for name in ("@eaDir", "#recycle", "Thumbs.db"))


def test_other_files_are_skipped_with_a_count(tmp_path, capsys):
    touch(
        tmp_path, "a/1.png", "b/1.JPG", "b/notes.txt", "a/LICENSE", "b/x.heic", "readme.md", "a/1.png:Zone.Identifier"
    )
    assert len(listed_in(tmp_path)) == 2
    printed = capsys.readouterr().out
    assert f"Skipped, not in a class folder: {tmp_path / 'readme.md'}\n" in printed
    assert "that are no images: 1 .heic, 1 .identifier, 1 .txt, 1 no suffix" in printed
    assert "pip install pillow-heif" in printed


@pytest.mark.parametrize("names", [("train", "test"), ("Training", "Testing"), ("TRAIN", "test", "Val")], ids=str)
def test_folders_of_parts_have_any_usual_name(names, tmp_path):
    for name in names:
        touch(tmp_path, f"{name}/a/{name}.png", f"{name}/b/{name}.png")
    found = listed_in(tmp_path)
    expected = {"tra": "train", "tes": "test", "val": "validation"}
    assert {part for part, *_ in found} == {expected[name[:3].lower()] for name in names}
    for part, class_name, key, _ in found:
        assert part == expected[key[:3].lower()] and class_name in "ab"
    check_folder(tmp_path)


MISFITS = {
    "one part alone": ["train/a/1.png", "train/b/1.png"],
    "no test images": ["train/a/1.png", "train/b/1.png", "val/a/1.png", "val/b/1.png"],
    "one part twice": ["train/a/1.png", "training/a/1.png", "test/a/1.png"],
    "unusual names": ["seg_train/a/1.png", "seg_train/b/1.png", "seg_test/a/1.png", "seg_test/b/1.png"],
    "names of an archive": ["training_set/a/1.png", "test_set/a/1.png"],
    "no class folders": ["Training/1.png", "Testing/1.png"],
    "names in one word": ["traindata/a/1.png", "testdata/a/1.png"],
    "names of image translation": ["trainA/x/1.png", "trainB/x/1.png", "testA/x/1.png"],
    "one part too many": ["train/a/1.png", "test/a/1.png", "val_data/a/1.png"],
    "a folder too deep": ["train/train/a/1.png", "train/train/b/1.png", "other/a/1.png"],
}


@pytest.mark.parametrize("names", MISFITS.values(), ids=MISFITS)
def test_names_that_look_like_parts_and_do_not_fit_are_refused(names, tmp_path):
    touch(tmp_path, *names)
    with pytest.raises(InputError, match=r"folders train/, test/ and.* Rename .*class folders\)") as raised:
        check_folder(tmp_path)
    assert names[0].split("/")[0] + "/" in str(raised.value)


def test_classes_may_be_named_like_parts(tmp_path):
    touch(tmp_path / "flat", "train/1.png", "bus/1.png", "test/1.png")
    assert list(class_folders(tmp_path / "flat")) == ["bus", "test", "train"]
    touch(tmp_path / "groups", "Testudo graeca/t1/1.png", "Testudo hermanni/t1/1.png", "trainer/x/1.png")
    assert len(class_folders(tmp_path / "groups")) == 3
    assert list_folder(tmp_path / "groups", SUFFIXES).problems == []


def test_control_characters_in_skipped_names_do_not_reach_the_terminal(tmp_path, capsys):
    touch(tmp_path, "a/1.png", "b/1.png", "x\x1b[31m.md", "a/1.\x1b[31m")
    list_folder(tmp_path, SUFFIXES)
    printed = capsys.readouterr().out
    assert printed.count(r"\x1b[31m") == 2 and "\x1b" not in printed


def test_class_names_in_any_language(tmp_path):
    names = [FULL_WIDTH, NO_BREAK, PERSIAN, FAMILY, "été", "Ω", "日本語"]
    for name in names:
        touch(tmp_path, f"{name}/1.png")
    assert sorted(class_folders(tmp_path)) == sorted(names)
    for wrong in ("a\tb", "a\x1bb"):
        touch(tmp_path, f"{wrong}/1.png")
        with pytest.raises(InputError, match=r"without control characters.*'a\\(t|x1b)b'"):
            class_folders(tmp_path)
        os.remove(tmp_path / wrong / "1.png")
        os.rmdir(tmp_path / wrong)


@pytest.mark.skipif(os.name != "posix", reason="names are not bytes")
def test_a_class_name_that_is_not_utf8_is_refused(tmp_path):
    touch(tmp_path, "a/1.png", os.fsdecode(b"caf\xe9/1.png"))
    with pytest.raises(InputError, match=r"UTF-8.*caf\\udce9"):
        class_folders(tmp_path)


def test_composed_and_decomposed_accents_are_one_class(tmp_path):
    """As when a folder is copied from macOS to Linux."""
    decomposed = unicodedata.normalize("NFD", "é")
    touch(
        tmp_path, "train/é/1.png", f"train/{decomposed}/2.png", "train/b/1.png", f"test/{decomposed}/{decomposed}.png"
    )
    found = listed_in(tmp_path)
    assert [(part, name, key) for part, name, key, _ in found] == [
        ("train", "b", "1.png"),
        ("train", "é", "2.png"),
        ("train", "é", "1.png"),
        ("test", "é", "é.png"),
    ]


def test_folders_that_cannot_be_a_data_set_are_refused(tmp_path):
    touch(tmp_path, "a/1.png", "b/1.png", "alone/a/1.png")
    for folder, reason in [
        (tmp_path / "alone", "at least two classes.* with 1$"),
        (tmp_path / "a", "at least two classes.* with 0$"),
        (tmp_path / "gone", "must be a readable folder"),
    ]:
        with pytest.raises(InputError, match=reason):
            check_folder(folder)


def test_the_classes_that_train_are_returned_sorted(tmp_path):
    touch(tmp_path, "flat/b/1.png", "flat/a/1.png", "flat/.cache/1.png", "flat/notes.txt")
    assert check_folder(tmp_path / "flat") == ["a", "b"]
    for path in ("train/b", "train/a", "val/a", "test/a", "test/tested"):
        touch(tmp_path / "split", f"{path}/1.png")
    assert check_folder(tmp_path / "split") == ["a", "b"]


def test_files_and_the_images_of_folders_are_found_in_a_fixed_order(tmp_path):
    touch(tmp_path, "x/2.png", "x/10.JPG", "x/deep/1.png", "x/notes.txt", "x/.hidden/1.png", "y/3.txt", "odd.suffix")
    (tmp_path / "x" / "up").symlink_to(tmp_path)
    problems, places = [], [str(tmp_path / name) for name in ("odd.suffix", "x", "y", "gone.png", "x")]
    found = [str(path) for path in images_in(places, SUFFIXES, problems)]
    of_x = [str(tmp_path / "x" / name) for name in ("10.JPG", "2.png", "deep/1.png")]
    assert found == [places[0], *of_x, places[3], *of_x]  # a file that does not exist is another's problem
    assert problems[1] == f"{tmp_path / 'y'}: no images"
    assert [f"{tmp_path / 'x' / 'up'}: a link to a parent folder" in problem for problem in problems] == [1, 0, 1]


def test_images_of_a_folder_are_found_as_they_are_needed(tmp_path):
    touch(tmp_path, "a/1.png", "b/1.png")
    problems = []
    found = images_in([str(tmp_path / "a"), str(tmp_path / "b")], SUFFIXES, problems)
    assert next(found) == tmp_path / "a" / "1.png"
    touch(tmp_path, "b/0.png")  # not looked at yet
    assert list(found) == [tmp_path / "b" / "0.png", tmp_path / "b" / "1.png"]
    assert problems == []
