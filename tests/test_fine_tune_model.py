"""The network: preprocessing, what trains, which weights fit, and that a saved model needs nothing of this project."""

import os
import re

import keras
import numpy as np
import pytest
from processes import run_python

from fine_tune_model import data_generator, fine_tuned_models, portable_model, triplet_model
from pipeline.errors import InputError
from pipeline.settings.backbones import BACKBONES

IMAGENET_MEANS = np.array([103.939, 116.779, 123.68], "float32")  # of blue, green and red


def random_images(count, size=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, size, size)).astype("uint8")


def embed(model, images):
    return keras.ops.convert_to_numpy(model(images))


def backbone_of(model):
    return next(layer for layer in model.layers if isinstance(layer, keras.Model))


def small_model(**settings):
    """A model from random weights, of SmallConvNet at 16 pixels where the test does not need another network."""
    defaults = {
        "input_shape": (3, 16, 16),
        "image_size": 16,
        "backbone": "SmallConvNet",
        "weights": "none",
        "frozen_layers": 0,
        "embedding_size": 8,
    }
    return fine_tuned_models(**{**defaults, **settings})


def expected_embeddings(model, features):
    """The embedding head with its initial batch normalisation statistics, computed with NumPy."""
    kernel, bias = model.get_layer("embedding").get_weights()
    embeddings = features / np.sqrt(1 + 1e-3) @ kernel + bias
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def small():
    keras.utils.set_random_seed(0)
    return small_model()


@pytest.fixture(scope="module")
def resnet():
    keras.utils.set_random_seed(0)
    return small_model(backbone="ResNet50", input_shape=(3, 32, 32), image_size=32, frozen_layers=15)


@pytest.fixture(scope="module")
def misfits(small):
    """Models whose weights do not fit `small`."""
    return {
        "of another backbone": small_model(backbone="MobileNet", image_size=32),
        "of another embedding size": small_model(embedding_size=9),
        "cut off": small,
    }


@pytest.mark.parametrize(("backbone", "size"), [("SmallConvNet", 8), ("VGG16", 32), ("InceptionV3", 75)])
def test_raw_images_become_unit_vectors(backbone, size):
    embeddings = embed(small_model(backbone=backbone, image_size=size, embedding_size=16), random_images(3))
    assert embeddings.shape == (3, 16)
    assert embeddings.dtype == "float32"
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)
    assert np.abs(embeddings[0] - embeddings[1]).max() > 1e-4


def test_small_conv_net_has_the_depth_and_the_smallest_size_of_its_table_entry():
    layers, smallest = BACKBONES["SmallConvNet"]
    backbone = backbone_of(small_model(image_size=smallest, frozen_layers=layers))
    assert len(backbone.layers) == layers == 18
    assert backbone.input_shape == (None, 3, 8, 8)  # channels first
    assert backbone.output_shape == (None, 128, 2, 2)


def test_calling_a_model_with_random_weights_changes_nothing(small):
    """A layer that behaves as in training would make all batch normalisations do the same."""
    before = small.get_weights()
    images = random_images(3)
    first, second = embed(small, images), embed(small, images)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(small.predict(images, verbose=0), first, atol=1e-5)
    for now, then in zip(small.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_batch_normalisations_that_train_follow_their_batches_within_dozens_of_steps(small):
    """Keras' own momentum, 0.99, would take hundreds."""
    norms = [
        layer
        for layer in [*backbone_of(small).layers, *small.layers]
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    assert len(norms) == 6
    assert all(layer.trainable and layer.momentum == 0.9 for layer in norms)


def test_the_first_15_layers_of_resnet50_are_frozen_and_no_others(resnet):
    backbone = backbone_of(resnet)
    assert backbone.output_shape[1] == 2048  # channels first
    assert [layer.trainable for layer in backbone.layers] == [False] * 15 + [True] * 160


def test_frozen_layers_do_not_change_in_training_and_the_others_do():
    model = small_model(frozen_layers=8)  # two of the five pairs of convolution and batch normalisation
    layers = [layer for layer in backbone_of(model).layers if layer.weights]
    before = [layer.get_weights() for layer in layers]
    model.compile("adam", "mse", run_eagerly=True)  # faster than compiling for one step
    model.train_on_batch(random_images(8), np.ones((8, 8), "float32"))
    for number, (layer, old) in enumerate(zip(layers, before, strict=True)):
        changed = [bool((now != then).any()) for now, then in zip(layer.get_weights(), old, strict=True)]
        assert changed == [number >= 4] * len(old), layer.name


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        ("ResNet50", [30, 20, 10] - IMAGENET_MEANS),  # blue, green, red
        ("VGG16", [30, 20, 10] - IMAGENET_MEANS),
        ("InceptionV3", np.array([10, 20, 30]) / 127.5 - 1),
        ("SmallConvNet", np.array([10, 20, 30]) / 127.5 - 1),
    ],
)
def test_each_backbone_has_its_own_preprocessing(backbone, expected):
    images = np.tile(np.array([10, 20, 30], "uint8")[:, None, None], (1, 1, 8, 8))
    batch, _ = next(data_generator(images, np.zeros(1), 1, 8, backbone=backbone))
    assert batch.shape == (1, 3, 8, 8)
    np.testing.assert_allclose(batch[0].reshape(3, -1).T, np.tile(expected, (8 * 8, 1)), rtol=1e-5)


def test_the_preprocessing_of_small_conv_net_maps_bytes_to_minus_1_to_1():
    images = np.tile(np.arange(256, dtype="uint8").reshape(1, 1, 16, 16), (1, 3, 1, 1))
    batch, _ = next(data_generator(images, np.zeros(1), 1, 16, backbone="SmallConvNet"))
    np.testing.assert_allclose(batch.reshape(3, 256), np.tile(np.linspace(-1, 1, 256), (3, 1)), atol=1e-6)


def test_images_are_scaled_up_between_pixel_centres():
    """Twice the size: new pixels lie a quarter and three quarters between old ones, and the border repeats."""
    image = np.zeros((1, 3, 16, 16), "uint8")
    image[:, :, :, 8:] = 100
    batch, _ = next(data_generator(image, np.zeros(1), 1, 32, backbone="SmallConvNet"))
    row = (batch[0, 0, 5] + 1) * 127.5
    np.testing.assert_allclose(row[:18], [0] * 15 + [25, 75, 100], atol=1e-3)


@pytest.mark.parametrize(("height", "width"), [(10, 7), (32, 32), (64, 32)])
def test_padding_centres_images_on_black(height, width):
    image = np.full((1, 3, height, width), 255, "uint8")
    batch, _ = next(data_generator(image, np.zeros(1), 1, 32, fit="pad", backbone="SmallConvNet"))
    pixels = np.rint((batch[0, 0] + 1) * 127.5)
    tall, wide = (height, width) if height <= 32 else (32, 16)  # only images that are too large are shrunk
    expected = np.zeros((32, 32))
    top, left = (32 - tall) // 2, (32 - wide) // 2
    expected[top : top + tall, left : left + wide] = 255
    np.testing.assert_array_equal(pixels, expected)


def test_the_generator_preprocesses_as_the_model_does():
    """From 20 pixels, so that both resize."""
    images = random_images(5, 20)
    model = small_model(input_shape=(3, 20, 20))
    batch, labels = next(data_generator(images, np.arange(5), 5, 16, backbone="SmallConvNet"))
    features = keras.ops.convert_to_numpy(backbone_of(model)(batch)).mean(axis=(2, 3))
    np.testing.assert_allclose(embed(model, images)[labels], expected_embeddings(model, features), atol=1e-5)


def test_the_generator_yields_every_image_once_an_epoch_in_a_new_order():
    images = np.arange(7, dtype="uint8")[:, None, None, None] * np.ones((1, 3, 4, 4), "uint8")
    generator = data_generator(images, np.arange(7), 3, 4, backbone="SmallConvNet")
    epochs = []
    for _ in range(3):
        batches = [next(generator) for _ in range(3)]
        assert [len(labels) for _, labels in batches] == [3, 3, 1]
        for batch, labels in batches:
            np.testing.assert_allclose((batch[:, 0, 0, 0] + 1) * 127.5, labels, atol=1e-4)
        epochs.append(np.concatenate([labels for _, labels in batches]).tolist())
        assert sorted(epochs[-1]) == list(range(7))
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_generator_refuses_images_without_labels():
    for images, labels in ((random_images(0), []), (random_images(3), [0, 1])):
        with pytest.raises(ValueError, match="one label for each"):
            next(data_generator(images, np.array(labels), 2))


@pytest.mark.parametrize(
    ("backbone", "preprocess"),
    [
        ("ResNet50", lambda images: images[:, ::-1] - IMAGENET_MEANS[:, None, None]),
        ("SmallConvNet", lambda images: images / 127.5 - 1),
    ],
    ids=["ResNet50", "SmallConvNet"],
)
def test_weights_of_a_channels_last_network_give_the_same_embeddings(backbone, preprocess, tmp_path):
    """Keras' ImageNet weights are of channels-last networks."""
    keras.config.set_image_data_format("channels_last")
    try:
        last = backbone_of(small_model(backbone=backbone, input_shape=(3, 32, 32), image_size=32))
    finally:
        keras.config.set_image_data_format("channels_first")
    last.save_weights(tmp_path / "last.weights.h5")
    path = str(tmp_path / "last.weights.h5")
    model = small_model(backbone=backbone, input_shape=(3, 32, 32), image_size=32, weights=path)
    images = random_images(4, 32)
    preprocessed = preprocess(images.astype("float32")).transpose(0, 2, 3, 1)
    features = keras.ops.convert_to_numpy(last(preprocessed, training=False)).mean(axis=(1, 2))
    np.testing.assert_allclose(embed(model, images), expected_embeddings(model, features), atol=1e-5)
    norms = [layer for layer in backbone_of(model).layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert norms and not any(layer.trainable for layer in norms)  # pre-trained statistics are kept


@pytest.mark.parametrize("name", ["best.weights.h5", "embedding_model.keras"])
def test_weights_of_an_earlier_run_give_its_embeddings(small, name, tmp_path):
    (small.save_weights if "weights" in name else small.save)(tmp_path / name)
    images = random_images(3)
    loaded, fresh = (embed(small_model(weights=weights), images) for weights in (str(tmp_path / name), "none"))
    np.testing.assert_allclose(loaded, embed(small, images), atol=1e-6)
    assert np.abs(fresh - loaded).max() > 1e-2


def test_weights_of_a_run_from_imagenet_weights_fit_an_efficientnet(tmp_path, monkeypatch):
    """Keras builds it with one more layer for "imagenet", which has no weights that could be missing in the file."""
    layers, smallest = BACKBONES["EfficientNetB0"]
    assert len(backbone_of(small_model(backbone="EfficientNetB0", image_size=smallest)).layers) == layers
    efficientnet = "keras.src.applications.efficientnet"
    blocks = keras.src.applications.efficientnet.DEFAULT_BLOCKS_ARGS
    monkeypatch.setattr(f"{efficientnet}.DEFAULT_BLOCKS_ARGS", blocks[:1])  # one of seven, for speed
    path = tmp_path / "notop.weights.h5"
    keras.applications.EfficientNetB0(include_top=False, weights=None, input_shape=(3, 32, 32)).save_weights(path)
    monkeypatch.setattr(f"{efficientnet}.file_utils.get_file", lambda *names, **settings: str(path))
    first = small_model(backbone="EfficientNetB0", image_size=32, weights="imagenet")
    first.save(tmp_path / "run.keras")
    second = small_model(backbone="EfficientNetB0", image_size=32, weights=str(tmp_path / "run.keras"))
    images = random_images(3)
    np.testing.assert_allclose(embed(second, images), embed(first, images), atol=1e-6)
    assert len(backbone_of(second).layers) == len(backbone_of(first).layers)


@pytest.mark.parametrize("name", ["other.weights.h5", "other.h5", "other.keras"])
@pytest.mark.parametrize(
    "kind", ["of another backbone", "of another embedding size", "cut off", "no weights at all", "empty"]
)
def test_a_weights_file_that_does_not_fit_is_refused_by_name(misfits, kind, name, tmp_path):
    path = tmp_path / name
    if kind == "no weights at all":
        path.write_text("not HDF5")
    elif kind == "empty":
        path.touch()
    else:
        model = misfits[kind]
        (model.save_weights if "weights" in name else model.save)(path)
        if kind == "cut off":
            path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(InputError, match=rf"`WEIGHTS` must be .*Received: '.*{re.escape(name)}'"):
        small_model(weights=str(path))


def test_a_numpy_file_is_refused_as_weights(tmp_path):
    np.savez(tmp_path / "arrays.npz", kernel=np.zeros(3))
    (tmp_path / "empty.npz").touch()
    for name in ("arrays.npz", "empty.npz"):
        with pytest.raises(InputError, match=rf"`WEIGHTS` must be .*Received: '.*{name}'"):
            small_model(weights=str(tmp_path / name))


def test_weights_that_are_not_finite_are_refused(tmp_path):
    model = small_model()
    model.set_weights([np.full_like(each, np.nan) for each in model.get_weights()])
    model.save(tmp_path / "diverged.keras")
    with pytest.raises(InputError, match="`WEIGHTS` must be a file of finite weights"):
        small_model(weights=str(tmp_path / "diverged.keras"))


def test_a_weights_file_runs_no_code(tmp_path):
    """A `.keras` file may hold a function, which Keras would run if it built the model."""
    ran = str(tmp_path / "ran")
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Lambda(lambda x: (open(ran, "w"), x)[1]), keras.layers.Dense(1)]
    )
    path = tmp_path / "odd.keras"
    model.save(path)
    os.unlink(ran)
    with pytest.raises(InputError, match="`WEIGHTS` must be"):
        small_model(weights=str(path))
    with pytest.raises(ValueError, match=r"[Ll]ambda"):
        keras.saving.load_model(path)
    assert not os.path.exists(ran)
    keras.saving.load_model(path, safe_mode=False)
    assert os.path.exists(ran)  # so the function does leave a trace when it runs


def test_a_backbone_that_is_mostly_frozen_raises_a_warning(capsys):
    small_model(frozen_layers=9)
    assert capsys.readouterr().out == ""
    small_model(frozen_layers=15)
    assert (
        "Warning: with FROZEN_LAYERS = 15, only 3 layers of SmallConvNet and the embedding head train"
        in capsys.readouterr().out
    )


def test_a_network_that_cannot_be_built_is_refused_in_one_sentence():
    with pytest.raises(
        InputError, match=r"`BACKBONE` must be one of .*GoogLeNet.*ResNet50.*SmallConvNet.*Received: 'ResNet51'"
    ):
        small_model(backbone="ResNet51")
    with pytest.raises(InputError, match=r"`FROZEN_LAYERS` must be between 0 and 18 for SmallConvNet. Received: 19"):
        small_model(frozen_layers=19)
    with pytest.raises(InputError, match=r"`BACKBONE` MobileNet cannot be built for `IMAGE_SIZE` 31"):
        small_model(backbone="MobileNet", image_size=31)


@pytest.mark.parametrize(
    ("reason", "address", "name"),
    [
        (
            "URL fetch failure on https://storage.example/mobilenet_no_top.h5: None -- Name or service not known",
            "https://storage.example/mobilenet_no_top.h5",
            "mobilenet_no_top.h5",
        ),
        ("no connection", "their file", ""),
    ],
)
def test_a_failed_download_of_weights_is_reported_with_the_way_out(reason, address, name, tmp_path, monkeypatch):
    real = keras.applications.MobileNet

    def offline(weights, **settings):
        if weights == "imagenet":
            raise Exception(reason)
        return real(weights=weights, **settings)

    offline.__module__ = real.__module__
    monkeypatch.setattr(keras.applications, "MobileNet", offline)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    with pytest.raises(InputError) as caught:
        small_model(backbone="MobileNet", image_size=32, weights="imagenet")
    message = str(caught.value)
    assert message.startswith(f"The ImageNet weights of MobileNet could not be downloaded ({reason}).")
    assert f"Download {address} by hand and save it as {tmp_path / 'models' / name}." in message
    assert "python init.py --constants examples/digits.json" in message


@pytest.mark.parametrize(("policy", "dtype"), [("mixed_float16", "float16"), ("mixed_bfloat16", "bfloat16")])
def test_in_mixed_precision_only_the_backbone_computes_in_16_bits(policy, dtype):
    """Not run here: TensorFlow has no channels-first convolution in float16 on the CPU."""
    keras.config.set_dtype_policy(policy)
    try:
        model = small_model()
    finally:
        keras.config.set_dtype_policy("float32")
    assert {layer.compute_dtype for layer in backbone_of(model).layers} == {dtype}
    for name in ("pooling", "pooled_batch_norm", "embedding", "unit_norm"):
        layer = model.get_layer(name)
        assert layer.compute_dtype == "float32"
        assert layer.output.dtype == "float32"


def test_the_merge_model_embeds_each_branch_as_the_network_does(small):
    merged = embed(triplet_model(small), random_images(12).reshape(4, 3, 3, 16, 16))
    assert merged.shape == (4, 3, 8)
    np.testing.assert_allclose(merged.reshape(12, 8), embed(small, random_images(12)), atol=1e-5)


@pytest.mark.parametrize(
    ("backbone", "height", "width", "image_size", "fit"),
    [
        ("SmallConvNet", 16, 12, 8, "scale"),
        ("SmallConvNet", 6, 5, 16, "pad"),
        ("SmallConvNet", 20, 9, 16, "pad"),
        ("EfficientNetB0", 32, 32, 32, "scale"),
        ("MobileNetV2", 40, 32, 32, "scale"),
    ],
)
def test_the_portable_network_is_channels_last_inside_and_has_the_same_embeddings(
    backbone, height, width, image_size, fit
):
    settings = {"image_size": image_size, "fit": fit, "backbone": backbone}
    model = small_model(input_shape=(3, height, width), **settings)
    images = np.random.default_rng(0).integers(0, 256, (8, 3, height, width), "uint8")
    for layer in [*backbone_of(model).layers, model.get_layer("pooled_batch_norm")]:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0  # so that one pass gives it statistics of its own
    model(images, training=True)
    portable = portable_model(model, **settings)
    formats = {layer.data_format for layer in backbone_of(portable).layers if isinstance(layer, keras.layers.Conv2D)}
    assert formats == {"channels_last"} and portable.input_shape == model.input_shape
    assert keras.config.image_data_format() == "channels_first"
    expected = embed(model, images)
    assert np.abs(expected - expected[0]).max() > 1e-3
    np.testing.assert_allclose(embed(portable, images), expected, atol=1e-3)


def test_the_portable_network_of_one_that_trains_in_16_bits_computes_in_32():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        portable = portable_model(small_model(), image_size=16, backbone="SmallConvNet")
        assert keras.config.dtype_policy().name == "mixed_float16"
    finally:
        keras.config.set_dtype_policy("float32")
    assert {layer.compute_dtype for layer in backbone_of(portable).layers} == {"float32"}
    assert embed(portable, random_images(3)).shape == (3, 8)


def test_saved_models_load_in_a_fresh_process_without_this_project(resnet, small, tmp_path):
    """And with Keras' own setting, channels_last, and without the variable that TensorFlow needs for channels_first."""
    images = {"resnet": random_images(3, 32), "small": random_images(3, 16)}
    np.savez(tmp_path / "images.npz", **images)
    for name, model, backbone in (("resnet", resnet, "ResNet50"), ("small", small, "SmallConvNet")):
        size = images[name].shape[2]
        portable_model(model, image_size=size, backbone=backbone).save(tmp_path / f"{name}.keras")
    code = (
        "import importlib.util, keras, numpy as np\n"
        "print(keras.config.image_data_format(), importlib.util.find_spec('pipeline'))\n"
        "for name, images in np.load('images.npz').items():\n"
        "    embeddings = keras.saving.load_model(f'{name}.keras')(images)\n"
        "    np.save(f'{name}.npy', keras.ops.convert_to_numpy(embeddings))\n"
    )
    variables = {"PYTHONPATH": None, "KERAS_HOME": str(tmp_path), "TF_ENABLE_ONEDNN_OPTS": None}
    done = run_python("-c", code, cwd=tmp_path, **variables)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["channels_last", "None"]
    for name, model in (("resnet", resnet), ("small", small)):
        np.testing.assert_allclose(np.load(tmp_path / f"{name}.npy"), embed(model, images[name]), atol=1e-5)
