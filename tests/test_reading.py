"""What is left out of a data set, and what its user is told about it."""

import numpy as np
import pytest
from PIL import Image

from pipeline.data.images import load_images, print_summary
from pipeline.data.splits import number_of
from pipeline.errors import InputError

BY_NUMBER = sorted((f"{number}.png" for number in range(40)), key=lambda name: number_of(name, 0))
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
    return {part: {image.tobytes() for image in getattr(data, part).images} for part in ("train", "validation", "test")}


def test_an_image_in_two_parts_is_named_and_left_out_of_training(tmp_path, capsys):
    """Byte for byte, or in another format; a copy in the same part stays."""
    save(tmp_path / "a", BY_NUMBER, 0)
    save(tmp_path / "b", BY_NUMBER, 1)
    tested, trained = tmp_path / "a" / TEST_NAMES[0], tmp_path / "a" / BY_NUMBER[-1]
    trained.write_bytes(tested.read_bytes())
    Image.open(tmp_path / "b" / TEST_NAMES[1]).save(tmp_path / "b" / BY_NUMBER[-2], "BMP")
    (tmp_path / "b" / BY_NUMBER[-3]).write_bytes((tmp_path / "b" / BY_NUMBER[-4]).read_bytes())
    data = load(tmp_path)
    train, validation, test = pixels_of(data).values()
    assert not (train | validation) & test and not train & validation
    assert len(data.test.labels) == 2 * len(TEST_NAMES)
    assert len(data.train.labels) + len(data.validation.labels) == 2 * (40 - len(TEST_NAMES)) - 2
    printed = capsys.readouterr().out
    assert "are left out of training or validation: 2\n" in printed
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
    assert [len(part.labels) for part in data[:3]] == [18, 18, 18]
    printed = capsys.readouterr().out
    assert "left out of training or validation: 2\n" in printed and "in more than one class: 1\n" in printed


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


def test_a_class_of_test_images_alone_is_too_small(tmp_path, capsys):
    for name in "ab":
        save(tmp_path / "train" / name, BY_NUMBER[:9], ord(name))
        save(tmp_path / "val" / name, BY_NUMBER[:3], ord(name) + 100)
        save(tmp_path / "test" / name, BY_NUMBER[:3], ord(name) + 50)
    save(tmp_path / "test" / "c", BY_NUMBER[:3], 2)
    with pytest.raises(InputError, match=r"every class needs two training images.*: c \(0\)"):
        load(tmp_path)
    data = load(tmp_path, small_classes="skip")
    assert data.class_names == ["a", "b"] and len(data.test.labels) == 6
    for path in (tmp_path / "test").rglob("*.png"):
        path.write_text("")
    with pytest.raises(InputError, match=r"there are no test images"):
        load(tmp_path, unreadable="skip", small_classes="skip")


def test_a_class_of_equal_images_is_too_small_and_the_log_says_why(tmp_path, capsys):
    save(tmp_path / "a", BY_NUMBER, 0)
    save(tmp_path / "b", BY_NUMBER, 1)
    content = (tmp_path / "b" / BY_NUMBER[0]).read_bytes()
    for path in (tmp_path / "b").iterdir():
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"every class needs two training images.*: b \(0\)"):
        load(tmp_path)
    assert "left out of training or validation: " in capsys.readouterr().out


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
