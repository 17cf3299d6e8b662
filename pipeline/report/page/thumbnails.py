"""Small pictures of images, many in one file, for the report page."""

import base64
import io
import math

import numpy as np
from PIL import Image

SIDES = (64, 48, 32, 24, 16)  # pixels, the largest with which the file is small enough
SHOWN = 40  # pixels, the least on the page; smaller thumbnails are enlarged by a whole number
MOST_BYTES = 3_000_000  # of the file
LONGEST_NAME = 120  # characters; of longer names, the middle is left out


class Thumbnails:
    """Collects images, and draws them into one picture: a grid, row by row."""

    def __init__(self):
        self.places, self.images, self.names = {}, [], []

    def add(self, part: str, index: int, image: np.ndarray, name: str) -> int:
        """The place of an image in the grid; the same for the same part and index.

        Args:
            part: str, what the index counts in.
            index: int.
            image: uint8, shape `(3, height, width)`.
            name: str, of the image.
        """
        key = part, int(index)
        if key not in self.places:
            self.places[key] = len(self.images)
            self.images.append(image)
            self.names.append(
                name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME // 2]}…{name[-LONGEST_NAME // 2 :]}"
            )
        return self.places[key]

    def sheet(self) -> tuple[str, int, int]:
        """The picture as a `data:` address, its number of columns, and the side of a thumbnail as the page shows it."""
        columns = math.ceil(math.sqrt(max(1, len(self.images))))
        largest = max((max(image.shape[1:]) for image in self.images), default=SIDES[-1])
        for side in SIDES:
            if side > SIDES[-1] and SIDES[SIDES.index(side) + 1] >= largest:
                continue  # the images themselves are smaller
            content = self._drawn(columns, side)
            if len(content) <= MOST_BYTES:
                break
        return (
            "data:image/webp;base64," + base64.b64encode(content).decode("ascii"),
            columns,
            side * math.ceil(SHOWN / side),
        )

    def _drawn(self, columns, side):
        rows = math.ceil(max(1, len(self.images)) / columns)
        sheet = Image.new("RGB", (columns * side, rows * side))
        for place, image in enumerate(self.images):
            picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
            picture.thumbnail((side, side))
            corner = place % columns * side, place // columns * side
            sheet.paste(
                picture, tuple(edge + (side - own) // 2 for edge, own in zip(corner, picture.size, strict=True))
            )
        file = io.BytesIO()
        sheet.save(file, "WEBP", quality=60)
        return file.getvalue()
