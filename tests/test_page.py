"""The report page in a browser: what it shows, and how it behaves under a pointer, a keyboard and on a small screen."""

import re
import shutil

import numpy as np
import pytest

from pipeline.data.splits import DataSet, Images
from pipeline.report.audit import ACROSS, LABEL, Finding
from pipeline.report.controls import Controls
from pipeline.report.methods import Method
from pipeline.report.page.page import Page
from pipeline.report.results import Results

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
needs_browser = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")
HISTORY = {
    "loss": [0.3, 0.2, 0.1],
    "active_triplets": [0.9, 0.5, 0.4],
    "positive_distance": [1.0, 0.8, 0.7],
    "negative_distance": [2.0, 2.0, 2.0],
    "val_accuracy": [0.5, 0.9, 0.8],
}


def images(part, count, classes, size=12, first=0):
    generator = np.random.default_rng(len(part))
    pixels = generator.integers(0, 256, (count, 3, size, size)).astype("uint8")
    names = np.array([f"{part}/{number} & <b>.png" for number in range(count)], object)
    return Images(pixels, (first + np.arange(count) % classes).astype("int32"), names)


def written(folder, classes=3, tests=40, held_out=0, names=None, threshold=0.9, scale=1):
    """The page of a run that is made up: every fifth prediction is wrong."""
    class_names = names or [f"class {number}" for number in range(classes)]
    train, test = images("train", max(50, classes), classes), images("test", tests, classes)
    parts = train, images("validation", 10, classes), test, images("held", held_out, 2, first=classes)
    data = DataSet(*parts, class_names, ["x", "y"] if held_out else [])
    predicted = np.where(np.arange(tests) % 5 == 0, (test.labels + 1) % classes, test.labels)
    indices = np.random.default_rng(0).integers(0, len(train.labels), (tests, 5))
    known, unknown = scale * np.arange(tests) / max(1, tests), scale * (0.5 + np.arange(held_out) / 100)
    method = Method({"accuracy": 0.8, "recall@1": 0.75, "MAP@R": 0.5}, {}, predicted == test.labels)
    results = Results(np.zeros((1, 2)), np.zeros((1, 2)), predicted, indices, known, unknown, method, threshold, {}, {})
    findings = [Finding(LABEL, "train", 1, "", -1, 0, 0.001), Finding(ACROSS, "validation", 2, "train", 3, 0, 0.98)]
    controls = Controls({"raw pixels": Method({"accuracy": 0.3}, {}, method.correct)}, [], np.zeros(0), findings)
    scores = {"accuracy": 0.8, "recall@1": 0.75, "MAP@R": 0.5, "95% interval": [0.7, 0.9]}
    measures = {"precision": 0.5, "recall": 0.25, "f1-score": 0.125, "support": 10}
    report = {"raw pixels": {"accuracy": 0.3, "95% interval": [0.2, 0.4]}, "triplet loss": scores} if tests else {}
    report["classes"] = {name: measures | {"support": number} for number, name in enumerate(class_names)}
    report["near duplicates"] = {"test images": 3, "accuracy without them": 0.75}
    report |= {"verdict": {"sentence": "Triplet loss beat <raw> & cooked pixels."}, "warnings": ["mind the <gap>"]}
    constants = {"DATASET": "a/my <images>", "BACKBONE": "ResNet50", "EPOCHS": 3}
    page = Page(folder, constants, {"device": "CPU"}, data, controls, lambda: 3725.4)
    numbers = np.arange(tests or held_out)
    grid = np.stack([numbers % 8, numbers // 8], axis=1)
    page.write(HISTORY, "the report\nin two lines", report, results, -grid, grid, numbers)
    return folder / "report.html", page


@pytest.fixture(scope="module")
def default(tmp_path_factory):
    """A page with everything, and its `Page`."""
    return written(tmp_path_factory.mktemp("run"), classes=12, held_out=20)


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for option in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,900"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser):
    def opened(path, width=1200):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get(path.as_uri())
        return browser

    yield opened
    assert browser.get_log("browser") == []  # no error, nothing that failed to load


def found(driver, selector):
    return driver.find_elements("css selector", selector)


def text(driver, selector):
    (element,) = found(driver, selector)
    return element.text


@needs_browser
@pytest.mark.parametrize(
    "contents", [{}, {"classes": 2}, {"held_out": 6}, {"tests": 0, "held_out": 6}, {"classes": 300, "tests": 400}]
)
def test_every_picture_loads_and_nothing_is_wider_than_the_screen(contents, tmp_path, opened):
    path, _ = written(tmp_path, **contents)
    for width in (1200, 390):
        driver = opened(path, width)
        is_loaded = "return [...document.images].every((each) => each.complete && each.naturalWidth > 0)"
        assert driver.execute_script(is_loaded)
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
        pictures = found(driver, ".thumbnail")
        assert len(pictures) >= 3
        for picture in pictures[:5]:
            assert picture.get_attribute("aria-label")
            assert min(picture.size.values()) >= 40


@needs_browser
def test_hovering_and_arrow_keys_show_an_image_with_its_neighbours(default, opened):
    from selenium.webdriver import ActionChains, Keys

    driver = opened(default[0])
    circles, card = found(driver, "#map circle"), found(driver, "#card")[0]
    assert len(circles) == 40 and len(found(driver, "circle.wrong")) == 8
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", found(driver, "#map")[0])
    for number in (7, 20):
        ActionChains(driver).move_to_element(circles[number]).perform()
        shown = int(re.search(r"test/(\d+) & <b>", card.text)[1])
        assert circles[shown].get_attribute("class").endswith("chosen") and shown == number
        predicted = (number + (number % 5 == 0)) % 12
        assert f"class {number % 12}\npredicted as class {predicted}\n" in card.text
        assert len(found(driver, "#card .thumbnail")) == 4
    neighbours = found(driver, "#card .thumbnail")[1:]
    indices = np.random.default_rng(0).integers(0, 50, (40, 5))[20, :3]
    assert [each.get_attribute("aria-label") for each in neighbours] == [
        f"class {index % 12}: train/{index} & <b>.png" for index in indices
    ]
    for key, number in ((Keys.ARROW_LEFT, 19), (Keys.ARROW_DOWN, 27), (Keys.ARROW_RIGHT, 28), (Keys.ARROW_UP, 20)):
        found(driver, "#map")[0].send_keys(key)
        assert f"test/{number} & <b>" in card.text
    assert len(found(driver, "circle.chosen")) == 1


@needs_browser
def test_the_thumbnail_of_a_point_has_its_pixels(default, opened):
    path, page = default
    driver = opened(path)
    place = driver.execute_script("return data.points[3].place")
    sheet = driver.execute_async_script(
        """const [place, done] = arguments, { columns } = data.sheet, picture = new Image();
        picture.onload = () => {
          const canvas = document.createElement("canvas"), side = picture.width / columns;
          canvas.width = canvas.height = side;
          const x = (place % columns) * side, y = Math.floor(place / columns) * side;
          const context = canvas.getContext("2d");
          context.drawImage(picture, x, y, side, side, 0, 0, side, side);
          done([side, [...context.getImageData(0, 0, side, side).data]]);
        };
        picture.src = getComputedStyle(document.querySelector(".thumbnail")).backgroundImage.slice(5, -2);""",
        place,
    )
    side, values = sheet
    pixels = np.array(values).reshape(side, side, 4)[..., :3]
    edge = (side - 12) // 2
    shown = pixels[edge : edge + 12, edge : edge + 12].mean(axis=(0, 1))
    expected = page.data.test.pixels()[3].mean(axis=(1, 2))
    others = page.data.test.pixels()[[0, 1, 2, 4, 5]].mean(axis=(2, 3))
    assert np.abs(shown - expected).max() < np.abs(others - expected).max(axis=1).min() / 2


@needs_browser
def test_the_slider_shows_both_error_rates(default, opened):
    driver = opened(default[0])
    assert text(driver, "#rate-known") == "7.5% of 40"  # 0.925, 0.95 and 0.975 are above 0.9
    assert text(driver, "#rate-unknown") == "100.0% of 20"
    slide = "const s = document.getElementById('threshold'); s.value = 0.6; s.dispatchEvent(new Event('input'))"
    driver.execute_script(slide)
    assert text(driver, "#rate-known") == "37.5% of 40"
    assert text(driver, "#rate-unknown") == "55.0% of 20"
    assert text(driver, "#threshold-value") == "0.6000"


@needs_browser
@pytest.mark.parametrize(("threshold", "scale"), [(0.123456789, 1), (4.4e-5, 1e-4)])
def test_the_rates_at_first_are_those_of_the_threshold_of_the_run(threshold, scale, tmp_path, opened):
    driver = opened(written(tmp_path, held_out=20, threshold=threshold, scale=scale)[0])
    known, unknown = scale * np.arange(40) / 40, scale * (0.5 + np.arange(20) / 100)
    assert text(driver, "#rate-known") == f"{100 * np.mean(known > threshold):.1f}% of 40"
    assert text(driver, "#rate-unknown") == f"{100 * np.mean(unknown <= threshold):.1f}% of 20"


@needs_browser
def test_the_table_of_classes_sorts_by_any_column(default, opened):
    driver = opened(default[0])
    support = found(driver, ".sortable button")[-1]

    def names():
        return [row.text for row in found(driver, ".sortable tbody th")]

    support.click()
    assert names()[:3] == ["class 11", "class 10", "class 9"]
    support.click()
    assert names()[:3] == ["class 0", "class 1", "class 2"]
    found(driver, ".sortable button")[0].click()
    assert names()[:3] == ["class 0", "class 1", "class 2"]
    assert found(driver, "[aria-sort]")[0].text == "class"


@needs_browser
def test_names_are_text_and_the_numbers_those_of_the_report(tmp_path, opened):
    driver = opened(written(tmp_path, names=["<script>alert(1)</script>", "鳥", "b"])[0])
    content = text(driver, "body")
    for expected in (
        "80.0%",
        "beat <raw> & cooked",
        "mind the <gap>",
        "my <images>",
        "<script>alert(1)</script>",
        "鳥",
    ):
        assert expected in content
    assert "Epoch 2 has the highest validation accuracy, 0.9000" in content
    assert content.count("of 14") >= 1 and "8 of 40 test images are classified wrongly" in content
    assert "Labels to check" in content and "Near duplicates across the split" in content
    assert "Without the test images that have near duplicates in training or validation" in content
    assert "the accuracy of triplet loss is 0.7500" in content
    assert "1:02:05" in content  # the duration
    driver.execute_script("document.querySelectorAll('details').forEach((each) => each.open = true)")
    assert text(driver, "pre") == "the report\nin two lines"


@needs_browser
def test_during_training_the_page_shows_the_curves_and_reloads(default, tmp_path, opened, monkeypatch):
    page = default[1]
    monkeypatch.setattr(page, "folder", tmp_path)
    page.write_progress({name: values[:2] for name, values in HISTORY.items()})
    driver = opened(tmp_path / "report.html")
    assert "2 of 3" in text(driver, "[role=status]")
    assert found(driver, "meta[http-equiv=refresh]") and len(driver.find_elements("tag name", "img")) == 1
    assert "raw pixels" in found(driver, "table")[0].text


@needs_browser
def test_dark_mode_has_light_text(default, opened, browser):
    feature = {"name": "prefers-color-scheme", "value": "dark"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    driver = opened(default[0])
    script = "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
    colour, ground = (sum(map(int, re.findall(r"\d+", each)[:3])) for each in driver.execute_script(script))
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert colour > 600 and ground < 150


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_confusion_matrix_can_be_read_at_any_share(scheme, default, opened, browser):
    """By the contrast of the Web Content Accessibility Guidelines 2.2, success criterion 1.4.3."""
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    driver = opened(default[0])
    script = """const s = getComputedStyle(arguments[0]), g = getComputedStyle(document.body);
        return [s.color, s.backgroundColor, g.backgroundColor]"""

    def luminance(colour):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in np.array(colour) / 255]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    for cell in found(driver, ".confusion td")[:24]:
        front, back, ground = (
            [float(value) for value in re.findall(r"[\d.]+", each)] for each in driver.execute_script(script, cell)
        )
        opacity = back[3] if len(back) == 4 else 1
        mixed = [opacity * one + (1 - opacity) * two for one, two in zip(back[:3], ground[:3], strict=True)]
        high, low = sorted((luminance(front[:3]), luminance(mixed)), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_the_page_needs_no_other_file_and_is_small(tmp_path):
    path, _ = written(tmp_path, classes=1000, tests=3000)
    content = path.read_text(encoding="utf-8")
    addresses = re.findall(r"""(?:src|href)=["']?([^"'\s>]+)|url\(["']?([^"')]+)""", content)
    assert all(first.startswith("data:") or second.startswith("data:") for first, second in addresses)
    assert "http://" not in content and "https://" not in content
    assert path.stat().st_size < 5_000_000


def test_training_goes_on_if_the_page_cannot_be_written(default, monkeypatch, capsys):
    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.files.atomic_path", full)
    default[1].write_progress({})
    assert "Warning: report.html is not written" in (printed := capsys.readouterr().out) and "No space left" in printed


def test_a_page_before_the_first_epoch_has_what_triplet_loss_is_compared_with(default, tmp_path, monkeypatch):
    page = default[1]
    monkeypatch.setattr(page, "folder", tmp_path)
    page.write_progress({})
    content = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "raw pixels" in content and "0 of 3." in content
