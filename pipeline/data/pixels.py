"""One image file as pixels: which formats are read, and how they become RGB."""

import contextlib
import io
import os
import struct
import threading
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from PIL import Image

# Pillow's formats that are no photographs: drawings, icons, films, and data that it opens but cannot decode by itself.
NO_PHOTOGRAPHS = {
    *("BUFR", "CUR", "EPS", "FITS", "FLI", "FTEX", "GBR", "GRIB", "HDF5", "ICNS", "ICO", "IPTC", "MCIDAS", "MPEG"),
    *("PIXAR", "QOI", "SPIDER", "VTF", "WMF", "XBM", "XPM", "XVTHUMB", "BLP", "DDS", "DCX", "PSD", "SUN"),
}
# EXIF's orientation -> how to turn the stored pixels. Not `ImageOps.exif_transpose`, which fails on corrupt metadata.
TRANSPOSED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
TURNED = (5, 6, 7, 8)  # by 90 degrees
DRAFT = 3  # from which on reducing first makes no visible difference (Pillow's documentation of `reducing_gap`)
WIDE = ("uint16", "float32")  # types of arrays that are scaled by the range of the run
_LARGE = threading.Lock()  # images that take hundreds of megabytes are decoded one at a time

Range = tuple[float, float]


@lru_cache
def image_suffixes() -> frozenset[str]:
    """Suffixes, in lower case, of all photographs that Pillow can read; with pillow-heif installed, of HEIC too."""
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    registered = Image.registered_extensions().items()
    readable = {*Image.OPEN, "MPO"} - NO_PHOTOGRAPHS  # MPO files are opened as JPEG
    return frozenset(suffix for suffix, name in registered if name in readable)


def _opened(path):
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError("not a regular file")  # reading from a pipe would wait forever
    try:
        return Image.open(path)
    except Exception as error:  # such as a PNG text chunk that is corrupt or too large
        if getattr(error, "errno", None):
            raise
        for with_exif in (True, False):  # which says how to turn the image, if it is not corrupt itself
            content = _without_metadata(path, with_exif)
            if content is not None:
                with contextlib.suppress(Exception):
                    return Image.open(content)
        raise


def _without_metadata(path, with_exif=False):
    """A PNG or JPEG file with nothing but its pixels; None for another file."""
    with open(path, "rb") as file:
        signature = file.read(8)
        if signature == b"\x89PNG\r\n\x1a\n":
            return io.BytesIO(signature + b"".join(_png_chunks(file, with_exif)))
        if signature.startswith(b"\xff\xd8"):
            file.seek(2)
            return io.BytesIO(b"\xff\xd8" + b"".join(_jpeg_segments(file, with_exif)))
    return None


def _png_chunks(file, with_exif):
    while len(head := file.read(8)) == 8:
        length, name = struct.unpack(">I4s", head)
        chunk = head + file.read(length + 4)
        if name in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND") or (name == b"eXIf" and with_exif):
            yield chunk


def _jpeg_segments(file, with_exif):
    while len(head := file.read(4)) == 4:
        _, marker, length = struct.unpack(">BBH", head)
        if marker == 0xDA:  # the pixels
            yield head + file.read()
            return
        segment = head + file.read(max(length - 2, 0))
        is_exif = marker == 0xE1 and segment[4:8] == b"Exif"
        says_how_colours_are_stored = marker == 0xEE and length >= 14
        is_metadata = 0xE0 <= marker <= 0xEF or marker == 0xFE
        if not is_metadata or says_how_colours_are_stored or (is_exif and with_exif):
            yield segment


def digest(pixels: np.ndarray) -> bytes:
    """A checksum of an image's pixels, which no two different images have in common (BLAKE2b, 16 bytes)."""
    return blake2b(np.ascontiguousarray(pixels), digest_size=16).digest()


def _orientation(image):
    """EXIF's orientation, 1 if the metadata are corrupt."""
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # Pillow raises many types
        return 1


def _values(image):
    """Pixels of more than 8 bits; raises ValueError if some are not finite."""
    values = np.asarray(image)
    if not np.isfinite(values).all():
        raise ValueError("pixels must be finite numbers")
    return values


def _from_array(array):
    is_colour = array.ndim == 3 and array.shape[2] in (3, 4)
    is_grey = array.ndim == 2
    if array.size and ((array.dtype == "uint8" and (is_colour or is_grey)) or (array.dtype in WIDE and is_grey)):
        return Image.fromarray(array)
    raise ValueError(
        "arrays must be uint8 of shape (height, width), (height, width, 3) or (height, width, 4), or uint16 or float32 "
        f"of shape (height, width); this one is {array.dtype} of shape {array.shape}"
    )


class Details(NamedTuple):
    """What an image file is like.

    Attributes:
        size: `(height, width)` in pixels, as it is displayed.
        value_range: lowest and highest value of an image whose values need more than 8 bits, else None.
        is_reduced: whether it has 16 bits that Pillow reduces to 8: those of colours or of grey with opacity.
    """

    size: tuple[int, int]
    value_range: Range | None
    is_reduced: bool


def displayed_size(path: str | os.PathLike) -> tuple[int, int]:
    """Height and width of an image file, as it is displayed, from its header."""
    with _opened(path) as image:
        return _displayed_size(image, _orientation(image))


def rgb_pixels(
    source: str | os.PathLike | np.ndarray | Image.Image, size: tuple[int, int], fit: str, value_range: Range | None
) -> np.ndarray:
    """An image as uint8 RGB of shape `(3, height, width)`, resized to `size` as `fit` says.

    The source is the path of a file, an array of shape `(height, width, 3)` or `(height, width)`, or Pillow's image.
    """
    return rgb_and_details(source, size, fit, value_range)[0]


def rgb_and_details(
    source: str | os.PathLike | np.ndarray | Image.Image, size: tuple[int, int], fit: str, value_range: Range | None
) -> tuple[np.ndarray, Details]:
    """What `rgb_pixels` returns, and the `Details`."""
    is_path = isinstance(source, (str, os.PathLike))
    image = source if isinstance(source, Image.Image) else None if is_path else _from_array(np.asarray(source))
    with contextlib.nullcontext(image) if image else _opened(source) as image:
        # Of PNG and TIFF, and of PPM, with the highest value; before a PNG file is loaded, which its metadata need.
        stored = [str(tile[3]) for tile in image.tile] if is_path else []
        orientation = _orientation(image)
        displayed = _displayed_size(image, orientation)
        wanted = _fitted(displayed, size, fit)  # height and width
        width, height = wanted if orientation in TURNED else wanted[::-1]  # as it is stored
        # A JPEG decoder reduces a large image by 2, 4 or 8 itself.
        reduced = image.draft(None, (DRAFT * width, DRAFT * height)) if is_path else None
        box = reduced[1] if reduced else None
        with _LARGE if image.width * image.height > 2**26 else contextlib.nullcontext():
            image = _loaded(image, source if is_path else None)
            image, own_range = _of_8_bits(image, value_range)
            is_reduced = not own_range and any(";16" in each or "65535" in each for each in stored)
            image = _rgb(image)
            if image.size != (width, height):
                image = image.resize((width, height), Image.Resampling.BILINEAR, box)
            if orientation in TRANSPOSED:
                image = image.transpose(TRANSPOSED[orientation])
            if wanted != size:
                image = _padded(image, size)
            return np.asarray(image).transpose(2, 0, 1), Details(displayed, own_range, is_reduced)


def _displayed_size(image, orientation):
    width, height = image.size
    return (width, height) if orientation in TURNED else (height, width)


def _fitted(displayed, size, fit):
    """Height and width to which an image is resized: padding never enlarges it, and keeps its shape."""
    if fit == "scale":
        return tuple(size)
    factor = min(1, *(wanted / given for wanted, given in zip(size, displayed, strict=True)))
    return tuple(max(1, round(factor * given)) for given in displayed)


def _loaded(image, path):
    """The image with its pixels; without its metadata, if these are what cannot be read."""
    try:
        image.load()
    except OSError:  # truncated
        raise
    except Exception:  # perhaps because of metadata after the pixels
        content = _without_metadata(path) if path else None
        if content is None:
            raise
        return Image.open(content)
    return image


def _of_8_bits(image, value_range):
    """An image whose values have 8 bits, and the range of its values if they had more; Pillow would clip them."""
    if not (image.mode.startswith("I") or image.mode == "F"):
        return image, None
    values = _values(image)
    low, high = value_range or ((0, 1) if image.mode == "F" else (0, 65535))
    scaled = (values.astype("float64") - low) * (255 / ((high - low) or 1))
    return Image.fromarray(np.rint(scaled).clip(0, 255).astype("uint8")), (float(values.min()), float(values.max()))


def _rgb(image):
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _padded(image, size):
    height, width = size
    canvas = Image.new("RGB", (width, height))
    canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return canvas
