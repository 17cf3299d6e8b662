"""Networks of users as backbones: which are taken, what they are given, and what a run with one leaves."""

import keras
import numpy as np
import pytest

from fine_tune_model import fine_tuned_models, portable_model
from pipeline.errors import InputError
from pipeline.networks.keras_file import has_preprocessing, load

LAYERS, LAST = keras.layers, "channels_last"


def images(count=3, size=12):
    return np.random.default_rng(0).integers(0, 256, (count, 3, size, size)).astype("uint8")


def convolutional(data_format="channels_last", size=12, norm=False):
    shape = (size, size, 3) if data_format == "channels_last" else (3, size, size)
    raw = keras.Input(shape)
    features = LAYERS.Conv2D(6, 3, data_format=data_format)(raw)
    if norm:
        features = LAYERS.BatchNormalization()(features)
    return keras.Model(raw, features)


def tokens():
    """The shapes of a vision transformer: patches as tokens of five numbers."""
    raw = keras.Input((12, 12, 3))
    return keras.Model(
        raw, LAYERS.Reshape((9, 5))(LAYERS.Conv2D(5, 4, 4, data_format=LAST)(LAYERS.Rescaling(1 / 255)(raw)))
    )


def vectors():
    raw = keras.Input((None, None, 3))
    return keras.Model(raw, LAYERS.GlobalMaxPooling2D(LAST)(LAYERS.Conv2D(7, 3, data_format=LAST)(raw)))


NETWORKS = {
    "maps, channels_last": convolutional,
    "maps, channels_first": lambda: convolutional("channels_first"),
    "tokens": tokens,
    "vectors": vectors,
    "sequential": lambda: keras.Sequential([keras.Input((12, 12, 3)), LAYERS.Flatten(), LAYERS.Dense(4)]),
}


def saved(network, folder):
    network.save(folder / "own.keras")
    return str(folder / "own.keras")


def built(path, **settings):
    settings = {"image_size": 12, "backbone": path, "frozen_layers": 0, "embedding_size": 8, **settings}
    return fine_tuned_models((3, 12, 12), **settings)


def features_of(network, pixels):
    """By the network itself: the mean over all but the images and the channels."""
    is_first = network.input_shape[1] == 3
    outputs = np.asarray(network.predict(pixels if is_first else pixels.transpose(0, 2, 3, 1), verbose=0))
    if outputs.ndim == 4:
        return outputs.mean(axis=(2, 3) if is_first else (1, 2))
    return outputs.mean(axis=1) if outputs.ndim == 3 else outputs


@pytest.mark.parametrize("kind", NETWORKS)
def test_features_are_those_of_the_network_for_pixels_from_0_to_255(kind, tmp_path):
    network = NETWORKS[kind]()
    path = saved(network, tmp_path)
    model = built(path)
    expected = features_of(network, images().astype("float32"))
    for each in (model, portable_model(model, 12, "scale", path)):
        pooled = keras.Model(each.inputs, each.get_layer("pooling").output).predict(images(), verbose=0)
        np.testing.assert_allclose(pooled, expected, rtol=1e-4, atol=1e-3)
    model.save(tmp_path / "embedding_model.keras")
    again = keras.saving.load_model(tmp_path / "embedding_model.keras")
    np.testing.assert_allclose(again.predict(images(), verbose=0), model.predict(images(), verbose=0), atol=1e-5)


@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
@pytest.mark.parametrize(
    ("preprocessing", "expected"),
    [
        ("none", lambda pixels: pixels),
        ("tf", lambda pixels: pixels / 127.5 - 1),
        ("torch", lambda pixels: (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]),
        ("caffe", lambda pixels: pixels[..., ::-1] - [103.939, 116.779, 123.68]),
    ],
)
def test_a_named_preprocessing_comes_before_the_network(preprocessing, expected, data_format, tmp_path):
    network = convolutional(data_format)
    model = built(saved(network, tmp_path), preprocessing=preprocessing)
    pixels = expected(images().transpose(0, 2, 3, 1).astype("float64")).transpose(0, 3, 1, 2).astype("float32")
    pooled = keras.Model(model.inputs, model.get_layer("pooling").output).predict(images(), verbose=0)
    np.testing.assert_allclose(pooled, features_of(network, pixels), rtol=1e-4, atol=1e-3)


def test_the_weights_are_those_of_the_file_or_of_another_file(tmp_path):
    first, second = convolutional(), convolutional()
    path = saved(first, tmp_path)
    second.save_weights(tmp_path / "second.weights.h5")
    for weights, expected in {"imagenet": first, str(tmp_path / "second.weights.h5"): second}.items():
        network = next(layer for layer in built(path, weights=weights).layers if isinstance(layer, keras.Model))
        np.testing.assert_array_equal(network.get_weights()[0], expected.get_weights()[0])


def test_batch_normalisations_inside_a_network_or_a_layer_keep_their_statistics_too(tmp_path):
    raw = keras.Input((12, 12, 3))
    rows = LAYERS.TimeDistributed(LAYERS.BatchNormalization())(LAYERS.Rescaling(1 / 255)(raw))
    outer = keras.Model(raw, convolutional(norm=True)(rows))
    model = built(saved(outer, tmp_path))
    before = [np.asarray(each) for each in model.layers[-5].non_trainable_variables]
    model.compile("sgd", "mse")
    model.fit(images(), np.zeros((3, 8)), epochs=2, verbose=0)
    after = model.layers[-5].non_trainable_variables
    assert len(before) >= 4  # moving means and variances of both
    for each, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(each, other)
    assert has_preprocessing(outer) and not has_preprocessing(convolutional())


def test_first_layers_are_frozen_and_too_many_are_refused(tmp_path):
    path = saved(convolutional(norm=True), tmp_path)
    network = next(layer for layer in built(path, frozen_layers=2).layers if isinstance(layer, keras.Model))
    assert [layer.trainable for layer in network.layers] == [False, False, False]
    with pytest.raises(InputError, match="`FROZEN_LAYERS` must be between 0 and 3"):
        built(path, frozen_layers=4)


def two_inputs():
    one, two = keras.Input((12, 12, 3)), keras.Input((12, 12, 3))
    return keras.Model([one, two], LAYERS.Add()([one, two]))


def two_outputs():
    raw = keras.Input((12, 12, 3))
    return keras.Model(raw, [LAYERS.Flatten()(raw), raw])


def output_in_a_dict():
    raw = keras.Input((12, 12, 3))
    return keras.Model(raw, {"features": LAYERS.Flatten()(raw)})


def of_shape(shape, layer):
    raw = keras.Input(shape)
    return keras.Model(raw, layer(raw))


MISFITS = {
    "two inputs": (two_inputs, r"from \(any, 12, 12, 3\) and \(any, 12, 12, 3\) to"),
    "two outputs": (two_outputs, r"to \(any, 432\) and \(any, 12, 12, 3\)"),
    "output in a dict": (output_in_a_dict, r"to a dict of \(any, 432\)"),
    "grey images": (lambda: of_shape((12, 12, 1), LAYERS.Flatten()), r"from \(any, 12, 12, 1\) to \(any, 144\)"),
    "vectors as input": (lambda: of_shape((432,), LAYERS.Dense(4)), r"from \(any, 432\) to \(any, 4\)"),
    "five axes": (lambda: of_shape((12, 12, 3), LAYERS.Reshape((2, 6, 12, 3))), r"to \(any, 2, 6, 12, 3\)"),
    "another size": (lambda: convolutional(size=10), r"takes images of 10×10 pixels: `IMAGE_SIZE` must be 10"),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_a_network_of_another_kind_is_refused_with_its_shapes(kind, tmp_path):
    network, expected = MISFITS[kind]
    with pytest.raises(InputError, match=rf"^`BACKBONE` .*{expected}"):
        load(saved(network(), tmp_path), 12)


def test_probabilities_of_classes_as_features_are_warned_of(tmp_path, capsys):
    layers = [keras.Input((12, 12, 3)), LAYERS.Flatten(), LAYERS.Dense(4, "softmax")]
    load(saved(keras.Sequential(layers), tmp_path), 12)
    assert "Warning: BACKBONE" in (printed := capsys.readouterr().out) and "softmax" in printed


def test_code_in_a_file_does_not_run(tmp_path):
    network = of_shape((12, 12, 3), LAYERS.Lambda(lambda pixels: pixels * 2))
    with pytest.raises(InputError, match=r"^`BACKBONE` must be .* safe mode.*Received: .*Lambda"):
        load(saved(network, tmp_path), 12)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and more", None])
def test_a_file_that_is_none_or_cut_off_is_refused(content, tmp_path):
    path = saved(convolutional(), tmp_path)
    with open(path, "rb+") as file:
        if content is None:
            file.truncate(3000)
        else:
            file.truncate(0)
            file.write(content)
    with pytest.raises(InputError, match=r"^`BACKBONE` must be a file that Keras can load"):
        load(path, 12)
