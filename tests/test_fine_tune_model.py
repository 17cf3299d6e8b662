"""The network: what it is given, what trains, which weights it takes, and that it can be loaded again alone."""

import os
import re
import subprocess
import sys

import keras
import numpy as np
import pytest

from backbones import BACKBONES
from command_line import InputError
from fine_tune_model import data_generator, fine_tuned_models, triplet_model


def random_images(count, size=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, size, size)).astype("uint8")


def embed(model, images):
    return keras.ops.convert_to_numpy(model(images))


def backbone_of(model):
    return next(layer for layer in model.layers if isinstance(layer, keras.Model))


def small_model(**settings):
    return fine_tuned_models(**{"input_shape": (3, 32, 32), "image_size": 32, "backbone": "MobileNet", **settings})


@pytest.fixture(scope="module")
def resnet():
    keras.utils.set_random_seed(0)
    return fine_tuned_models((3, 32, 32), 32, weights="none", frozen_layers=15, embedding_size=16)


def test_raw_images_become_unit_vectors(resnet):
    embeddings = embed(resnet, random_images(3))
    assert embeddings.shape == (3, 16)
    assert embeddings.dtype == "float32"
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)
    assert np.abs(embeddings[0] - embeddings[1]).max() > 1e-4


def test_calling_a_model_with_random_weights_changes_nothing(resnet):
    """A layer that takes itself to be in training would have all batch normalisations follow it."""
    before = resnet.get_weights()
    first, second = embed(resnet, random_images(3)), embed(resnet, random_images(3))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(resnet.predict(random_images(3), verbose=0), first, atol=1e-5)
    for now, then in zip(resnet.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_the_first_15_layers_of_resnet50_are_frozen_and_no_others(resnet):
    backbone = backbone_of(resnet)
    assert backbone.output_shape[1] == 2048  # channels first
    assert [layer.trainable for layer in backbone.layers] == [False] * 15 + [True] * 160


def test_frozen_layers_do_not_move_in_training_and_the_others_do():
    model = small_model(weights="none", frozen_layers=15)
    convolutions = [layer for layer in backbone_of(model).layers if isinstance(layer, keras.layers.Conv2D)]
    before = [layer.get_weights()[0] for layer in convolutions]
    model.compile("adam", "mse", jit_compile=False)
    model.train_on_batch(random_images(8), np.ones((8, 128), "float32"))
    moved = [np.abs(layer.get_weights()[0] - old).max() > 0 for layer, old in zip(convolutions, before, strict=True)]
    frozen = sum(layer in backbone_of(model).layers[:15] for layer in convolutions)
    assert frozen > 1
    assert moved == [False] * frozen + [True] * (len(moved) - frozen)


@pytest.mark.parametrize(
    ("backbone", "size", "expected"),
    [
        ("ResNet50", 32, [30 - 103.939, 20 - 116.779, 10 - 123.68]),  # blue, green, red, less ImageNet's means
        ("VGG16", 32, [30 - 103.939, 20 - 116.779, 10 - 123.68]),
        ("InceptionV3", 75, [10 / 127.5 - 1, 20 / 127.5 - 1, 30 / 127.5 - 1]),
    ],
)
def test_each_backbone_gets_its_own_preprocessing(backbone, size, expected):
    images = np.tile(np.array([10, 20, 30], "uint8")[:, None, None], (1, 1, size, size))
    given, _ = next(data_generator(images, np.zeros(1), 1, size, backbone=backbone))
    assert given.shape == (1, 3, size, size)
    np.testing.assert_allclose(given[0].reshape(3, -1).T, np.tile(expected, (size * size, 1)), rtol=1e-5)


@pytest.mark.parametrize(("backbone", "size"), [("VGG16", 32), ("InceptionV3", 75)])
def test_other_backbones_embed_too(backbone, size):
    embeddings = embed(fine_tuned_models((3, 32, 32), size, "scale", backbone, "none", 15, 8), random_images(2))
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)


def test_images_are_scaled_up_between_pixel_centres():
    """Twice the size: new pixels lie a quarter and three quarters between old ones, and the border repeats."""
    image = np.zeros((1, 3, 16, 16), "uint8")
    image[:, :, :, 8:] = 100
    (given, _) = next(data_generator(image, np.zeros(1), 1, 32, backbone="InceptionV3"))
    row = (given[0, 0, 5] + 1) * 127.5
    np.testing.assert_allclose(row[:18], [0] * 15 + [25, 75, 100], atol=1e-3)


@pytest.mark.parametrize(("height", "width"), [(10, 7), (32, 32), (64, 32)])
def test_padding_centres_images_on_black(height, width):
    image = np.full((1, 3, height, width), 255, "uint8")
    (given, _) = next(data_generator(image, np.zeros(1), 1, 32, fit="pad", backbone="InceptionV3"))
    pixels = np.rint((given[0, 0] + 1) * 127.5)
    tall, wide = (height, width) if height <= 32 else (32, 16)  # made smaller only where too large
    expected = np.zeros((32, 32))
    top, left = (32 - tall) // 2, (32 - wide) // 2
    expected[top : top + tall, left : left + wide] = 255
    np.testing.assert_array_equal(pixels, expected)


def test_the_generator_gives_the_backbone_what_the_model_gives_it():
    images = random_images(5, 20)
    model = fine_tuned_models((3, 20, 20), 32, "scale", "VGG16", "none", 0)
    backbone = backbone_of(model)
    given, labels = next(data_generator(images, np.arange(5), 5, 32, backbone="VGG16"))
    features = keras.ops.convert_to_numpy(backbone(given)).mean(axis=(2, 3))
    kernel, bias = model.get_layer("embedding").get_weights()
    expected = features @ kernel + bias
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(embed(model, images)[labels], expected, atol=1e-5)


def test_the_generator_yields_every_image_once_a_pass_in_a_new_order():
    images = np.arange(7, dtype="uint8")[:, None, None, None] * np.ones((1, 3, 4, 4), "uint8")
    generator = data_generator(images, np.arange(7), 3, 4, backbone="InceptionV3")
    passes = []
    for _ in range(3):
        batches = [next(generator) for _ in range(3)]
        assert [len(labels) for _, labels in batches] == [3, 3, 1]
        for given, labels in batches:
            np.testing.assert_allclose((given[:, 0, 0, 0] + 1) * 127.5, labels, atol=1e-4)
        passes.append(np.concatenate([labels for _, labels in batches]).tolist())
        assert sorted(passes[-1]) == list(range(7))
    assert passes[0] != passes[1] != passes[2]


def test_the_generator_refuses_images_without_labels():
    for images, labels in ((random_images(0), []), (random_images(3), [0, 1])):
        with pytest.raises(ValueError, match="one label for each"):
            next(data_generator(images, np.array(labels), 2))


def test_weights_of_a_channels_last_network_give_the_same_embeddings(tmp_path):
    """The ImageNet files are such."""
    keras.config.set_image_data_format("channels_last")
    try:
        last = keras.applications.ResNet50(include_top=False, weights=None, input_shape=(32, 32, 3))
    finally:
        keras.config.set_image_data_format("channels_first")
    last.save_weights(tmp_path / "last.weights.h5")
    model = fine_tuned_models((3, 32, 32), 32, weights=str(tmp_path / "last.weights.h5"), embedding_size=8)
    images = random_images(4)
    given = images.astype("float32")[:, ::-1] - np.array([103.939, 116.779, 123.68], "float32")[:, None, None]
    features = keras.ops.convert_to_numpy(last(given.transpose(0, 2, 3, 1), training=False)).mean(axis=(1, 2))
    kernel, bias = model.get_layer("embedding").get_weights()
    expected = features @ kernel + bias
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(embed(model, images), expected, atol=1e-5)
    norms = [layer for layer in backbone_of(model).layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert norms and not any(layer.trainable for layer in norms)  # as they came; see the docstring


def test_weights_of_an_earlier_run_go_on(tmp_path):
    first = small_model(weights="none", frozen_layers=0)
    first.save_weights(tmp_path / "best.weights.h5")
    again = small_model(weights=str(tmp_path / "best.weights.h5"))
    images = random_images(3)
    np.testing.assert_allclose(embed(again, images), embed(first, images), atol=1e-6)


def test_weights_of_an_efficientnet_that_began_with_those_of_imagenet_go_on(tmp_path, monkeypatch):
    """Keras builds it with one layer more for "imagenet", which has no weights that could be missed in the file."""
    keras.applications.EfficientNetB0(include_top=False, weights=None, input_shape=(3, 32, 32)).save_weights(
        tmp_path / "notop.weights.h5"
    )
    monkeypatch.setattr(
        "keras.src.applications.efficientnet.file_utils.get_file",
        lambda *names, **settings: str(tmp_path / "notop.weights.h5"),
    )
    first = small_model(backbone="EfficientNetB0", weights="imagenet")
    first.save(tmp_path / "run.keras")
    images = random_images(3)
    again = small_model(backbone="EfficientNetB0", weights=str(tmp_path / "run.keras"))
    np.testing.assert_allclose(embed(again, images), embed(first, images), atol=1e-6)
    assert len(backbone_of(again).layers) == len(backbone_of(first).layers) == BACKBONES["EfficientNetB0"][0]


@pytest.mark.parametrize("name", ["other.weights.h5", "other.h5", "other.keras", "other.npz"])
@pytest.mark.parametrize("kind", ["of another network", "cut off", "no weights at all", "empty"])
def test_a_weights_file_that_does_not_fit_is_refused_by_name(kind, name, tmp_path):
    path = tmp_path / name
    if kind == "no weights at all":
        path.write_text("not HDF5")
    elif kind == "empty":
        path.touch()
    elif name.endswith("npz"):
        np.savez(path, kernel=np.zeros(3))
    else:
        other = small_model(
            weights="none", frozen_layers=0, backbone="VGG16" if kind == "of another network" else "MobileNet"
        )
        (other.save_weights if "weights" in name else other.save)(path)
        if kind == "cut off":
            path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(InputError, match=rf"`WEIGHTS` must be .*Received: '.*{re.escape(name)}'"):
        small_model(weights=str(path))


def test_weights_that_are_not_finite_are_refused(tmp_path):
    model = small_model(weights="none", frozen_layers=0)
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
    assert os.path.exists(ran)  # that it would have been seen


def test_what_cannot_be_built_is_refused_in_a_sentence():
    with pytest.raises(InputError, match=r"`BACKBONE` must be one of .*ResNet50.*Received: 'ResNet51'"):
        small_model(backbone="ResNet51")
    with pytest.raises(InputError, match=r"`FROZEN_LAYERS` must be between 0 and 86 for MobileNet. Received: 87"):
        small_model(weights="none", frozen_layers=87)
    with pytest.raises(InputError, match=r"`IMAGE_SIZE` 31"):
        small_model(weights="none", image_size=31)


def test_weights_that_cannot_be_downloaded_are_told_with_what_to_do(monkeypatch):
    real = keras.applications.MobileNet
    address = "https://storage.example/mobilenet_1_0_224_tf_no_top.h5"

    def offline(weights, **settings):
        if weights == "imagenet":
            raise Exception(f"URL fetch failure on {address}: None -- Name or service not known")
        return real(weights=weights, **settings)

    offline.__module__ = real.__module__
    monkeypatch.setattr(keras.applications, "MobileNet", offline)
    with pytest.raises(InputError) as told:
        small_model(weights="imagenet")
    for part in (f"Put {address} by hand into", "models", "python init.py --dataset digits"):
        assert part in str(told.value)


@pytest.mark.parametrize(("policy", "dtype"), [("mixed_float16", "float16"), ("mixed_bfloat16", "bfloat16")])
def test_in_mixed_precision_the_backbone_alone_computes_in_16_bits(policy, dtype):
    """Not run here: TensorFlow's CPU has no channels-first convolution in float16."""
    keras.config.set_dtype_policy(policy)
    try:
        model = small_model(weights="none", frozen_layers=0)
    finally:
        keras.config.set_dtype_policy("float32")
    assert {layer.compute_dtype for layer in backbone_of(model).layers} == {dtype}
    for name in ("pooling", "pooled_batch_norm", "embedding", "unit_norm"):
        layer = model.get_layer(name)
        assert layer.compute_dtype == "float32"
        assert layer.output.dtype == "float32"


def test_the_merge_model_embeds_each_branch_as_the_network_does():
    model = small_model(weights="none", frozen_layers=0, embedding_size=8)
    merged = embed(triplet_model(model), random_images(12).reshape(4, 3, 3, 32, 32))
    assert merged.shape == (4, 3, 8)
    np.testing.assert_allclose(merged.reshape(12, 8), embed(model, random_images(12)), atol=1e-5)


def test_the_saved_model_loads_alone_in_a_fresh_process(resnet, tmp_path):
    """With nothing of this project, and with Keras' own channels_last setting."""
    resnet.save(tmp_path / "embedding_model.keras")
    images = random_images(3)
    np.save(tmp_path / "images.npy", images)
    code = (
        "import keras, numpy as np; model = keras.saving.load_model('embedding_model.keras'); "
        "np.save('embeddings.npy', model.predict(np.load('images.npy'), verbose=0))"
    )
    environment = {**os.environ, "PYTHONPATH": "", "KERAS_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, capture_output=True)
    np.testing.assert_allclose(np.load(tmp_path / "embeddings.npy"), embed(resnet, images), atol=1e-5)
