"""Folders of image files: generated images whose colour encodes their class and number."""

import contextlib
import os
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.folders import list_images
from pipeline.data.image_files import read_images
from pipeline.data.images import load_images
from pipeline.errors import InputError

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
PICTURE = np.kron(np.array([[RED, GREEN, BLUE], [WHITE, BLACK, (200, 120, 40)]]), np.ones((16, 16, 1))).astype("uint8")
NAMES = ["deux mots", "test", "train", "été", "日本語"]  # in the order of their labels


def save(path, colour, size=(9, 9)):
    """Saves an image of one colour; size is width and height, as in Pillow."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def colour_of(label, number):
    return 50 * label, 5 * number, 77


def save_classes(folder, counts, first=0, sizes=((9, 9),)):
    """Saves `counts` images of the classes NAMES, numbered from `first`; returns their (class, number)."""
    saved = [(label, number) for label, count in enumerate(counts) for number in range(first, first + count)]
    for label, number in saved:
        save(folder / NAMES[label] / f"{number}.png", colour_of(label, number), sizes[number % len(sizes)])
    return [(NAMES[label], number) for label, number in saved]


def decoded(class_names, *parts):
    """The (class, number) in the colour of each image; checks that its label is that class."""
    images, labels = (np.concatenate(each) for each in zip(*parts, strict=True))
    assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
    assert (images == images[..., :1, :1]).all()
    pairs = [(label, green // 5) for label, green in zip(labels.tolist(), images[:, 1, 0, 0].tolist(), strict=True)]
    assert [tuple(colour) for colour in images[..., 0, 0].tolist()] == [colour_of(*each) for each in pairs]
    return sorted((class_names[label], number) for label, number in pairs)


def read_image(path):
    """One image file as height × width × RGB, at its own size."""
    with Image.open(path) as image:
        return read_images([path], image.size[::-1])[0].transpose(1, 2, 0)


@pytest.mark.parametrize(("seed", "fit"), [(0, "scale"), (1, "pad"), (2, "scale")])
def test_every_image_of_a_folder_keeps_its_label_through_the_split(seed, fit, tmp_path):
    saved = save_classes(tmp_path, [7, 2, 10, 3, 25], sizes=[(9, 9), (30, 30), (12, 12)])
    train, test, class_names = load_images(tmp_path, 9, fit, 0.2, seed)
    assert class_names == NAMES
    assert decoded(class_names, train, test) == saved
    assert np.bincount(test.labels).tolist() == [1, 0, 2, 1, 5]


def test_a_split_folder_keeps_its_split_without_a_copy(tmp_path):
    to_train = save_classes(tmp_path / "train", [2, 3, 4, 2, 5], sizes=[(9, 9), (14, 20)])
    to_test = save_classes(tmp_path / "test", [0, 3, 1], first=10, sizes=[(8, 30)])
    train, test, class_names = load_images(str(tmp_path), 16, "scale", 0.5, seed=0)
    assert train.images.shape[1:] == test.images.shape[1:] == (3, 16, 16)
    assert class_names == NAMES
    assert (decoded(class_names, train), decoded(class_names, test)) == (to_train, to_test)
    for one, other in zip(train, test, strict=True):  # parts of one array
        assert np.shares_memory(one.base, one) and np.shares_memory(one.base, other)
        assert one.base.nbytes == one.nbytes + other.nbytes


def test_nested_folders_are_read_and_hidden_or_other_files_are_skipped(tmp_path, capsys):
    for name, number in [("1.png", 1), ("deeper/and deeper/2.PNG", 2), ("deeper/1.png", 3), ("4.Bmp", 4), ("5.GIF", 5)]:
        for label in (0, 1):
            save(tmp_path / "ab"[label] / name, colour_of(label, number))
    (tmp_path / "a" / "5.GIF").rename(tmp_path / "a" / "5.jpeg")  # it is still a GIF
    for skipped in ("a/._1.png", "a/.thumbnails/1.png", "b/deeper/.trash/deeper/1.png", ".cache/1.png", "1.png"):
        save(tmp_path / skipped, GREEN)
    for text in ("a/notes.txt", "a/1.png.part", "b/Thumbs.db", "b/png", "readme.md"):
        (tmp_path / text).write_text("not an image")
    (tmp_path / "b" / "folder.png").mkdir()
    train, test, class_names = load_images(tmp_path, 9, "scale", 0.2, seed=0)
    assert decoded(class_names, train, test) == [(name, number) for name in "ab" for number in range(1, 6)]
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "not in a class folder" in line]
    assert line.endswith(f": {tmp_path / '1.png'}, {tmp_path / 'readme.md'}")


def test_files_are_listed_in_the_order_of_their_names(tmp_path):
    names = ["0.png", "1.png", "10.png", "2.png", "B.png", "a.png", "d/0.png", "d/e/0.png", "f/0.png"]
    for number in np.random.default_rng(0).permutation(len(names)):
        for folder in ("test/a", "train/b", "train/a"):
            save(tmp_path / folder / names[number], RED)
    listed = list_images(tmp_path)
    expected = [
        (f"{folder}/{name}", label, folder != "test/a")
        for folder, label in (("train/a", 0), ("train/b", 1), ("test/a", 0))
        for name in names
    ]
    assert [path.relative_to(tmp_path).as_posix() for path in listed.paths] == [path for path, _, _ in expected]
    assert listed.labels == [label for _, label, _ in expected]
    assert listed.in_train == [in_train for _, _, in_train in expected]
    assert (listed.class_names, listed.is_split, listed.problems) == (["a", "b"], True, [])


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "bmp", "gif"])
def test_each_format_is_decoded_to_the_saved_pixels(suffix, tmp_path):
    picture, path = Image.fromarray(PICTURE), tmp_path / f"picture.{suffix}"
    if suffix == "gif":  # of two frames, the first counts
        picture.quantize(8).save(path, save_all=True, append_images=[Image.new("RGB", picture.size, GREEN)])
    else:
        picture.save(path, quality=95, subsampling=0)
    np.testing.assert_allclose(read_image(path), PICTURE.astype(int), atol=12 if suffix.startswith("j") else 0)


def test_grey_images_of_1_8_and_16_bits_become_three_equal_channels(tmp_path):
    grey = np.array([[0, 64, 128, 255], [255, 1, 200, 7]])
    stored = {1: grey > 100, 8: grey.astype("uint8"), 16: (grey * 257).astype("uint16")}
    for bits, pixels in stored.items():
        Image.fromarray(pixels).save(tmp_path / "grey.png")
        expected = grey if bits > 1 else np.where(grey > 100, 255, 0)
        np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.stack([expected] * 3, axis=2))


def test_transparent_pixels_are_blended_with_white(tmp_path):
    """By hand: a colour with opacity a on white is a * colour + (1 - a) * 255."""
    pixels = np.array([[(255, 0, 0, 255), (255, 0, 0, 0), (0, 100, 200, 51)]], "uint8")
    Image.fromarray(pixels).save(tmp_path / "rgba.png")
    np.testing.assert_allclose(read_image(tmp_path / "rgba.png").astype(int), [[RED, WHITE, (204, 224, 244)]], atol=1)
    palette = Image.fromarray(np.array([[0, 1, 2]], "uint8"))
    palette.putpalette([*RED, *GREEN, *BLUE])
    Image.fromarray(np.array([[RED, GREEN, BLUE]], "uint8")).save(tmp_path / "one colour.png", transparency=GREEN)
    for name in ("palette.png", "palette.gif"):
        palette.save(tmp_path / name, transparency=1)
    for name in ("palette.png", "palette.gif", "one colour.png"):
        np.testing.assert_array_equal(read_image(tmp_path / name), [[RED, WHITE, BLUE]])


@pytest.mark.parametrize(  # mirrored, then turned left by 90 degrees so many times; there is no orientation 9
    ("orientation", "mirrored", "turns"),
    [*zip(range(1, 10), [0, 1, 0, 1, 1, 0, 1, 0, 0], [0, 0, 2, 2, 1, -1, -1, 1, 0], strict=True)],
)
def test_exif_rotation_is_applied_before_sizes_are_compared(orientation, mirrored, turns, tmp_path):
    expected, exif = np.rot90(PICTURE[:, ::-1] if mirrored else PICTURE, turns), Image.Exif()
    exif[0x0112] = orientation
    for number in range(3):
        save(tmp_path / "a" / f"{number}.png", RED, size=expected.shape[1::-1])
        save(tmp_path / "b" / f"{number}.jpg", RED)
        Image.fromarray(PICTURE).save(tmp_path / "b" / f"{number}.jpg", exif=exif, quality=95, subsampling=0)
    train, _, _ = load_images(tmp_path, 99, "scale", 0.2, seed=0)
    assert train.images.shape == (4, 3, *expected.shape[:2])
    for image in train.images[train.labels == 1].astype(int):
        np.testing.assert_allclose(image.transpose(1, 2, 0), expected, atol=12)


def test_images_larger_than_image_size_are_shrunk_by_averaging(tmp_path):
    stripes = np.zeros((64, 64, 3), "uint8")
    stripes[:, ::2] = 255
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.fromarray(stripes).save(tmp_path / name / f"{number}.png")
    train, _, _ = load_images(tmp_path, 16, "scale", 0.2, seed=0)
    assert train.images.shape == (4, 3, 16, 16)
    np.testing.assert_allclose(train.images.astype(int), 127, atol=12)


def test_skipped_files_are_counted_by_suffix(tmp_path, capsys):
    for name in "ab":
        for number in range(3):
            save(tmp_path / name / f"{number}.png", RED)
    (tmp_path / "a" / "0.webp").write_bytes(b"")
    (tmp_path / "b" / "notes.txt").write_text("")
    (tmp_path / "b" / "LICENSE").write_text("")
    load_images(tmp_path, 32, "scale", 0.2, seed=0)
    assert "1 .txt, 1 .webp, 1 no suffix" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")  # Pillow's, about files that it can still read
def test_a_file_with_one_wrong_byte_is_read_or_named(tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x011A] = 6, "a picture", 72.5
    for kind in ("jpg", "png", "gif", "bmp"):
        path = tmp_path / f"odd.{kind}"
        Image.fromarray(PICTURE).save(path, **({"exif": exif} if kind in ("jpg", "png") else {}))
        content, generator, refused = path.read_bytes(), np.random.default_rng(0), 0
        for place in range(0, min(len(content), 200), 2):
            wrong = bytearray(content)
            wrong[place] = (wrong[place] + generator.integers(1, 256)) % 256
            path.write_bytes(wrong)
            try:
                assert read_images([path], (9, 9)).shape == (1, 3, 9, 9)
            except InputError as error:
                refused += 1
                assert path.name in str(error)
        assert 0 < refused < 100


def test_scaling_stretches_to_the_size(tmp_path):
    low_and_wide = np.array([RED] * 32 + [BLUE] * 16 + [WHITE, BLACK] * 8, "uint8")
    Image.fromarray(np.tile(low_and_wide, (6, 1, 1))).save(tmp_path / "wide.png")
    image = read_images([tmp_path / "wide.png"], (20, 32), "scale")[0].transpose(1, 2, 0).astype(int)
    expected = np.tile([RED, RED, BLUE, BLUE, (127, 127, 127)], (20, 1, 1))  # narrow stripes become their average
    np.testing.assert_allclose(image[:, [0, 14, 17, 22, 28]], expected, atol=2)


@pytest.mark.parametrize(
    ("size", "rows", "columns"),
    [  # width and height of the image; the rows and columns of 10 that it covers
        ((8, 4), (3, 7), (1, 9)),
        ((40, 20), (2, 7), (0, 10)),
        ((10, 30), (0, 10), (3, 6)),
        ((20, 6), (3, 6), (0, 10)),
        ((100, 2), (4, 5), (0, 10)),
    ],
    ids=str,
)
def test_padding_centres_on_black_and_never_enlarges(size, rows, columns, tmp_path):
    save_classes(tmp_path, [2])  # of another size
    for number in range(3):
        save(tmp_path / "b" / f"{number}.png", WHITE, size)
    _, test, _ = load_images(tmp_path, 10, "pad", 0.2, seed=0)
    expected = np.zeros((1, 3, 10, 10))
    expected[:, :, slice(*rows), slice(*columns)] = 255
    np.testing.assert_array_equal(test.images, expected)


def save_unreadable(folder):
    """Files that are corrupt, not images, missing or too large; the headers of the first two can be read."""
    paths = [folder / name for name in ("cut.jpg", "cut.png", "text.jpg", "empty.gif", "gone.bmp", "bomb.png")]
    for path in paths[:2]:
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), "uint8")).save(path)
        path.write_bytes(path.read_bytes()[:700])
    paths[2].write_text("not an image")
    paths[3].touch()
    paths[4].symlink_to(folder / "nowhere.bmp")
    chunks = [b"IHDR" + (40_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0]), b"IDAT"]  # 4.5 GiB when decoded
    packed = [(len(each) - 4).to_bytes(4, "big") + each + zlib.crc32(each).to_bytes(4, "big") for each in chunks]
    paths[5].write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
    return paths


def test_everything_that_is_wrong_with_a_folder_is_named_at_once(tmp_path):
    save_classes(tmp_path / "train", [3, 1, 0, 3])
    save_classes(tmp_path / "test", [1, 0, 0, 0, 1])
    (tmp_path / "train" / "train").mkdir()
    bad = save_unreadable(tmp_path / "train" / "deux mots")
    with pytest.raises(InputError) as raised:
        load_images(tmp_path, 16, "scale", 0.2, seed=0)
    rule, *lines = str(raised.value).split("\n  ")
    assert rule.startswith("`DATASET` must be") and "--unreadable-images skip" in rule
    problems = {line.split(": ")[0]: line for line in lines}
    wrong = [tmp_path / "train" / "test", tmp_path / "train" / "train", tmp_path / "test" / "日本語", *bad]
    assert sorted(problems) == sorted(map(str, wrong))
    assert ": 1 image," in problems[str(wrong[0])] and ": 0 images," in problems[str(wrong[1])]
    assert "could be decompression bomb" in problems[str(bad[-1])]
    with pytest.raises(InputError, match=r"missing\.png"):
        read_images([tmp_path / "train" / "deux mots" / "0.png", tmp_path / "missing.png"], (9, 9))


@pytest.mark.parametrize("split", [False, True])
def test_unreadable_files_can_be_skipped_with_a_count(split, tmp_path, capsys):
    saved = save_classes(tmp_path / "train" if split else tmp_path, [7, 2, 10])
    saved += save_classes(tmp_path / "test", [2, 1], first=10) if split else []
    save_unreadable(tmp_path / "train" / "deux mots" if split else tmp_path / "train")
    train, test, class_names = load_images(tmp_path, 16, "scale", 0.2, 0, "skip")
    assert decoded(class_names, train, test) == sorted(saved)
    assert len(test.labels) == 3
    printed = capsys.readouterr().out
    assert "Skipped 6 files" in printed and "gone.bmp" in printed
    for path in tmp_path.rglob("1.png"):
        path.write_text("")
    with pytest.raises(InputError, match="test: 1 image,"):  # too few are left
        load_images(tmp_path, 16, "scale", 0.2, 0, "skip")


def test_symbolic_links_are_followed_once(tmp_path):
    save_classes(tmp_path / "elsewhere", [4, 3])
    folder = tmp_path / "pictures"
    (folder / "b").mkdir(parents=True)
    (folder / "a").symlink_to(tmp_path / "elsewhere" / "deux mots")
    for number in range(3):
        (folder / "b" / f"{number}.png").symlink_to(tmp_path / "elsewhere" / "test" / f"{number}.png")
    (folder / "b" / "loop").symlink_to(folder / "b")
    (folder / "b" / "x").mkdir()
    save(folder / "b" / "x" / "7.png", colour_of(1, 7))
    for name in ("y", "z"):
        (folder / "b" / name).symlink_to(folder / "b" / "x")
    (tmp_path / "elsewhere" / "deux mots" / "more").symlink_to(tmp_path / "more")
    save(tmp_path / "more" / "deeper" / "9.png", colour_of(0, 9))
    train, test, class_names = load_images(folder, 16, "scale", 0.2, seed=0)
    expected = [("a", number) for number in (0, 1, 2, 3, 9)] + [("b", number) for number in (0, 1, 2, 7)]
    assert decoded(class_names, train, test) == expected
    (folder / "b" / "up").symlink_to(folder)
    with pytest.raises(InputError, match=r"b/up: a link to a parent folder$"):  # which holds the other classes
        load_images(folder, 16, "scale", 0.2, seed=0)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_is_refused_without_reading_from_it(tmp_path):
    save_classes(tmp_path, [3, 3])
    os.mkfifo(tmp_path / "test" / "pipe.png")
    with pytest.raises(InputError, match=r"pipe\.png: not a regular file"):
        load_images(tmp_path, 16, "scale", 0.2, seed=0)


@contextlib.contextmanager
def without_root():
    """Without root's permission to read everything."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="no POSIX permissions")
def test_files_and_folders_without_permission_are_named(tmp_path):
    save_classes(tmp_path, [3, 3])
    closed = [tmp_path / "deux mots" / "0.png", tmp_path / "test" / "closed"]
    closed[1].mkdir()
    for path in (*tmp_path.parents, tmp_path, *tmp_path.rglob("*")):
        if Path(tempfile.gettempdir()).resolve() in path.parents:
            path.chmod(0o755)
    for path in closed:
        path.chmod(0)
    with without_root(), pytest.raises(InputError) as raised:
        load_images(tmp_path, 16, "scale", 0.2, seed=0)
    assert all(f"Permission denied: '{path}'" in str(raised.value) for path in closed)
    assert "1.png" not in str(raised.value)


def test_too_few_images_for_a_split_are_refused(tmp_path):
    save_classes(tmp_path / "no test" / "train", [2, 2])
    (tmp_path / "no test" / "test" / "deux mots").mkdir(parents=True)
    save_classes(tmp_path / "pairs", [2, 2])
    reasons = {"no test": r"test: no image of a class that is in train/$", "pairs": "a class with at least four images"}
    for name, reason in reasons.items():
        with pytest.raises(InputError, match=reason):
            load_images(tmp_path / name, 9, "scale", 0.2, seed=0)


def test_more_pixels_than_memory_are_refused_with_the_constant_to_lower(tmp_path):
    save(tmp_path / "one.png", RED)
    with pytest.raises(InputError, match="`IMAGE_SIZE` must be small enough"):
        read_images([tmp_path / "one.png"], (10**7, 10**7))
