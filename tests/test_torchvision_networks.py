"""AlexNet and GoogLeNet: the same features as torchvision's networks with the same weights, in both data formats."""

import functools
import hashlib
import shutil

import keras
import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.networks import torchvision_networks
from pipeline.networks.backbone import preprocessed
from pipeline.networks.torch_files import read_tensors
from pipeline.networks.torchvision_networks import NETWORKS, download_imagenet, set_torch_weights
from pipeline.settings.backbones import BACKBONES, TORCHVISION

SMALLEST = {name: BACKBONES[name][1] for name in TORCHVISION}
# Between them, these have odd and even sides before every pooling that rounds up, and both in one image.
MIXED = {"AlexNet": (75, 98), "GoogLeNet": (37, 56)}
ODD = {"AlexNet": 97, "GoogLeNet": 45}


@pytest.fixture(params=["channels_first", "channels_last"])
def data_format(request):
    before = keras.config.image_data_format()
    keras.config.set_image_data_format(request.param)
    yield request.param
    keras.config.set_image_data_format(before)


class Torchvision:
    """Torchvision's two networks with random weights, and the files that PyTorch has saved of them."""

    def __init__(self, folder):
        self.torch = pytest.importorskip("torch")
        models = self.imported().models
        self.torch.manual_seed(0)
        with self.torch.device("meta"):  # no initial values, which would take seconds
            self.networks = {
                "AlexNet": models.AlexNet(num_classes=2),
                "GoogLeNet": models.GoogLeNet(num_classes=2, transform_input=True, init_weights=False),
            }
        self.networks["AlexNet"].classifier = self.torch.nn.Linear(2, 2)  # the real one has 220 MB
        self.files = {}
        for name, network in self.networks.items():
            self.randomise(network)
            for is_zip in (True, False):
                path = self.files[name, is_zip] = folder / f"{name}-{is_zip}.pth"
                self.torch.save(network.state_dict(), path, _use_new_zipfile_serialization=is_zip)

    def imported(self):
        try:
            import torchvision
        except ImportError as error:
            pytest.skip(str(error))
        except RuntimeError:
            # The compiled operators are for a PyTorch with CUDA. These networks use none of them, but the import needs
            # the names of two.
            self.operators = self.torch.library.Library("torchvision", "FRAGMENT")
            for name in ("nms", "qnms"):
                self.operators.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
            import torchvision
        return torchvision

    def randomise(self, network):
        """Weights that keep features in the range of 1, and statistics of which none can be mistaken for another."""
        init = self.torch.nn.init
        network.to_empty(device="cpu").eval()
        for tensor in network.state_dict().values():
            tensor.zero_()
        for module in network.modules():
            if isinstance(module, self.torch.nn.Conv2d):
                init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    init.normal_(module.bias, std=0.2)
            elif isinstance(module, self.torch.nn.BatchNorm2d):
                init.uniform_(module.weight, 0.5, 1.5)
                init.normal_(module.bias, std=0.2)
                init.normal_(module.running_mean, std=0.2)
                init.uniform_(module.running_var, 0.5, 1.5)

    def features(self, name, pixels):
        """The features of pixels from 0 to 255, channels first, after torchvision's own preprocessing."""
        network, found = self.networks[name], []
        last = network.features if name == "AlexNet" else network.inception5b
        hook = last.register_forward_hook(lambda module, inputs, outputs: found.append(outputs.numpy()))
        normalize = self.imported().transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        images = normalize(self.torch.from_numpy(pixels) / 255)
        with self.torch.no_grad():
            if name == "AlexNet":
                network.features(images)
            else:
                network(images)
        hook.remove()
        return found[0]


@pytest.fixture(scope="module")
def torchvision(tmp_path_factory):
    return Torchvision(tmp_path_factory.mktemp("torchvision"))


def random_pixels(height, width):
    return np.random.default_rng(height).uniform(0, 255, (2, 3, height, width)).astype("float32")


def input_shape(height, width, data_format):
    return (3, height, width) if data_format == "channels_first" else (height, width, 3)


def preprocess_input(images, name):
    return preprocessed(images, name, "auto", keras.config.image_data_format())


def built(name, shape, tensors):
    """A network with its preprocessing."""
    pixels = keras.Input(shape)
    network = NETWORKS[name](shape)
    set_torch_weights(network, tensors)
    return keras.Model(pixels, network(preprocess_input(pixels, name)))


def run(model, pixels, data_format):
    """What a model makes of images with channels first, also with channels first."""
    if data_format == "channels_first":
        return keras.ops.convert_to_numpy(model(pixels))
    return keras.ops.convert_to_numpy(model(pixels.transpose(0, 2, 3, 1))).transpose(0, 3, 1, 2)


def assert_close(features, expected):
    assert features.shape == expected.shape
    assert expected.std(axis=0).max() > 0.01 and expected.max() > 0.1  # images differ, and not all is below the ReLU
    np.testing.assert_allclose(features, expected, atol=1e-5 * max(1, np.abs(expected).max()), rtol=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_features_are_those_of_torchvision(name, data_format, torchvision):
    sizes = [MIXED[name]]
    if data_format == "channels_last":
        sizes.append((SMALLEST[name], SMALLEST[name]))
    for (height, width), is_zip in zip(sizes, (True, False), strict=False):
        model = built(name, input_shape(height, width, data_format), read_tensors(torchvision.files[name, is_zip]))
        pixels = random_pixels(height, width)
        assert_close(run(model, pixels, data_format), torchvision.features(name, pixels))


@pytest.mark.parametrize(
    ("name", "data_format"),
    [("AlexNet", "channels_first"), ("AlexNet", "channels_last"), ("GoogLeNet", "channels_first")],
    indirect=["data_format"],
)
def test_saved_networks_are_loaded_without_this_project(name, data_format, torchvision, tmp_path):
    model = built(name, input_shape(ODD[name], ODD[name], data_format), read_tensors(torchvision.files[name, True]))
    model.save(tmp_path / "network.keras")
    loaded = keras.saving.load_model(tmp_path / "network.keras", safe_mode=True)
    pixels = random_pixels(ODD[name], ODD[name])
    assert_close(run(loaded, pixels, data_format), torchvision.features(name, pixels))


@pytest.mark.parametrize("name", NETWORKS)
def test_both_formats_of_pytorch_have_the_same_tensors(name, torchvision):
    one, other = (read_tensors(torchvision.files[name, is_zip]) for is_zip in (True, False))
    state = torchvision.networks[name].state_dict()
    assert list(one) == list(other) == list(state)
    for tensor in state:
        np.testing.assert_array_equal(one[tensor], state[tensor].numpy())
        np.testing.assert_array_equal(other[tensor], state[tensor].numpy())


def test_preprocessing_is_that_of_imagenet(data_format):
    """Of red, green and blue; computed by hand."""
    pixels = np.tile(np.array([10, 20, 255], "float32")[:, None, None], (2, 1, 4, 5))
    for name, expected in [
        ("AlexNet", [(10 / 255 - 0.485) / 0.229, (20 / 255 - 0.456) / 0.224, (1 - 0.406) / 0.225]),
        ("GoogLeNet", [10 / 127.5 - 1, 20 / 127.5 - 1, 1]),
    ]:
        images = keras.Input(input_shape(4, 5, data_format))
        found = run(keras.Model(images, preprocess_input(images, name)), pixels, data_format)
        assert found.dtype == "float32"
        np.testing.assert_allclose(found, np.broadcast_to(np.reshape(expected, (3, 1, 1)), (2, 3, 4, 5)), atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_depth_and_smallest_images(name, data_format):
    """All square images have networks of the same depth, so that FROZEN_LAYERS means the same for all."""
    size = SMALLEST[name]
    network = NETWORKS[name](input_shape(size, size, data_format))
    assert len(network.layers) == BACKBONES[name][0]
    maps = keras.ops.moveaxis(network.output, 1 if data_format == "channels_first" else 3, 1)
    assert maps.shape == (None, {"AlexNet": 256, "GoogLeNet": 1024}[name], 1, 1)
    with pytest.raises(ValueError):
        NETWORKS[name](input_shape(size - 1, 100, data_format))


def alexnet_tensors():
    shapes = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3), 10: (256, 256, 3, 3)}
    generator = np.random.default_rng(0)
    tensors = {}
    for number, shape in shapes.items():
        tensors[f"features.{number}.weight"] = generator.normal(size=shape).astype("float32")
        tensors[f"features.{number}.bias"] = generator.normal(size=shape[0]).astype("float32")
    return tensors


def test_weights_of_another_network_are_refused_and_change_nothing():
    network = NETWORKS["AlexNet"]((3, 63, 63))
    before = network.get_weights()
    tensors = alexnet_tensors()
    missing = {name: each for name, each in tensors.items() if name != "features.10.bias"}
    for given, words in [
        ({}, "features.0.weight"),
        (missing, "without features.10.bias"),
        (
            {**tensors, "features.8.weight": tensors["features.10.weight"]},
            "features.8.weight has shape (256, 256, 3, 3)",
        ),
        ({**tensors, "features.3.weight": np.ones((5, 5, 64, 192), "float32")}, "features.3.weight"),  # Keras' order
        ({**tensors, "features.3.bias": np.ones((192, 1), "float32")}, "features.3.bias"),
        ({**tensors, "features.1.weight": np.ones(64, "float32")}, "features.1.weight"),  # with batch normalisation
    ]:
        with pytest.raises(InputError) as caught:
            set_torch_weights(network, given)
        assert words in str(caught.value) and "AlexNet" in str(caught.value)
    for now, then in zip(network.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_classifiers_are_ignored_and_16_bit_weights_are_converted():
    network = NETWORKS["AlexNet"]((3, 63, 63))
    tensors = {name: each.astype("float16") for name, each in alexnet_tensors().items()}
    others = (
        "classifier.1.weight",
        "fc.bias",
        "aux1.conv.conv.weight",
        "aux2.fc1.bias",
        "features.1.num_batches_tracked",
    )
    set_torch_weights(network, {**dict.fromkeys(others, np.zeros(())), **tensors})
    kernel, bias = network.get_layer("features_3").get_weights()
    assert kernel.dtype == bias.dtype == "float32"
    np.testing.assert_array_equal(kernel[1, 2, 3], tensors["features.3.weight"][:, 3, 1, 2])
    np.testing.assert_array_equal(bias, tensors["features.3.bias"])


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A folder in place of PyTorch's server, and one in place of Keras' folder."""
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "weights.pth").write_bytes(b"the weights")
    monkeypatch.setattr(torchvision_networks, "ADDRESS", (tmp_path / "server").as_uri() + "/")
    hashed = hashlib.sha256(b"the weights").hexdigest()
    monkeypatch.setitem(torchvision_networks.WEIGHTS, "AlexNet", ("weights.pth", hashed))
    get_file = functools.partial(keras.utils.get_file, cache_dir=tmp_path / "keras")
    monkeypatch.setattr(keras.utils, "get_file", get_file)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    (tmp_path / "keras").mkdir()
    return tmp_path / "server"


def test_weights_are_downloaded_once_and_again_if_they_are_corrupt(server, tmp_path):
    path = tmp_path / "keras" / "models" / "weights.pth"
    for content in (None, b"the weights", b"the weig"):  # what is there before
        if content is not None:
            path.write_bytes(content)
        assert download_imagenet("AlexNet") == path
        assert path.read_bytes() == b"the weights"
    shutil.rmtree(server)
    assert download_imagenet("AlexNet") == path


@pytest.mark.parametrize("content", [None, b"something else"])
def test_a_failing_download_says_where_to_put_which_file(content, server, tmp_path):
    (server / "weights.pth").unlink()
    if content is not None:
        (server / "weights.pth").write_bytes(content)
    for _ in range(2):
        with pytest.raises(InputError) as caught:
            download_imagenet("AlexNet")
        assert f"{server.as_uri()}/weights.pth" in str(caught.value)
        assert str(tmp_path / "keras" / "models" / "weights.pth") in str(caught.value)


def test_hashes_are_those_that_the_names_of_the_files_start_with():
    for name in NETWORKS:
        file_name, sha256 = torchvision_networks.WEIGHTS[name]
        assert len(sha256) == 64 and file_name.endswith(f"-{sha256[:8]}.pth")
