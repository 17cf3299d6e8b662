"""The training curves, read back from Matplotlib's objects, and the places of images on the map."""

import numpy as np
import pytest
from PIL import Image
from threadpoolctl import threadpool_limits

from pipeline.report import figures

CURVES = ("loss", "active_triplets", "positive_distance", "negative_distance", "val_accuracy")


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn."""
    drawn = []

    class Recorded(figures.Figure):
        def savefig(self, path, **options):
            drawn.append(self)
            super().savefig(path, **options)

    monkeypatch.setattr(figures, "Figure", Recorded)
    return drawn


@pytest.mark.parametrize(("epochs", "best"), [(1, 1), (7, 5)])
def test_the_curves_show_the_history_over_the_epochs_from_1_and_the_best(epochs, best, drawn, tmp_path):
    history = {name: np.random.default_rng(len(name)).random(epochs).tolist() for name in (*CURVES, "other")}
    history["val_accuracy"] = [0.1, 0.9, 0.3, 0.2, 0.9, 0.1, 0.5][:epochs]
    figures.training_curves(history, tmp_path / "curves.png")
    (figure,) = drawn
    lines = [line for axes in figure.axes for line in axes.get_lines() if line.get_label() != "best epoch"]
    assert [list(line.get_ydata()) for line in lines] == [history[name] for name in CURVES]
    assert all(list(line.get_xdata()) == list(range(1, epochs + 1)) for line in lines)
    marks = [line.get_xdata() for axes in figure.axes for line in axes.get_lines() if line.get_label() == "best epoch"]
    assert len(marks) == 4 and np.all(np.array(marks) == best)
    ticks = np.concatenate([axes.get_xticks() for axes in figure.axes])
    assert (ticks == ticks.round()).all()
    with Image.open(tmp_path / "curves.png") as image:
        assert (np.asarray(image.convert("L")) < 128).mean() > 0.001  # ink


def test_the_best_epoch_is_the_latest_of_equal_ones():
    assert figures.best_epoch([]) is None
    assert figures.best_epoch([0.5, 0.7, 0.7, 0.6]) == 3


def test_clusters_stay_apart_on_the_map():
    generator = np.random.default_rng(0)
    labels = generator.permutation(np.resize([0, 1], 41))
    embeddings = np.eye(2)[labels] + 0.001 * generator.normal(size=(41, 2))
    with threadpool_limits(1):  # on a busy machine, t-SNE's threads wait for each other
        places = figures.map_places(embeddings, np.arange(41), 0)
        again = figures.map_places(embeddings, np.arange(41), 0)
        some = figures.map_places(embeddings, np.arange(9), 0)
    distances = ((places[:, None] - places) ** 2).sum(axis=2) + np.diag([np.inf] * 41)
    assert (labels[distances.argmin(axis=1)] == labels).all()
    np.testing.assert_array_equal(places, again)
    assert some.shape == (9, 2)


@pytest.mark.parametrize("embeddings", [np.ones((1, 8)), np.eye(3), np.eye(4), np.ones((5, 8))])
def test_few_images_and_equal_embeddings_are_no_errors(embeddings):
    count = len(embeddings)
    places = figures.map_places(embeddings, np.arange(count), 0)
    assert places.shape == (count if count > 3 else 0, 2) and np.isfinite(places).all()


def test_the_map_shows_random_images_without_repetition():
    first, other = (figures.some_images(50, seed, most=20) for seed in (0, 1))
    assert len(set(first)) == 20 and set(first) != set(other) and max(first) < 50
    assert sorted(figures.some_images(5, 0)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("classes", [1, 10, 11, 150])
def test_each_class_has_its_own_colour(classes):
    assert len(set(figures.class_colours(classes))) == classes
