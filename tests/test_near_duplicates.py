"""Which images are called near duplicates: copies that were changed a little, and not images that are merely alike."""

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from pipeline.report.near_duplicates import near_duplicates


def pictures(count, seed=0, base=0.0):
    """Smooth random pictures, 32×32; `base` is the share of one picture that all have in common."""
    generator = np.random.default_rng(seed)
    common = generator.integers(0, 256, (1, 6, 6, 3))
    coarse = (1 - base) * generator.integers(0, 256, (count, 6, 6, 3)) + base * common
    return [Image.fromarray(each.astype("uint8")).resize((32, 32), Image.BICUBIC) for each in coarse]


def pixels(images):
    return np.stack([np.asarray(image, "float32").reshape(-1) / 255 for image in images])


def encoded(image):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=60)
    return Image.open(file)


CHANGES = {
    "re-encoded": encoded,
    "smaller": lambda image: image.resize((20, 20), Image.BILINEAR).resize((32, 32), Image.BILINEAR),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.7),
    "cropped": lambda image: image.crop((1, 1, 32, 32)).resize((32, 32), Image.BILINEAR),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("base", [0.0, 0.5])
def test_changed_copies_are_found_and_nothing_else(change, base):
    images = pictures(60, base=base)
    copies = [CHANGES[change](image) for image in images[:7]]
    pairs, correlations = near_duplicates(pixels(images + copies), seed=0)
    assert sorted(pairs.tolist()) == [[number, 60 + number] for number in range(7)]
    assert np.all(np.diff(correlations) <= 0)
    for (first, second), value in zip(pairs, correlations, strict=True):
        expected = np.corrcoef(pixels(images + copies)[[first, second]].astype("float64"))[0, 1]
        assert abs(value - expected) < 1e-5


def test_images_that_are_all_alike_are_no_near_duplicates():
    pairs, _ = near_duplicates(pixels(pictures(60, base=0.95)), seed=0)
    assert len(pairs) == 0


def test_pairs_equal_those_of_a_plain_loop():
    images = pictures(40)
    values = pixels(images + [encoded(image) for image in images[:4]] + [encoded(encoded(images[0]))])
    correlations = np.corrcoef(values.astype("float64"))
    expected = set()
    usual = np.median([(2 - 2 * np.sort(row)[-11]) ** 0.5 for row in correlations])  # the first of a row is itself
    for image in range(len(values)):
        others = sorted(
            (other for other in range(len(values)) if other != image), key=lambda o: -correlations[image, o]
        )
        tenth = (2 - 2 * correlations[image, others[9]]) ** 0.5
        for other in others[:10]:
            distance = (2 - 2 * correlations[image, other]) ** 0.5
            if distance <= max(tenth / 2, usual / 4) and correlations[image, other] >= 0.8:
                expected.add((min(image, int(other)), max(image, int(other))))
    pairs, _ = near_duplicates(values, seed=0)
    assert set(map(tuple, pairs.tolist())) == expected
    assert {(0, 40), (0, 44), (40, 44)} <= expected


def test_a_dozen_copies_of_one_image_are_all_found():
    images = pictures(30)
    copies = [encoded(ImageEnhance.Brightness(images[0]).enhance(1 + number / 100)) for number in range(12)]
    pairs, _ = near_duplicates(pixels(images + copies), seed=0)
    found = {number for pair in pairs.tolist() for number in pair}
    assert found == {0, *range(30, 42)}


@pytest.mark.parametrize("count", [0, 1, 10])
def test_of_ten_images_nothing_can_be_said(count):
    pairs, correlations = near_duplicates(pixels(pictures(count)) if count else np.zeros((0, 12), "float32"), seed=0)
    assert pairs.shape == (0, 2) and correlations.shape == (0,)


def test_black_images_are_no_near_duplicates():
    values = np.concatenate([pixels(pictures(20)), np.zeros((3, 32 * 32 * 3), "float32")])
    pairs, correlations = near_duplicates(values, seed=0)
    assert len(pairs) == 0 and np.isfinite(correlations).all()
