"""What is left out of a data set, and what its user is told about it."""

import numpy as np
import pytest
from PIL import Image

from pipeline.data.image_list import number_of
from pipeline.data.images import load_images, print_summary
from pipeline.errors import InputError

BY_NUMBER = sorted((f"{number}.png" for number in range(40)), key=lambda name: number_of(name, 0))
PARTS = ("train", "validation", "test", "held_out")
TEST_NAMES = [name for name in BY_NUMBER if number_of(name, 0) < 0.2]


def save(folder, names, seed):
    """Images of noise, no two alike."""
    generator = np.random.default_rng(seed)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (9, 9, 3), "uint8")).save(folder / name)


def load(folder, **more):
    return load_images(str(folder), 9, "scale", 0.2, 0.1, 0, **more)


def pixels_of(data):
    return {part: {image.tobytes() for image in getattr(data, part).pixels()} for part in PARTS}


def names_of(data):
    """The paths of each part's images, after a check that they are in the folder of their class."""
    all_names = data.class_names + data.held_out_names
    for part in PARTS:
        for label, name in zip(*getattr(data, part)[1:3], strict=True):
            assert all_names[label] in name.split("/")[:-1]
            assert (label >= len(data.class_names)) == (part == "held_out")
    return {part: set(getattr(data, part).names) for part in PARTS}


def test_an_image_in_two_parts_is_named_and_left_out_of_training(tmp_path, capsys):
    """Byte for byte, or in another format; a copy in the same part stays."""
    save(tmp_path / "a", BY_NUMBER, 0)
    save(tmp_path / "b", BY_NUMBER, 1)
    tested, trained = tmp_path / "a" / TEST_NAMES[0], tmp_path / "a" / BY_NUMBER[-1]
    trained.write_bytes(tested.read_bytes())
    Image.open(tmp_path / "b" / TEST_NAMES[1]).save(tmp_path / "b" / BY_NUMBER[-2], "BMP")
    (tmp_path / "b" / BY_NUMBER[-3]).write_bytes((tmp_path / "b" / BY_NUMBER[-4]).read_bytes())
    data = load(tmp_path)
    train, validation, test, held_out = pixels_of(data).values()
    assert not held_out and not (train | validation) & test and not train & validation
    assert len(data.test.labels) == 2 * len(TEST_NAMES)
    assert len(data.train.labels) + len(data.validation.labels) == 2 * (40 - len(TEST_NAMES)) - 2
    printed = capsys.readouterr().out
    assert "held-out one: 2\n" in printed
    for name in (f"a/{BY_NUMBER[-1]} = a/{TEST_NAMES[0]} (test)", f"b/{BY_NUMBER[-2]} = b/{TEST_NAMES[1]} (test)"):
        assert name in printed
    assert "more than one class" not in printed


def test_an_image_in_two_classes_is_named(tmp_path, capsys):
    save(tmp_path / "a", BY_NUMBER, 0)
    save(tmp_path / "b", BY_NUMBER, 1)
    (tmp_path / "b" / BY_NUMBER[-1]).write_bytes((tmp_path / "a" / BY_NUMBER[-2]).read_bytes())
    load(tmp_path)
    printed = capsys.readouterr().out
    pair = f"a/{BY_NUMBER[-2]} = b/{BY_NUMBER[-1]}"
    assert "images that are in more than one class: 1\n" in printed and pair in printed


def test_the_split_of_its_owner_is_checked_for_equal_images_too(tmp_path, capsys):
    for part, seed in (("train", 0), ("val", 2), ("test", 4)):
        save(tmp_path / part / "a", BY_NUMBER[:9], seed)
        save(tmp_path / part / "b", BY_NUMBER[:9], seed + 1)
    for part in ("train", "val"):
        (tmp_path / part / "a" / "extra.png").write_bytes((tmp_path / "test" / "b" / BY_NUMBER[0]).read_bytes())
    data = load(tmp_path)
    assert [len(part.labels) for part in data[:4]] == [18, 18, 18, 0]
    printed = capsys.readouterr().out
    assert "held-out one: 2\n" in printed and "in more than one class: 1\n" in printed


def test_groups_are_on_one_side_and_the_log_says_so(tmp_path, capsys):
    for name in "ab":
        for group in range(12):
            save(
                tmp_path / name / f"object {group + (name == 'b')}",
                [f"{number}.png" for number in range(3)],
                ord(name) + 100 * group,
            )
    data = load(tmp_path)
    printed = capsys.readouterr().out
    assert "column group): 13\n" in printed and "Warning" not in printed
    sides = pixels_of(data)
    for group in range(13):
        paths = [path for path in tmp_path.rglob("*.png") if path.parent.name == f"object {group}"]
        images = {np.asarray(Image.open(path)).transpose(2, 0, 1).tobytes() for path in paths}
        assert sum(images <= side for side in sides.values()) == 1


def test_a_csv_file_gives_the_same_images_as_a_folder(tmp_path):
    save(tmp_path / "pictures" / "train" / "a", BY_NUMBER[:9], 0)
    save(tmp_path / "pictures" / "train" / "b", BY_NUMBER[:9], 1)
    save(tmp_path / "pictures" / "test" / "a", BY_NUMBER[:3], 2)
    save(tmp_path / "pictures" / "test" / "b", BY_NUMBER[:3], 3)
    paths = sorted((tmp_path / "pictures").rglob("*.png"))
    rows = [
        f"{path.relative_to(tmp_path)},{path.parent.name},{path.parent.parent.name},{path.name}-{path.parent}"
        for path in paths
    ]
    rows = [row + row.split(",")[2] for row in rows]
    (tmp_path / "images.csv").write_text("\n".join(["path,label,split,group", *rows]))
    folder, table = load(tmp_path / "pictures"), load(tmp_path / "images.csv")
    assert folder.class_names == table.class_names
    assert pixels_of(folder)["test"] == pixels_of(table)["test"]
    both = [pixels_of(each)["train"] | pixels_of(each)["validation"] for each in (folder, table)]
    assert both[0] == both[1] and len(both[0]) == 18


def test_classes_without_a_test_image_and_too_small_classes_are_named(tmp_path, capsys):
    save(tmp_path / "a", BY_NUMBER, 0)
    save(tmp_path / "high", BY_NUMBER[-9:], 1)
    save(tmp_path / "low", TEST_NAMES[:3], 2)
    data = load(tmp_path)
    print_summary(data)
    printed = capsys.readouterr().out
    assert "Classes without a test image: 1, high" in printed
    assert "each class needs two training images: 2, in low\n" in printed
    for number in range(60):
        save(tmp_path / f"one {number}", ["1.png"], 3 + number)
    with pytest.raises(InputError, match=r"two training images; --small-classes skip .*one 0 \(1\), .* \.\.\.$"):
        load(tmp_path)
    data = load(tmp_path, small_classes="skip")
    assert data.class_names == ["a", "high", "low"]
    printed = capsys.readouterr().out
    assert "fewer than two training images: 60, one 0 (1), " in printed
    assert "each class needs two training images: 2, in low\n" in printed  # without those that are skipped


def test_a_group_on_both_sides_of_its_owners_split_is_named(tmp_path, capsys):
    for part, seed in (("train", 0), ("test", 9)):
        for name in "ab":
            for group in range(8):
                seed += 1
                save(
                    tmp_path / part / name / f"{part * (group > 0)} {group}", ["1.png", "2.png"], seed + 100 * len(part)
                )
    load(tmp_path)
    assert "Warning: groups in more than one of training, validation and testing" in (
        printed := capsys.readouterr().out
    )
    assert ": 1,  0\n" in printed


def save_split(folder, seed=0, **names):
    """Classes with nine images for training, three for validation and three for testing, or only for some of them."""
    for part, count in (("train", 9), ("val", 3), ("test", 3)):
        for name in names.get(part, "ab"):
            seed += 1
            save(folder / part / name, BY_NUMBER[:count], 100 + seed)


def test_a_class_of_test_images_alone_is_held_out(tmp_path, capsys):
    save_split(tmp_path, test="abcd")
    for small_classes in ("stop", "skip"):
        data = load(tmp_path, small_classes=small_classes)
        assert (data.class_names, data.held_out_names) == (["a", "b"], ["c", "d"])
        assert data.held_out.labels.tolist() == [2, 2, 2, 3, 3, 3]
        names = names_of(data)
        assert names["held_out"] == {f"test/{name}/{image}" for name in "cd" for image in BY_NUMBER[:3]}
        assert names["test"] == {f"test/{name}/{image}" for name in "ab" for image in BY_NUMBER[:3]}
        assert [len(part.labels) for part in data[:3]] == [18, 6, 6]
    print_summary(data)
    printed = capsys.readouterr().out
    assert "2 classes: a, b\n" in printed and "never trained on: 2, with 6 images: c, d\n" in printed
    assert "No known classes" not in printed and "test image:" not in printed


def test_a_test_set_of_held_out_classes_alone_stays_the_test_set(tmp_path, capsys):
    """No training image is chosen for testing in its place."""
    save_split(tmp_path, test="cd")
    data = load(tmp_path)
    assert (data.class_names, data.held_out_names) == (["a", "b"], ["c", "d"])
    assert [len(part.labels) for part in data[:4]] == [18, 6, 0, 6]
    print_summary(data)
    printed = capsys.readouterr().out
    assert "No known classes in the test: all test images are of classes that do not train.\n" in printed
    assert "Classes without a test image" not in printed
    save_split(tmp_path / "named", test="c", train="abc", val="abc")  # the class is held out by its name
    data = load(tmp_path / "named", held_out_classes="c")
    assert [len(part.labels) for part in data[:4]] == [18, 6, 0, 15]


@pytest.mark.parametrize("tested", ["ab", "abc"])
def test_a_test_set_of_which_nothing_can_be_read_is_refused(tested, tmp_path):
    save_split(tmp_path, test=tested)
    for path in (tmp_path / "test").rglob("*.png"):
        path.write_text("")
    with pytest.raises(InputError, match=r"there are no test images"):
        load(tmp_path, unreadable="skip", small_classes="skip")


def test_a_test_set_of_classes_that_are_skipped_is_refused(tmp_path):
    save_split(tmp_path, test="")
    save(tmp_path / "train" / "c", BY_NUMBER[:1], 7)
    save(tmp_path / "test" / "c", BY_NUMBER[:3], 8)
    with pytest.raises(InputError, match=r"every class needs two training images.*: c \(1\)"):
        load(tmp_path)
    with pytest.raises(InputError, match=r"there are no test images"):
        load(tmp_path, small_classes="skip")


def test_held_out_classes_are_in_no_other_part_of_an_unsplit_folder(tmp_path, capsys):
    classes = ["a", "b", "c, d", "e", "5"]
    for number, name in enumerate(classes):
        save(tmp_path / name, BY_NUMBER, number)
    before = names_of(load(tmp_path))
    for setting, held_out in (("e", ["e"]), ("c, d", ["c, d"]), ("5,", ["5"]), (" b,5,, e", ["5", "b", "e"])):
        data = load(tmp_path, held_out_classes=setting)
        assert data.held_out_names == held_out
        assert data.class_names == sorted(set(classes) - set(held_out))
        names = names_of(data)
        assert names["held_out"] == {f"{name}/{image}" for name in held_out for image in BY_NUMBER}
        others = {name for name in set().union(*before.values()) if name.split("/")[0] not in held_out}
        assert names["train"] | names["validation"] | names["test"] == others
        assert sum(len(part.labels) for part in data[:4]) == 40 * len(classes)
        assert names["test"] == before["test"] & others  # whichever classes are held out
        assert names["validation"] and names["test"]


@pytest.mark.parametrize("split", [False, True])
def test_a_number_of_held_out_classes_is_chosen_by_the_seed_and_their_names(split, tmp_path):
    all_names = [f"class {number}" for number in range(8)]
    by_number = sorted(all_names, key=lambda name: number_of(f"class {name}", 3))
    (tmp_path / "data").mkdir()

    def add(name):
        if split:
            save_split(
                tmp_path / "data",
                len(list(tmp_path.rglob("*.png"))),
                train=[name],
                test=[name],
                val=(),
            )
        else:
            save(tmp_path / "data" / name, BY_NUMBER, len(list(tmp_path.rglob("*.png"))))

    def held_out(setting, seed=3):
        data = load_images(str(tmp_path / "data"), 9, "scale", 0.2, 0.1, seed, held_out_classes=setting)
        names_of(data)
        assert sorted(data.class_names + data.held_out_names) == sorted(added)
        return data.held_out_names

    added = [by_number[place] for place in (1, 3, 4, 6)]
    for name in added:
        add(name)
    assert held_out("2") == held_out("2") == sorted([by_number[1], by_number[3]])
    assert held_out("1") == [by_number[1]] and held_out("0") == []
    for place, expected in ((7, [1, 3]), (5, [1, 3]), (2, [1, 2]), (0, [0, 1])):
        added.append(by_number[place])
        add(by_number[place])  # changes nothing, unless its number is lower than those of the chosen ones
        assert held_out("2") == sorted(by_number[each] for each in expected)
    assert len({tuple(held_out("2", seed)) for seed in range(5)}) > 2
    with pytest.raises(InputError, match=r"`HELD_OUT_CLASSES` must leave two classes for training.*7 of 8 classes"):
        held_out("7")


def test_held_out_classes_of_a_split_folder_are_taken_out_of_all_its_parts(tmp_path):
    save_split(tmp_path, **dict.fromkeys(("train", "val"), "abcd"), test="abcde")
    data = load(tmp_path, held_out_classes="b,d")
    assert (data.class_names, data.held_out_names) == (["a", "c"], ["b", "d", "e"])
    names = names_of(data)
    counts = {"train": 9, "val": 3, "test": 3}
    of_classes = {f"{part}/{name}/{image}" for part in counts for name in "bd" for image in BY_NUMBER[: counts[part]]}
    assert names["held_out"] == of_classes | {f"test/e/{image}" for image in BY_NUMBER[:3]}
    for part, folder in (("train", "train"), ("validation", "val"), ("test", "test")):
        assert names[part] == {f"{folder}/{name}/{image}" for name in "ac" for image in BY_NUMBER[: counts[folder]]}


@pytest.mark.parametrize("split", [False, True])
def test_an_image_that_equals_a_held_out_one_is_left_out_of_every_other_part(split, tmp_path, capsys):
    if split:
        save_split(tmp_path, **dict.fromkeys(("train", "val", "test"), "abc"))
        held_out, others = "train/c", ["train/a/" + BY_NUMBER[0], "val/b/" + BY_NUMBER[0], "test/a/" + BY_NUMBER[0]]
    else:
        for number, name in enumerate("abc"):
            save(tmp_path / name, BY_NUMBER, number)
        held_out, others = "c", ["a/" + BY_NUMBER[-1], "b/" + BY_NUMBER[len(TEST_NAMES)], "a/" + BY_NUMBER[0]]
    before = names_of(load(tmp_path, held_out_classes="c"))
    assert [name in before[part] for name, part in zip(others, PARTS, strict=False)] == [True] * 3
    assert "Warning" not in capsys.readouterr().out
    for number, name in enumerate(others):
        (tmp_path / name).write_bytes((tmp_path / held_out / BY_NUMBER[number]).read_bytes())
    data = load(tmp_path, held_out_classes="c")
    assert names_of(data) == {part: names - set(others) for part, names in before.items()}
    pixels = pixels_of(data)
    assert not pixels["held_out"] & (pixels["train"] | pixels["validation"] | pixels["test"])
    printed = capsys.readouterr().out
    assert "held-out one: 3\n" in printed
    for number, name in enumerate(others):
        assert f"{name} = {held_out}/{BY_NUMBER[number]} (held out)\n" in printed
    assert "images that are in more than one class: 3\n" in printed


@pytest.mark.parametrize("setting", ["x", "a,x", ",", "A", "tested"])
def test_held_out_classes_that_there_are_not_are_refused_with_those_that_there_are(setting, tmp_path):
    save_split(tmp_path, **dict.fromkeys(("train", "val"), "abc"), test=["a", "b", "tested"])
    with pytest.raises(
        InputError, match=r'^`HELD_OUT_CLASSES` must be "none", a number, or names .*: a, b, c\. '
    ) as caught:
        load(tmp_path, held_out_classes=setting)
    assert str(caught.value).endswith(f"Received: {setting!r}")


@pytest.mark.parametrize("setting", ["2", "99", "a,b", "a,b,c"])
def test_too_many_held_out_classes_are_refused(setting, tmp_path):
    for number, name in enumerate("abc"):
        save(tmp_path / name, BY_NUMBER[-9:], number)
    with pytest.raises(InputError, match=r"^`HELD_OUT_CLASSES` must leave two classes for training.*of 3 classes"):
        load(tmp_path, held_out_classes=setting)


def test_held_out_classes_may_have_a_single_training_image_and_unreadable_images(tmp_path):
    """They do not train; but some of their images must be readable."""
    for number, name in enumerate("ab"):
        save(tmp_path / name, BY_NUMBER, number)
    save(tmp_path / "c", BY_NUMBER[:2], 2)
    (tmp_path / "c" / BY_NUMBER[0]).write_text("")
    with pytest.raises(InputError, match="files that cannot be read"):
        load(tmp_path, held_out_classes="c")
    data = load(tmp_path, held_out_classes="c", unreadable="skip")
    assert (data.class_names, data.held_out_names) == (["a", "b"], ["c"])
    assert data.held_out.names.tolist() == [f"c/{BY_NUMBER[1]}"]
    (tmp_path / "c" / BY_NUMBER[1]).write_text("")
    with pytest.raises(InputError, match=r"there are .*no held-out images"):
        load(tmp_path, held_out_classes="c", unreadable="skip")


def test_a_class_of_equal_images_is_too_small_and_the_log_says_why(tmp_path, capsys):
    save(tmp_path / "a", BY_NUMBER, 0)
    save(tmp_path / "b", BY_NUMBER, 1)
    content = (tmp_path / "b" / BY_NUMBER[0]).read_bytes()
    for path in (tmp_path / "b").iterdir():
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"every class needs two training images.*: b \(0\)"):
        load(tmp_path)
    assert "left out of training or validation" in capsys.readouterr().out


def test_each_class_keeps_two_images_that_can_be_read(tmp_path):
    """Of four images, the two with the highest numbers are unreadable; the others must not be held out."""
    save(tmp_path / "a", BY_NUMBER, 0)
    save(tmp_path / "b", BY_NUMBER, 1)
    names = [*TEST_NAMES[:2], *BY_NUMBER[-2:]]
    save(tmp_path / "c", names, 2)
    for name in names[2:]:
        (tmp_path / "c" / name).write_text("")
    data = load(tmp_path, unreadable="skip")
    assert (data.train.labels == 2).sum() == 2


def test_a_validation_set_that_is_a_copy_of_the_test_set_is_refused(tmp_path):
    for part, seed in (("train", 0), ("val", 2), ("test", 2)):
        save(tmp_path / part / "a", BY_NUMBER[:9], seed)
        save(tmp_path / part / "b", BY_NUMBER[:9], seed + 1)
    with pytest.raises(InputError, match=r"there are no validation images"):
        load(tmp_path)


def test_an_empty_training_folder_of_a_class_with_test_images_is_refused(tmp_path):
    """A copy that failed, not a class to hold out."""
    for part, seed in (("train", 0), ("test", 3)):
        for number, name in enumerate("abc"):
            save(tmp_path / part / name, BY_NUMBER[:9], seed + 10 * number)
    for path in (tmp_path / "train" / "c").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="train/c: no images, though test/ has some"):
        load(tmp_path)
