"""The content of the figures, read back from Matplotlib's objects, and the image files that they are written to."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from matplotlib import font_manager
from matplotlib.cbook import is_math_text
from matplotlib.colors import same_color
from matplotlib.text import Text
from PIL import Image
from threadpoolctl import threadpool_limits

from pipeline.data.splits import Images
from pipeline.report import class_labels, figures

CURVES = ("loss", "active_triplets", "positive_distance", "negative_distance", "val_accuracy")


@pytest.fixture
def draw(monkeypatch, tmp_path):
    """Calls one of the functions, checks the image that it writes, and returns the figure.

    Rendering takes most of the time; `render=False` skips it, and the file stays empty.
    """
    drawn, rendering = [], True

    class Recorded(figures.Figure):
        def savefig(self, path, **options):
            drawn.append(self)
            if rendering:
                super().savefig(path, **options)
            else:
                Path(path).touch()

    def draw(function, *arguments, render=True, **options):
        nonlocal rendering
        rendering, path = render, tmp_path / "figure.png"
        function(*arguments, path, **options)
        if render:
            with Image.open(path) as image:
                assert image.format == "PNG"
                assert min(image.size) > 100
                assert (np.asarray(image.convert("L")) < 128).mean() > 0.001  # ink
        return drawn[-1]

    monkeypatch.setattr(figures, "Figure", Recorded)
    monkeypatch.setattr(figures, "TSNE", partial(figures.TSNE, max_iter=300))
    with threadpool_limits(1):  # on a busy machine, t-SNE's threads wait for each other
        yield draw


def texts(figure):
    """The texts of a figure as Matplotlib shows them: none is a formula, and `$` is written with a backslash."""
    shown = [text.get_text() for text in figure.findobj(Text)]
    assert not any(is_math_text(text) for text in shown)
    return [text.replace(r"\$", "$").strip() for text in shown]


@pytest.mark.parametrize("epochs", [1, 2, 30])
def test_the_curves_show_the_history_over_the_epochs_from_1(epochs, draw):
    history = {name: np.random.default_rng(len(name)).random(epochs).tolist() for name in (*CURVES, "other")}
    figure = draw(figures.training_curves, history, render=epochs == 1)
    lines = [line for axes in figure.axes for line in axes.get_lines()]
    assert [line.get_ydata().tolist() for line in lines] == [history[name] for name in CURVES]
    assert all(line.get_xdata().tolist() == list(range(1, epochs + 1)) for line in lines)
    ticks = np.concatenate([axes.get_xticks() for axes in figure.axes])
    assert (ticks == ticks.round()).all()


@pytest.mark.parametrize(
    ("classes", "count", "correct", "render"),
    [(2, 3, 1, True), (2, 3, 0, False), (30, 200, 0.6, False), (31, 200, 0.6, True)],
)
def test_the_confusion_matrix_equals_that_of_a_plain_loop(classes, count, correct, render, draw):
    generator = np.random.default_rng(classes)
    labels = generator.integers(0, classes - 1, count)  # none of the last class
    wrong = (labels + generator.integers(1, classes, count)) % classes
    predicted = np.where(generator.random(count) < correct, labels, wrong)
    expected = np.zeros((classes, classes))
    for label, prediction in zip(labels, predicted, strict=True):
        expected[label, prediction] += 1 / (labels == label).sum()
    names = [f"class {number}" for number in range(classes)]
    axes = draw(figures.confusion_matrix, labels, predicted, names, render=render).axes[0]
    np.testing.assert_allclose(axes.images[0].get_array(), expected, atol=1e-9)
    assert axes.get_title() == f"Test images: {sum(labels == predicted) / count:.1%} correct"
    if classes <= 30:
        percentages = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in axes.texts}
        assert percentages == {place: f"{value:.0%}" for place, value in np.ndenumerate(expected)}
        assert [label.get_text() for label in axes.get_yticklabels()] == names
        assert [label.get_text() for label in axes.get_xticklabels()] == names
    else:
        assert len(axes.texts) == len(axes.get_xticks()) == len(axes.get_yticks()) == 0


def points(axes):
    """Positions and colours of the points in a panel of the map."""
    return axes.collections[0].get_offsets().data, [tuple(each) for each in axes.collections[0].get_facecolors()]


@pytest.mark.parametrize("classes", [2, 30, 150])
def test_both_panels_of_the_map_colour_the_images_as_the_legend_does(classes, draw):
    labels = np.random.default_rng(0).permutation(np.resize(np.arange(classes), max(classes, 41)))
    embeddings = np.random.default_rng(1).normal(size=(2, len(labels), 8))
    names = [f"class {number}" for number in range(classes)]
    figure = draw(figures.embedding_map, *embeddings, labels, names, render=False)
    assert [axes.get_title() for axes in figure.axes] == [
        "Before training: pooled features",
        "After training: embeddings",
    ]
    legends = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
    assert len(legends) == (classes <= 30)
    for axes in figure.axes:
        _, colours = points(axes)
        assert len(set(colours)) == classes
        for legend in legends:
            assert [text.get_text().strip() for text in legend.get_texts()] == names
            counts = [colours.count(tuple(handle.get_facecolor()[0])) for handle in legend.legend_handles]
            assert counts == np.bincount(labels).tolist()


@pytest.mark.parametrize("clustered", [0, 1])
def test_clusters_stay_apart_in_the_panel_of_their_embeddings(clustered, draw):
    generator = np.random.default_rng(0)
    labels = generator.permutation(np.resize([0, 1], 41))
    embeddings = generator.normal(size=(2, 41, 2))
    embeddings[clustered] = np.eye(2)[labels] + 0.001 * embeddings[clustered]
    figure = draw(figures.embedding_map, *embeddings, labels, ["a", "b"], render=False)
    for panel, axes in enumerate(figure.axes):
        places, colours = points(axes)
        distances = ((places[:, None] - places) ** 2).sum(axis=2) + np.diag([np.inf] * 41)
        same = [colours[nearest] == colour for nearest, colour in zip(distances.argmin(axis=1), colours, strict=True)]
        assert all(same) == (panel == clustered)


def test_both_panels_of_the_map_show_the_same_random_images(draw):
    embeddings = np.random.default_rng(0).normal(size=(2, 50, 4))
    names = [f"class {number}" for number in range(50)]  # each image has its own class and colour

    def colours_of(seed):
        figure = draw(figures.embedding_map, *embeddings, np.arange(50), names, seed=seed, most=20, render=False)
        assert any(text.startswith("t-SNE of 20 test images") for text in texts(figure))
        before, after = (points(axes)[1] for axes in figure.axes)
        assert before == after
        assert len(set(before)) == 20
        return set(before)

    assert colours_of(0) != colours_of(1)


@pytest.mark.parametrize("embeddings", [np.ones((1, 8)), np.eye(3), np.eye(4), np.ones((5, 8))])
def test_a_map_of_few_images_or_equal_embeddings_is_drawn(embeddings, draw):
    count = len(embeddings)
    figure = draw(
        figures.embedding_map, embeddings, embeddings, np.arange(count) % 2, ["a", "b"], render=count in (1, 5)
    )
    assert any(text.startswith(f"t-SNE of {count} test images") for text in texts(figure))
    for axes in figure.axes:
        if count > 3:  # fewer have no t-SNE
            places, _ = points(axes)
            assert places.shape == (count, 2) and np.isfinite(places).all()


def neighbour_data(count, correct, neighbours, classes=3):
    """Random test and training images whose first pixel is their number, predictions, and random neighbours."""
    generator = np.random.default_rng(count + correct)
    images = generator.integers(0, 256, (2 * count, 3, 6, 5), "uint8")
    images[:, 0, 0, 0] = np.arange(2 * count)
    labels = generator.integers(0, classes, 2 * count)
    predicted = (labels[:count] + (generator.permutation(count) >= correct)) % classes
    nearest = np.stack([generator.permutation(count)[:neighbours] for _ in range(count)])
    return Images(images[:count], labels[:count]), predicted, Images(images[count:], labels[count:]), nearest


def queries_of(part, columns):
    """Numbers of the test images in a part of the page, one a row."""
    return [int(axes.images[0].get_array()[0, 0, 0]) for axes in part.axes[:: columns + 1]]


# By hand: test images, how many of them are predicted correctly, neighbours, rows; then the correct and wrong
# predictions in the random sample, and the wrong predictions in the second part.
PAGES = [
    (40, 20, 1, 4, 2, 2, 4),  # half are wrong
    (40, 38, 1, 6, 6, 0, 2),  # 6 * 2/40 = 0.3
    (40, 1, 1, 3, 1, 2, 3),  # 3 * 39/40 = 2.925
    (12, 8, 2, 3, 2, 1, 3),  # 3 * 4/12 = 1
    (12, 9, 1, 3, 3, 0, 3),  # 3 * 3/12 = 0.75
    (12, 8, 10, 1, 1, 0, 1),
    (3, 3, 3, 6, 3, 0, 0),
    (3, 0, 1, 6, 0, 3, 3),
    (1, 0, 1, 6, 0, 1, 1),
]


@pytest.mark.parametrize(("count", "correct", "neighbours", "rows", "sample_correct", "sample_wrong", "wrong"), PAGES)
def test_the_page_shows_a_fair_sample_and_then_wrong_predictions(
    count, correct, neighbours, rows, sample_correct, sample_wrong, wrong, draw
):
    test, predicted, train, nearest = neighbour_data(count, correct, neighbours)
    names, columns = ["cat", "dog", "owl"], min(neighbours, 8)
    options = {} if rows == 6 else {"rows": rows}  # 6 is the default
    figure = draw(figures.neighbour_page, test, predicted, train, nearest, names, render=neighbours == 10, **options)
    parts, is_wrong = figure.subfigs, predicted != test.labels
    assert len(parts) == (2 if wrong else 1)
    assert is_wrong[queries_of(parts[0], columns)].sum() == sample_wrong
    assert len(queries_of(parts[0], columns)) == sample_correct + sample_wrong
    assert "andom" in parts[0].get_suptitle()
    if wrong:
        assert is_wrong[queries_of(parts[1], columns)].tolist() == [True] * wrong
        assert f" {count - correct} of {count} test images" in parts[1].get_suptitle()
    for part in parts:
        queries = queries_of(part, columns)
        assert len(set(queries)) == len(queries)
        for query, row in zip(queries, np.reshape(part.axes, (-1, columns + 1)), strict=True):
            np.testing.assert_array_equal(row[0].images[0].get_array(), test.images[query].transpose(1, 2, 0))
            assert row[0].get_title() == names[test.labels[query]]
            assert row[0].get_xlabel() == f"→ {names[predicted[query]]}"
            assert same_color(row[0].xaxis.label.get_color(), "tab:red" if is_wrong[query] else "tab:green")
            references = [int(axes.images[0].get_array()[0, 0, 0]) - count for axes in row[1:]]
            assert references == nearest[query, :columns].tolist()
            for reference, axes in zip(references, row[1:], strict=True):
                assert axes.get_title() == names[train.labels[reference]]
                frame = "tab:green" if train.labels[reference] == test.labels[query] else "tab:red"
                assert all(same_color(spine.get_edgecolor(), frame) for spine in axes.spines.values())


def texts_of_names(names, draw):
    """The texts of the three figures with class names: page, matrix and map."""
    labels = np.arange(len(names))
    images = Images(np.zeros((len(names), 3, 6, 5), "uint8"), labels)
    embeddings = np.random.default_rng(0).normal(size=(len(names), 4))
    page = draw(figures.neighbour_page, images, labels, images, labels[:, None], names, rows=len(names))
    matrix = draw(figures.confusion_matrix, labels, labels, names)
    return texts(page), texts(matrix), texts(draw(figures.embedding_map, embeddings, embeddings, labels, names))


@pytest.mark.filterwarnings("error")  # such as that of a missing glyph
def test_class_names_are_drawn_as_they_are_written(draw):
    names = ["$x^$", "_hidden", "a$b", "$5 or $6", r"a\$b", "crème brûlée", "گربه", r"$\frac$"]
    page, matrix, legend = texts_of_names(names, draw)
    assert [page.count(name) for name in names] == [2] * 8
    assert {f"→ {name}" for name in names} <= set(page)
    assert set(names) <= set(matrix)
    assert set(names) <= set(legend)


@pytest.mark.filterwarnings("error")
def test_class_names_that_cannot_be_drawn_as_they_are_written_stay_distinct(draw, monkeypatch):
    """Where the only font is DejaVu Sans, which lacks Japanese, wide letters and the emoji of a farmer."""
    only = [font for font in font_manager.fontManager.ttflist if font.name == "DejaVu Sans"]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", only)
    class_labels._fonts.cache_clear()
    names = [
        "ネコ",
        "犬",
        "👩\u200d🌾",
        "گربه\u200cها",
        "e\u0301te\u0301",
        "été",
        "ＡＢ",
        "long " * 10 + "a",
        "long " * 10 + "b",
    ]
    drawn = ["#0", "#1", "#2", "گربهها", "été #4", "été #5", "AB"]
    drawn += [f"{'long ' * 5}long… #{number}" for number in (7, 8)]
    page, matrix, legend = texts_of_names(names, draw)
    class_labels._fonts.cache_clear()
    assert [page.count(name) for name in drawn] == [2] * 9
    assert {f"→ {name}" for name in drawn} <= set(page)
    assert set(drawn) <= set(matrix)
    assert [name for name in legend if name in drawn] == drawn


def test_long_names_on_the_page_do_not_overlap(draw):
    names = ["cat", "a name of thirty characters ok", "another name of some characters, and more"]
    labels = np.arange(3)
    images = Images(np.zeros((3, 3, 6, 5), "uint8"), labels)
    page = draw(figures.neighbour_page, images, labels, images, labels[:, None], names)
    for axes in page.axes:
        for text in (axes.title, axes.xaxis.label):
            extent = text.get_window_extent()
            assert extent.width < 1.5 * 120 and extent.x0 >= 0  # columns are 1.5 inches wide, of 120 dots
        assert axes.get_title() != "cat" or axes.title.get_fontsize() == 8


def test_page_and_map_are_reproducible_from_the_seed(draw):
    test, predicted, train, nearest = neighbour_data(9, 4, 1)
    names, embeddings = ["a", "b", "c"], np.random.default_rng(0).normal(size=(9, 3))

    def drawn(seed):
        page = draw(figures.neighbour_page, test, predicted, train, nearest, names, seed=seed, rows=2, render=False)
        points_of = draw(figures.embedding_map, embeddings, embeddings, test.labels, names, seed=seed, render=False)
        return [queries_of(part, 1) for part in page.subfigs], [points(axes)[0].tolist() for axes in points_of.axes]

    first, again, other = (drawn(seed) for seed in (3, 3, 4))
    assert first == again
    assert first[0] != other[0]
    assert first[1] != other[1]
