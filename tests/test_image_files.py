"""Folders of image files: generated images whose colour encodes their class and number."""

import contextlib
import errno
import os
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from pipeline.data import image_files
from pipeline.data.image_files import read_images
from pipeline.data.image_list import MOST_NAMED
from pipeline.data.images import load_images
from pipeline.data.pixels import image_suffixes
from pipeline.errors import InputError

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
PICTURE = np.kron(np.array([[RED, GREEN, BLUE], [WHITE, BLACK, (200, 120, 40)]]), np.ones((16, 16, 1))).astype("uint8")
NAMES = ["deux mots", "test", "train", "été", "日本語"]  # in the order of their labels
numbered = np.random.default_rng(0).permutation(256).tolist()  # so that no two images of `save_unlike` are equal


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


def save_unlike(folder, count, size=(9, 9)):
    """Saves `count` images, no two alike."""
    for number in range(count):
        save(
            folder / f"{number}.png", (numbered[number], len(str(folder)) % 256, sum(folder.name.encode()) % 256), size
        )


def load(folder, image_size=9, fit="scale", seed=0, **more):
    """A folder in three parts, a fifth of the images for testing and a tenth of the others for validation."""
    return load_images(str(folder), image_size, fit, 0.2, 0.1, seed, **more)


def decoded(class_names, *parts, named_by_number=True):
    """The (class, number) in the colour of each image; checks that its label is that class, and its name its path."""
    each = [(part.pixels(), part.labels, part.names) for part in parts]
    images, labels, names = (np.concatenate(values) for values in zip(*each, strict=True))
    assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
    assert (images == images[..., :1, :1]).all()
    pairs = [(label, green // 5) for label, green in zip(labels.tolist(), images[:, 1, 0, 0].tolist(), strict=True)]
    assert [tuple(colour) for colour in images[..., 0, 0].tolist()] == [colour_of(*each) for each in pairs]
    for name, (label, number) in zip(names, pairs, strict=True):
        assert class_names[label] in name.split("/")[:-1]
        assert name.split("/")[-1].split(".")[0] == str(number) or not named_by_number
    return sorted((class_names[label], number) for label, number in pairs)


def read_image(path):
    """One image file as height × width × RGB, at its own size."""
    with Image.open(path) as image:
        return read_like(path, image.size[::-1])


def read_like(path, shape):
    """One image file as height × width × RGB, at the size of an array of this shape."""
    return read_images([path], shape[:2])[0].transpose(1, 2, 0)


@pytest.mark.parametrize(("seed", "fit"), [(0, "scale"), (1, "pad"), (2, "scale")])
def test_every_image_of_a_folder_keeps_its_label_through_the_split(seed, fit, tmp_path):
    saved = save_classes(tmp_path, [17, 2, 10, 13, 25], sizes=[(9, 9), (30, 30), (12, 12)])
    *parts, class_names, held_out_names, value_range, _ = load(tmp_path, 9, fit, seed)
    assert class_names == NAMES and held_out_names == [] and value_range is None
    assert decoded(class_names, *parts) == saved
    assert [len(part.labels) > 0 for part in parts] == [True] * 3 + [False]
    assert (np.bincount(parts[0].labels) >= 2).all()


def test_a_split_folder_keeps_its_split_without_a_copy(tmp_path):
    to_train = save_classes(tmp_path / "train", [4, 3, 4, 2, 5], sizes=[(9, 9), (14, 20)])
    to_test = save_classes(tmp_path / "test", [0, 3, 1], first=10, sizes=[(8, 30)])
    *parts, class_names, held_out_names, _, _ = load(tmp_path, 16)
    train, validation, test = parts = parts[:3]
    assert class_names == NAMES and held_out_names == [] and test.array.shape[1:] == (3, 16, 16)
    assert (decoded(class_names, train, validation), decoded(class_names, test)) == (to_train, to_test)
    assert len(validation.labels) >= 2
    assert all(part.array is train.array for part in parts)
    assert len(train.array) == sum(len(part.labels) for part in parts)


def test_a_split_folder_with_held_out_classes_is_not_copied(tmp_path):
    """A class in both parts, by its name, and one in the test part alone."""
    to_train = save_classes(tmp_path / "train", [4, 3, 4, 2], sizes=[(9, 9), (14, 20)])
    to_test = save_classes(tmp_path / "test", [2, 3, 1, 0, 4], first=10)
    *parts, class_names, held_out_names, _, _ = load(tmp_path, 16, held_out_classes="test")
    held_out = parts[3]
    assert (class_names, held_out_names) == (["deux mots", "train", "été"], ["test", "日本語"])
    assert held_out.labels.tolist() == [3] * 6 + [4] * 4
    *known, kept = ([part._replace(labels=label_in_names(part, class_names, held_out_names))] for part in parts)
    assert decoded(NAMES, *known[0], *known[1]) == [each for each in to_train if each[0] != "test"]
    assert decoded(NAMES, *known[2]) == [each for each in to_test if each[0] in class_names]
    assert decoded(NAMES, *kept) == sorted(each for each in to_train + to_test if each[0] in held_out_names)
    assert all(part.array is held_out.array for part in parts)
    assert len(held_out.array) == sum(len(part.labels) for part in parts)


def label_in_names(part, class_names, held_out_names):
    """The labels of a part as indices into NAMES."""
    return np.array([NAMES.index((class_names + held_out_names)[label]) for label in part.labels], "int32")


def test_nested_folders_are_read_and_hidden_or_other_files_are_skipped(tmp_path, capsys):
    files = [("1.png", 1), ("deeper/and deeper/2.PNG", 2), ("deep/1.png", 3), ("4.Bmp", 4), ("5.GIF", 5), ("6.TIFF", 6)]
    for name, number in files:
        for label in (0, 1):
            save(tmp_path / "ab"[label] / name, colour_of(label, number))
    (tmp_path / "a" / "5.GIF").rename(tmp_path / "a" / "5.jpeg")  # it is still a GIF
    for skipped in ("a/._1.png", "a/.thumbnails/1.png", "b/deeper/.trash/deeper/1.png", ".cache/1.png", "1.png"):
        save(tmp_path / skipped, GREEN)
    for text in ("a/notes.txt", "a/1.png.part", "b/Thumbs.db", "b/png", "readme.md"):
        (tmp_path / text).write_text("not an image")
    (tmp_path / "b" / "folder.png").mkdir()
    *parts, class_names, _, _, _ = load(tmp_path, seed=2)
    expected = [(name, number) for name in "ab" for number in range(1, 7)]
    assert decoded(class_names, *parts, named_by_number=False) == expected
    deeper = {f"{name}/{file}" for name in "ab" for file, _ in files} - {"a/5.GIF"} | {"a/5.jpeg"}
    assert set(np.concatenate([part.names for part in parts])) == deeper
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "not in a class folder" in line]
    assert line.endswith(f": {tmp_path / '1.png'}, {tmp_path / 'readme.md'}")


FORMATS = {  # suffix -> what Pillow needs to keep the colours; the rest is the difference that remains
    **{suffix: ({"quality": 95, "subsampling": 0}, 12) for suffix in ("jpg", "JPEG", "jpe", "jfif")},
    **{suffix: ({}, 0) for suffix in ("png", "bmp", "tif", "TIFF", "ppm", "jp2", "tga")},
    "webp": ({"lossless": True}, 0),
    "avif": ({"quality": 100, "subsampling": "4:4:4"}, 12),
    "mpo": ({"save_all": True, "quality": 95, "subsampling": 0}, 12),
}


@pytest.mark.parametrize("suffix", FORMATS)
def test_each_format_is_decoded_to_the_saved_pixels(suffix, tmp_path):
    path, (settings, tolerance) = tmp_path / f"picture.{suffix}", FORMATS[suffix]
    if f".{suffix.lower()}" not in image_suffixes():
        pytest.skip("not in this installation of Pillow")
    Image.fromarray(PICTURE).save(path, **settings)
    np.testing.assert_allclose(read_image(path), PICTURE.astype(int), atol=tolerance)


def test_the_first_frame_of_an_animation_counts(tmp_path):
    first, second = Image.fromarray(PICTURE), Image.new("RGB", PICTURE.shape[1::-1], GREEN)
    first.quantize(8).save(tmp_path / "a.gif", save_all=True, append_images=[second])
    first.save(tmp_path / "a.webp", save_all=True, append_images=[second], lossless=True)
    for name in ("a.gif", "a.webp"):
        np.testing.assert_array_equal(read_image(tmp_path / name), PICTURE)


def test_photographs_are_read_and_drawings_icons_and_data_are_not():
    photographs = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".jp2"}
    assert photographs <= image_suffixes()
    assert not image_suffixes() & {".eps", ".pdf", ".ico", ".icns", ".h5", ".mpg", ".wmf", ".txt", ".psd"}


def test_images_of_more_than_8_bits_are_scaled_by_the_range_of_the_data_set(tmp_path, capsys):
    """12 bits in a 16-bit PNG, 16-bit TIFF and floats: one scale for all, which new images can use too."""
    generator, values = np.random.default_rng(0), {}
    for number in range(12):
        wide = generator.integers(300, 4000, (6, 7))
        wide[0, 0] = 100 if number == 3 else wide[0, 0]
        wide[1, 1] = 4095 if number == 4 else wide[1, 1]
        for name in "ab":
            kind = "tif" if name == "a" or number % 2 else "png"
            path = tmp_path / name / f"{number}.{kind}"
            path.parent.mkdir(exist_ok=True)
            shifted = wide + (name == "b") * (wide < 4000) * (wide > 200)
            Image.fromarray(shifted.astype("float32" if name == "a" else "uint16")).save(path)
            values[path] = np.rint((shifted - 100) * (255 / 3995)).astype(int)
    *parts, _, _, value_range, _ = load(tmp_path, seed=1)
    assert value_range == (100, 4095)
    assert "24 images have 16-bit or floating-point pixels: 100 becomes black and 4095 white" in capsys.readouterr().out
    loaded = sorted(image[0].tolist() for part in parts for image in part.pixels())
    assert loaded == sorted(each.tolist() for each in values.values())
    path = next(iter(values))
    np.testing.assert_array_equal(read_images([path], (6, 7), "scale", value_range)[0, 2], values[path])


def test_colours_of_16_bits_are_named(tmp_path, capsys):
    """Written by hand, since Pillow writes none: 16 bits of red, green and blue."""
    for number in range(24):
        rows = np.random.default_rng(number).integers(0, 4096, (5, 4, 3)).astype(">u2").reshape(5, -1)
        pixels = b"".join(b"\0" + row.tobytes() for row in rows)
        head = (4).to_bytes(4, "big") + (5).to_bytes(4, "big") + bytes([16, 2, 0, 0, 0])
        chunks = png_chunk(b"IHDR", head) + png_chunk(b"IDAT", zlib.compress(pixels)) + png_chunk(b"IEND", b"")
        path = tmp_path / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    load(tmp_path)
    assert "16 bits are read with the upper 8, and may be nearly black. Such images: 24" in capsys.readouterr().out


def test_pixels_that_are_not_finite_are_refused(tmp_path):
    Image.fromarray(np.array([[0.5, np.nan]], "float32")).save(tmp_path / "nan.tiff")
    with pytest.raises(InputError, match=r"nan\.tiff: pixels must be finite"):
        read_images([tmp_path / "nan.tiff"], (1, 2))


def png_chunk(name, content, checksum=None):
    checksum = zlib.crc32(name + content) if checksum is None else checksum
    return len(content).to_bytes(4, "big") + name + content + checksum.to_bytes(4, "big")


CORRUPT_CHUNKS = {
    "text of 65 MiB": png_chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(65 * 2**20))),
    "text that is no zlib stream": png_chunk(b"zTXt", b"key\0\0not compressed"),
    "text with a wrong checksum": png_chunk(b"tEXt", b"key\0value", 7),
    "colour profile of no sense": png_chunk(b"iCCP", b"name\0\0nothing"),
    "Exif of no sense": png_chunk(b"eXIf", b"MM\0*\0\0\0\x08\xff\xff\x01"),
    "physical size cut": png_chunk(b"pHYs", b"\0"),
}


@pytest.mark.filterwarnings("ignore")  # Pillow's, about the metadata
@pytest.mark.parametrize("place", ["before the pixels", "after the pixels"])
@pytest.mark.parametrize("chunk", CORRUPT_CHUNKS.values(), ids=CORRUPT_CHUNKS)
def test_corrupt_metadata_of_a_png_do_not_matter(chunk, place, tmp_path):
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    at = content.index(b"IDAT" if place == "before the pixels" else b"IEND") - 4
    (tmp_path / "a.png").write_bytes(content[:at] + chunk + content[at:])
    np.testing.assert_array_equal(read_like(tmp_path / "a.png", PICTURE.shape), PICTURE)


@pytest.mark.filterwarnings("ignore")  # Pillow's, about the metadata
@pytest.mark.parametrize(
    "segment", [b"\xff\xe0\0\x07JFIF\0", b"\xff\xe2\0\x0eICC_PROFILE\0", b"\xff\xed\0\x10Photoshop 3.0\0"]
)
def test_corrupt_segments_of_a_jpeg_do_not_matter(segment, tmp_path):
    """The rotation, in another segment, is still applied; colours are right; what is cut off is still noticed."""
    exif = Image.Exif()
    exif[0x0112] = 3
    for mode in ("RGB", "CMYK"):
        Image.fromarray(PICTURE).convert(mode).save(tmp_path / "a.jpg", quality=95, subsampling=0, exif=exif)
        content = (tmp_path / "a.jpg").read_bytes()
        content = content[:2] + segment + content[2:]
        (tmp_path / "a.jpg").write_bytes(content)
        image = read_like(tmp_path / "a.jpg", PICTURE.shape)
        np.testing.assert_allclose(image, np.rot90(PICTURE, 2).astype(int), atol=12)
    for cut in (1, 12, len(content) // 2):
        (tmp_path / "a.jpg").write_bytes(content[:-cut])
        with pytest.raises(InputError, match=r"a\.jpg: "):
            read_like(tmp_path / "a.jpg", PICTURE.shape)


@pytest.mark.filterwarnings("ignore")  # Pillow's, about the metadata
@pytest.mark.parametrize("suffix", ["jpg", "webp", "tiff"])
def test_corrupt_exif_does_not_matter(suffix, tmp_path):
    """Each byte of the metadata after its first tag is replaced in turn."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x011A] = 1, "a picture with a description", 72.5
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(PICTURE).save(path, exif=exif, **FORMATS.get(suffix, ({}, 0))[0])
    content = path.read_bytes()
    start = content.index(b"a picture with") - 20
    for place in range(start, start + 40):
        if suffix == "tiff" and place < start + 20:
            continue  # where a TIFF file keeps its pixels is metadata too
        path.write_bytes(content[:place] + b"\xff" + content[place + 1 :])
        np.testing.assert_allclose(read_like(path, PICTURE.shape), PICTURE.astype(int), atol=12)


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
    save_unlike(tmp_path / "a", 9, size=expected.shape[1::-1])
    save_unlike(tmp_path / "b", 9)
    for number in range(9):
        (tmp_path / "b" / f"{number}.png").unlink()
        varied = PICTURE.copy()
        varied[:16, 16:32] = (0, 200 + 6 * number, 0)
        Image.fromarray(varied).save(tmp_path / "b" / f"{number}.jpg", exif=exif, quality=95, subsampling=0)
    data = load(tmp_path, 99)
    assert len(data.held_out.labels) == 0
    for part in data[:3]:
        assert part.array.shape[1:] == (3, *expected.shape[:2])
        for image in part.pixels()[part.labels == 1].astype(int):
            np.testing.assert_allclose(image.transpose(1, 2, 0)[..., ::2], expected[..., ::2], atol=12)


def test_images_larger_than_image_size_are_shrunk_by_averaging(tmp_path):
    for label, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        for number in range(12):
            stripes = np.zeros((64, 64, 3), "uint8")
            stripes[:, ::2] = 200 + 50 * label + number // 3
            stripes[number, number] = 255
            Image.fromarray(stripes).save(tmp_path / name / f"{number}.png")
    train, *_ = load(tmp_path, 16)
    assert train.array.shape[1:] == (3, 16, 16)
    np.testing.assert_allclose(train.pixels().astype(int), 115, atol=40)


@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
@pytest.mark.parametrize("fit", ["scale", "pad"])
def test_a_large_jpeg_file_looks_as_if_it_were_decoded_in_full(fit, orientation, tmp_path):
    """Compared with the same pixels in a PNG file; the decoder reduces the 641 × 427 pixels to 161 × 107."""
    photo = load_sample_images().images[1].repeat(2, axis=0)[:427].repeat(2, axis=1)[:, :641]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(photo).save(tmp_path / "photo.jpg", exif=exif, quality=90)
    with Image.open(tmp_path / "photo.jpg") as image:
        image.convert("RGB").save(tmp_path / "photo.png", exif=exif)
    fast, exact = (read_images([tmp_path / f"photo.{kind}"], (30, 32), fit).astype(int) for kind in ("jpg", "png"))
    assert 0 < np.abs(fast - exact).mean() < 0.6 and np.abs(fast - exact).max() < 12


def test_each_file_is_decoded_once(tmp_path, monkeypatch):
    """But for those of 16 bits, whose range must be known first, and if another size shows only in decoding."""
    decoded, read = [], image_files.rgb_and_details

    def counted(path, *settings):
        decoded.append(path.name)
        return read(path, *settings)

    monkeypatch.setattr(image_files, "rgb_and_details", counted)
    for name in "ab":
        save_unlike(tmp_path / name, 20, (40, 30))
    load(tmp_path, 16)
    assert len(decoded) == 40
    decoded.clear()
    load(tmp_path, 64)
    assert len(decoded) == 40
    decoded.clear()
    save(tmp_path / "b" / "odd.png", RED, (10, 10))
    Image.fromarray(np.arange(100, dtype="uint16").reshape(10, 10)).save(tmp_path / "a" / "wide.png")
    train, *_ = load(tmp_path, 64)
    assert train.array.shape == (42, 3, 64, 64)
    assert decoded.count("wide.png") <= 3 and len(decoded) == 42 + 1 + 2  # one of each size, to be sure of it
    decoded.clear()
    monkeypatch.setattr(image_files, "HEADERS", 1)
    assert load(tmp_path, 64)[0].array.shape == (42, 3, 64, 64)
    assert decoded.count("wide.png") <= 3 and decoded.count("odd.png") <= 2 and 43 < len(decoded) <= 2 * 42 + 1


def test_a_file_that_cannot_be_read_does_not_change_the_size_of_the_others(tmp_path):
    for name in "ab":
        save_unlike(tmp_path / name, 20, (40, 30))
    save_unreadable(tmp_path / "a")
    assert load(tmp_path, 64, unreadable="skip")[0].array.shape[2:] == (30, 40)


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
    save(tmp_path / "white.png", WHITE, size)
    expected = np.zeros((1, 3, 10, 10))
    expected[:, :, slice(*rows), slice(*columns)] = 255
    np.testing.assert_array_equal(read_images([tmp_path / "white.png"], (10, 10), "pad"), expected)


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
        load(tmp_path, 16)
    rule, *lines = str(raised.value).split("\n  ")
    assert rule.startswith("`DATASET` must have images that can all be used")
    small, count, *named = lines
    assert "--small-classes skip" in small and small.endswith(
        ": test (1), train (0)"
    )  # 日本語, only in test/, is held out
    assert "--unreadable-images skip" in count and count.endswith(": 6")
    assert [line.split(": ")[0] for line in named] == [str(path) for path in sorted(bad)]
    assert "could be decompression bomb" in next(line for line in named if "bomb" in line)
    with pytest.raises(InputError, match=r"missing\.png"):
        read_images([tmp_path / "train" / "deux mots" / "0.png", tmp_path / "missing.png"], (9, 9))


def test_what_stands_in_place_of_an_image_is_named(tmp_path):
    contents = {
        b"": "an empty file",
        bytes(3000): "zeros",
        b"version https://git-lfs.github.com/spec/v1\n": "git lfs pull",
    }
    for number, (content, named) in enumerate(contents.items()):
        (tmp_path / f"{number}.jpg").write_bytes(content)
        with pytest.raises(InputError, match=rf"{number}\.jpg: .*{named}"):
            read_images([tmp_path / f"{number}.jpg"], (9, 9))


def test_control_characters_of_a_name_do_not_reach_the_terminal(tmp_path):
    (tmp_path / "a\x1b[31m.png").write_text("no image")
    with pytest.raises(InputError) as raised:
        read_images(list(tmp_path.iterdir()), (9, 9))
    assert r"a\x1b[31m.png" in str(raised.value) and "\x1b" not in str(raised.value)


def test_of_many_unreadable_files_the_first_are_named(tmp_path):
    for number in range(500):
        (tmp_path / f"{number}.png").write_text("")
    with pytest.raises(InputError) as raised:
        read_images(sorted(tmp_path.iterdir()), (9, 9))
    assert str(raised.value).count("\n") == MOST_NAMED + 1
    assert str(raised.value).endswith(f"and {500 - MOST_NAMED} more")


@pytest.mark.parametrize("split", [False, True])
def test_unreadable_files_and_small_classes_can_be_skipped_with_a_count(split, tmp_path, capsys):
    top = tmp_path / "train" if split else tmp_path
    saved = save_classes(top, [17, 10, 2])
    saved += save_classes(tmp_path / "test", [2, 1], first=30) if split else []
    save_unreadable(top / "deux mots")
    *parts, class_names, _, _, _ = load(tmp_path, 16, unreadable="skip")
    assert decoded(class_names, *parts) == sorted(saved)
    printed = capsys.readouterr().out
    assert "Skipped files that cannot be read: 6\n" in printed and "gone.bmp" in printed
    (top / "train" / "1.png").write_text("")
    with pytest.raises(InputError, match=r"every class needs two training images.* train \(1\)$"):
        load(tmp_path, 16, unreadable="skip")
    *parts, class_names, _, _, _ = load(tmp_path, 16, unreadable="skip", small_classes="skip")
    assert "train" not in class_names
    assert decoded(class_names, *parts) == sorted(each for each in saved if each[0] != "train")
    assert "Skipped classes with fewer than two training images: 1, train (1)\n" in capsys.readouterr().out


def test_a_failing_disk_is_not_an_unreadable_image(tmp_path, monkeypatch):
    """The file may be intact: to skip it would silently train on other images."""
    save_classes(tmp_path, [9, 9])
    opened = Image.open

    def fail(path, *arguments):
        if str(path).endswith("4.png"):
            raise OSError(errno.EIO, "Input/output error")
        return opened(path, *arguments)

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(OSError, match="Input/output error"):
        load(tmp_path, unreadable="skip")

    def no_memory(*given):
        raise MemoryError

    monkeypatch.setattr(Image, "open", opened)
    monkeypatch.setattr(Image.Image, "convert", no_memory)
    with pytest.raises(MemoryError):
        load(tmp_path, unreadable="skip")


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
    *parts, class_names, _, _, _ = load(folder, 16)
    expected = [("a", number) for number in (0, 1, 2, 3, 9)] + [("b", number) for number in (0, 1, 2, 7)]
    assert decoded(class_names, *parts) == expected
    (folder / "b" / "up").symlink_to(folder)
    with pytest.raises(InputError, match=r"b/up: a link to a parent folder$"):  # which holds the other classes
        load(folder, 16)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_is_refused_without_reading_from_it(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(InputError, match=r"pipe\.png: not a regular file"):
        read_images([tmp_path / "pipe.png"], (9, 9))


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
    save_unlike(tmp_path / "a", 3)
    save_unlike(tmp_path / "b", 3)
    closed = [tmp_path / "a" / "0.png", tmp_path / "b" / "closed"]
    closed[1].mkdir()
    for path in (*tmp_path.parents, tmp_path, *tmp_path.rglob("*")):
        if Path(tempfile.gettempdir()).resolve() in path.parents:
            path.chmod(0o755)
    for path in closed:
        path.chmod(0)
    with without_root(), pytest.raises(InputError) as raised:
        load(tmp_path, 16)
    assert all(f"Permission denied: '{path}'" in str(raised.value) for path in closed)
    assert "1.png" not in str(raised.value)


def test_more_pixels_than_memory_are_refused_with_the_constant_to_lower(tmp_path):
    save(tmp_path / "one.png", RED)
    with pytest.raises(InputError, match="`IMAGE_SIZE` must be small enough"):
        read_images([tmp_path / "one.png"], (10**7, 10**7))
