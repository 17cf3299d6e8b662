"""What is drawn, read back from the figures and from the images that they are written to."""

from functools import partial

import numpy as np
import pytest
from matplotlib.cbook import is_math_text
from matplotlib.colors import same_color
from matplotlib.text import Text
from PIL import Image
from threadpoolctl import threadpool_limits

import figures
from image_data import Images

CURVES = ("loss", "active_triplets", "positive_distance", "negative_distance", "val_accuracy")


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Function that has a figure drawn, looks at the image file, and returns the figure."""
    kept = []

    class Kept(figures.Figure):
        def savefig(self, *arguments, **options):
            super().savefig(*arguments, **options)
            kept.append(self)

    def draw(function, *arguments):
        path = tmp_path / f"{len(kept)}.png"
        function(*arguments, path)
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert min(image.size) > 100
            assert (np.asarray(image.convert("L")) < 128).mean() > 0.001  # ink
        return kept[-1]

    monkeypatch.setattr(figures, "Figure", Kept)
    monkeypatch.setattr(figures, "TSNE", partial(figures.TSNE, max_iter=300))
    with threadpool_limits(1):  # on a busy machine, t-SNE's threads wait for each other
        yield draw


def texts(figure):
    """The texts of a figure as Matplotlib shows them: none is a formula, and `$` is written with a backslash."""
    shown = [text.get_text() for text in figure.findobj(Text)]
    assert not any(is_math_text(text) for text in shown)
    return [text.replace(r"\$", "$").strip() for text in shown]


@pytest.mark.parametrize("epochs", [1, 2, 30])
def test_the_curves_are_those_of_the_history_over_whole_epochs_from_1(epochs, drawn):
    history = {name: np.random.default_rng(len(name)).random(epochs).tolist() for name in (*CURVES, "other")}
    figure = drawn(figures.training_curves, history)
    lines = [line for axes in figure.axes for line in axes.get_lines()]
    assert [line.get_ydata().tolist() for line in lines] == [history[name] for name in CURVES]
    assert all(line.get_xdata().tolist() == list(range(1, epochs + 1)) for line in lines)
    ticks = np.concatenate([axes.get_xticks() for axes in figure.axes])
    assert (ticks == ticks.round()).all()


@pytest.mark.parametrize(("classes", "count", "right"), [(2, 3, 1), (2, 3, 0), (30, 400, 0.6), (150, 400, 0.6)])
def test_the_confusion_matrix_is_that_of_a_plain_loop(classes, count, right, drawn):
    generator = np.random.default_rng(classes)
    labels = generator.integers(0, classes - 1, count)  # none of the last class
    wrong = (labels + generator.integers(1, classes, count)) % classes
    predicted = np.where(generator.random(count) < right, labels, wrong)
    expected = np.zeros((classes, classes))
    for label, prediction in zip(labels, predicted, strict=True):
        expected[label, prediction] += 1 / (labels == label).sum()
    names = [f"class {number}" for number in range(classes)]
    axes = drawn(figures.confusion_matrix, labels, predicted, names).axes[0]
    np.testing.assert_allclose(axes.images[0].get_array(), expected, atol=1e-9)
    assert axes.get_title() == f"Test images: {sum(labels == predicted) / count:.1%} right"
    if classes <= 30:
        percentages = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in axes.texts}
        assert percentages == {place: f"{value:.0%}" for place, value in np.ndenumerate(expected)}
        assert [label.get_text() for label in axes.get_yticklabels()] == names
        assert [label.get_text() for label in axes.get_xticklabels()] == names
    else:
        assert len(axes.texts) == len(axes.get_xticks()) == len(axes.get_yticks()) == 0


@pytest.mark.parametrize("classes", [2, 30, 150])
def test_the_map_keeps_clusters_apart_and_colours_them_as_the_legend_says(classes, drawn):
    labels = np.random.default_rng(0).permutation(np.resize(np.arange(classes), max(classes, 41)))
    embeddings = np.eye(classes)[labels] + 0.001 * np.random.default_rng(1).normal(size=(len(labels), classes))
    names = [f"class {number}" for number in range(classes)]
    axes = drawn(figures.embedding_map, embeddings, labels, names).axes[0]
    places, colours = axes.collections[0].get_offsets().data, axes.collections[0].get_facecolors()
    points = [tuple(colour) for colour in colours]
    assert len(set(points)) == classes
    if classes == 2:
        distances = ((places[:, None] - places) ** 2).sum(axis=2) + np.diag([np.inf] * len(labels))
        assert (colours[distances.argmin(axis=1)] == colours).all()
    if classes <= 30:
        legend = axes.get_legend()
        assert [text.get_text().strip() for text in legend.get_texts()] == names
        counts = [points.count(tuple(handle.get_facecolor()[0])) for handle in legend.legend_handles]
        assert counts == np.bincount(labels).tolist()
    else:
        assert axes.get_legend() is None


@pytest.mark.parametrize("embeddings", [np.ones((1, 8)), np.eye(3), np.eye(4), np.ones((5, 8))])
def test_a_map_of_few_images_or_equal_embeddings_is_drawn(embeddings, drawn):
    figure = drawn(figures.embedding_map, embeddings, np.arange(len(embeddings)) % 2, ["a", "b"])
    assert f"t-SNE of the embeddings of {len(embeddings)} test images" in texts(figure)


def neighbour_data(count, right, neighbours, classes=3):
    """Random images whose first pixel is their number, and what was predicted for the first half of them."""
    generator = np.random.default_rng(count + right)
    images = generator.integers(0, 256, (2 * count, 3, 6, 5), "uint8")
    images[:, 0, 0, 0] = np.arange(2 * count)
    labels = generator.integers(0, classes, 2 * count)
    predicted = (labels[:count] + (np.arange(count) >= right)) % classes
    nearest = np.stack([generator.permutation(count)[:neighbours] for _ in range(count)])
    return Images(images[:count], labels[:count]), predicted, Images(images[count:], labels[count:]), nearest


# Of each case: test images, how many of them predicted rightly, neighbours; how many right and wrong ones are drawn.
PAGES = [(40, 20, 10, 5, 5), (40, 38, 2, 8, 2), (40, 1, 2, 1, 9), (3, 3, 3, 3, 0), (3, 0, 1, 0, 3), (1, 0, 1, 0, 1)]


@pytest.mark.parametrize(("count", "right", "neighbours", "drawn_right", "drawn_wrong"), PAGES)
def test_the_page_frames_and_names_images_by_their_class(count, right, neighbours, drawn_right, drawn_wrong, drawn):
    test, predicted, train, nearest = neighbour_data(count, right, neighbours)
    names, columns = ["cat", "dog", "owl"], min(neighbours, 8)
    figure = drawn(figures.neighbour_page, test, predicted, train, nearest, names)
    grid = np.array(figure.axes).reshape(-1, columns + 1)
    shown = [[axes.images[0].get_array() for axes in row] for row in grid]
    queries = [int(row[0][0, 0, 0]) for row in shown]
    verdicts = ["tab:green" if predicted[query] == test.labels[query] else "tab:red" for query in queries]
    assert len(set(queries)) == len(queries)
    assert (verdicts.count("tab:green"), verdicts.count("tab:red")) == (drawn_right, drawn_wrong)
    for query, verdict, images, row in zip(queries, verdicts, shown, grid, strict=True):
        for channel in range(3):
            assert (images[0][:, :, channel] == test.images[query, channel]).all()
        assert (row[0].get_title(), row[0].get_xlabel()) == (names[test.labels[query]], f"→ {names[predicted[query]]}")
        assert same_color(row[0].xaxis.label.get_color(), verdict)
        references = [int(image[0, 0, 0]) - count for image in images[1:]]
        assert references == nearest[query, :columns].tolist()
        for reference, axes in zip(references, row[1:], strict=True):
            assert axes.get_title() == names[train.labels[reference]]
            frame = "tab:green" if train.labels[reference] == test.labels[query] else "tab:red"
            assert all(same_color(spine.get_edgecolor(), frame) for spine in axes.spines.values())


@pytest.mark.filterwarnings("ignore:Glyph")  # Matplotlib's own font has no Chinese, and draws a box
def test_class_names_are_drawn_as_they_are_written(drawn):
    names = ["$x^$", "_hidden", "a$b", "$5 or $6", r"a\$b", "crème brûlée", "猫", r"$\frac$"]
    labels = np.arange(8)
    images = Images(np.zeros((8, 3, 6, 5), "uint8"), labels)
    page = texts(drawn(figures.neighbour_page, images, labels, images, labels[:, None], names))
    assert [page.count(name) for name in names] == [2] * 8
    assert {f"→ {name}" for name in names} <= set(page)
    assert set(names) <= set(texts(drawn(figures.confusion_matrix, labels, labels, names)))
    assert set(names) <= set(texts(drawn(figures.embedding_map, np.eye(8), labels, names)))


def test_a_seed_draws_the_same_and_another_seed_another(drawn, tmp_path):
    test, predicted, train, nearest = neighbour_data(6, 3, 1)
    written = []
    for seed in (3, 3, 4):
        figures.neighbour_page(test, predicted, train, nearest, ["a", "b", "c"], tmp_path / "page.png", seed)
        figures.embedding_map(np.eye(6), test.labels, ["a", "b", "c"], tmp_path / "map.png", seed)
        written.append([(tmp_path / name).read_bytes() for name in ("page.png", "map.png")])
    first, again, other = written
    assert first == again
    assert first[0] != other[0]
    assert first[1] != other[1]
