"""AlexNet and GoogLeNet, which Keras does not have: as torchvision defines them, so that its ImageNet weights fit."""

from pathlib import Path

import keras
import numpy as np
from keras import layers

from pipeline import downloads
from pipeline.errors import InputError

# Name -> file of torchvision's ImageNet weights, and its SHA-256, whose first eight digits are in the file's name.
WEIGHTS = {
    "AlexNet": ("alexnet-owt-7be5be79.pth", "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02"),
    "GoogLeNet": ("googlenet-1378be20.pth", "1378be20a8e875cf1568b8a71654e704449655e34711a959a38b04fb34905cef"),
}
ADDRESS = "https://download.pytorch.org/models/"
UNUSED = {"classifier", "fc", "aux1", "aux2"}  # what torchvision has after the features, or beside them in training

# Name -> mode of `keras.applications.imagenet_utils.preprocess_input`. Torchvision normalises the images of all its
# networks by ImageNet's mean and deviation, and its pre-trained GoogLeNet then undoes that (`transform_input`), because
# it was trained on TensorFlow's x / 127.5 - 1.
PREPROCESSING = {"AlexNet": "torch", "GoogLeNet": "tf"}

# Inception block -> channels of the 1×1 convolution; of the 3×3 convolution, before it the 1×1 one that reduces its
# input; the same of the "5×5" convolution; and of the 1×1 convolution after the pooling. Szegedy et al. 2015, table 1.
INCEPTION_BLOCKS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


def alexnet(input_shape: tuple[int, int, int]) -> keras.Model:
    """AlexNet with one column of layers and without response normalisation, up to the last pooling.

    "One weird trick for parallelizing convolutional neural networks", Krizhevsky 2014, https://arxiv.org/abs/1404.5997.

    Args:
        input_shape: `(3, height, width)` in channels_first, else `(height, width, 3)`; both at least 63 pixels.

    Returns:
        `keras.Model` from preprocessed images to features, of 224×224 pixels `(batch, 256, 6, 6)` in channels_first.
        Its layers have torchvision's names, such as `features_3`.

    Raises:
        ValueError: if the images are too small.
    """
    images = keras.Input(input_shape, name="images")
    features = layers.ZeroPadding2D(2, name="features_0_padding")(images)
    features = layers.Conv2D(64, 11, strides=4, name="features_0")(features)
    features = layers.ReLU(name="features_1")(features)
    features = layers.MaxPooling2D(3, strides=2, name="features_2")(features)
    features = layers.Conv2D(192, 5, padding="same", name="features_3")(features)
    features = layers.ReLU(name="features_4")(features)
    features = layers.MaxPooling2D(3, strides=2, name="features_5")(features)
    for number, channels in ((6, 384), (8, 256), (10, 256)):
        features = layers.Conv2D(channels, 3, padding="same", name=f"features_{number}")(features)
        features = layers.ReLU(name=f"features_{number + 1}")(features)
    features = layers.MaxPooling2D(3, strides=2, name="features_12")(features)
    return keras.Model(images, features, name="AlexNet")


def googlenet(input_shape: tuple[int, int, int]) -> keras.Model:
    """GoogLeNet (Inception v1) with batch normalisation, without the two auxiliary classifiers.

    "Going deeper with convolutions", Szegedy et al. 2015, https://arxiv.org/abs/1409.4842. The weights were ported from
    TensorFlow's network, which has batch normalisation in place of the paper's response normalisation.

    Args:
        input_shape: `(3, height, width)` in channels_first, else `(height, width, 3)`; both at least 15 pixels.

    Returns:
        `keras.Model` from preprocessed images to features, of 224×224 pixels `(batch, 1024, 7, 7)` in channels_first.
        Its layers have torchvision's names, such as `inception3a_branch2_0_conv`.

    Raises:
        ValueError: if the images are too small.
    """
    images = keras.Input(input_shape, name="images")
    features = layers.ZeroPadding2D(3, name="conv1_padding")(images)
    features = _convolved(features, 64, 7, "conv1", strides=2, padding="valid")
    features = _pooled(features, "maxpool1")
    features = _convolved(features, 64, 1, "conv2")
    features = _convolved(features, 192, 3, "conv3")
    features = _pooled(features, "maxpool2")
    for block, channels in INCEPTION_BLOCKS.items():
        features = _inception(features, channels, f"inception{block}")
        if block == "3b":
            features = _pooled(features, "maxpool3")
        if block == "4e":
            # With this kernel, "same" is torchvision's `ceil_mode` for odd and even sides.
            features = layers.MaxPooling2D(2, padding="same", name="maxpool4")(features)
    return keras.Model(images, features, name="GoogLeNet")


def _channel_axis():
    return 1 if keras.config.image_data_format() == "channels_first" else -1


def _convolved(features, channels, kernel_size, name, **settings):
    settings = {"padding": "same", "use_bias": False, "name": f"{name}_conv", **settings}
    features = layers.Conv2D(channels, kernel_size, **settings)(features)
    features = layers.BatchNormalization(_channel_axis(), epsilon=1e-3, name=f"{name}_bn")(features)
    return layers.ReLU(name=f"{name}_relu")(features)


def _pooled(features, name):
    """Maxima of 3×3 every two pixels, the last of them also where the kernel reaches one pixel beyond the features."""
    # Torchvision's `ceil_mode`. Keras' "same" does that for even sides, but pads odd ones at both ends.
    sides = features.shape[2:] if _channel_axis() == 1 else features.shape[1:3]
    odd, even = (all(side % 2 == parity for side in sides) for parity in (1, 0))
    if not odd and not even:  # zeros do not change maxima: there are no negative features after a ReLU
        features = layers.ZeroPadding2D([(0, 1 - side % 2) for side in sides], name=f"{name}_padding")(features)
    return layers.MaxPooling2D(3, strides=2, padding="same" if even else "valid", name=name)(features)


def _inception(features, channels, name):
    one, reduced_three, three, reduced_five, five, projected = channels
    branch1 = _convolved(features, one, 1, f"{name}_branch1")
    branch2 = _convolved(features, reduced_three, 1, f"{name}_branch2_0")
    branch2 = _convolved(branch2, three, 3, f"{name}_branch2_1")
    # 3×3, not the paper's 5×5: the weights were trained so.
    branch3 = _convolved(features, reduced_five, 1, f"{name}_branch3_0")
    branch3 = _convolved(branch3, five, 3, f"{name}_branch3_1")
    branch4 = layers.MaxPooling2D(3, strides=1, padding="same", name=f"{name}_branch4_0")(features)
    branch4 = _convolved(branch4, projected, 1, f"{name}_branch4_1")
    return layers.Concatenate(_channel_axis(), name=name)([branch1, branch2, branch3, branch4])


NETWORKS = {"AlexNet": alexnet, "GoogLeNet": googlenet}


def set_torch_weights(network: keras.Model, tensors: dict[str, np.ndarray]) -> None:
    """Sets the weights of a network to those of torchvision's.

    The classifiers and the numbers of batches that batch normalisations have seen may be there, and are ignored.

    Args:
        network: what `alexnet` or `googlenet` has built; unchanged if an error is raised.
        tensors: torchvision's names, such as `"features.0.weight"`, and the values; kernels of the shape
            `(output channels, input channels, height, width)`.

    Raises:
        InputError: if a tensor is missing, has another shape, or belongs to another network.
    """
    expected = {}
    for layer in network.layers:
        if isinstance(layer, layers.BatchNormalization):
            kinds = ("weight", "bias", "running_mean", "running_var")
        else:
            kinds = ("weight", "bias")[: len(layer.weights)]
        for kind, variable in zip(kinds, layer.weights, strict=True):
            expected[f"{layer.name.replace('_', '.')}.{kind}"] = variable

    must_be = f"`WEIGHTS` must be a file of {network.name}'s weights. Received: one"
    for name, variable in expected.items():
        if name not in tensors:
            raise InputError(f"{must_be} without {name}")
        # Torch's kernels: output channels, input channels, height, width. Keras': height, width, input, output.
        shape = tuple(variable.shape[axis] for axis in (3, 2, 0, 1)) if len(variable.shape) == 4 else variable.shape
        if tensors[name].shape != tuple(shape):
            raise InputError(f"{must_be} whose {name} has shape {tensors[name].shape} instead of {tuple(shape)}")
    for name in tensors.keys() - expected.keys():
        if name.split(".")[0] not in UNUSED and not name.endswith(".num_batches_tracked"):
            raise InputError(f"{must_be} with {name[:100]}, which {network.name} does not have")

    for name, variable in expected.items():
        values = np.asarray(tensors[name], "float32")
        variable.assign(values.transpose(2, 3, 1, 0) if values.ndim == 4 else values)


def download_imagenet(name: str) -> Path:
    """Downloads torchvision's ImageNet weights into Keras' folder, unless they are there.

    Args:
        name: `"AlexNet"` or `"GoogLeNet"`.

    Returns:
        Path of the file, whose SHA-256 is right.

    Raises:
        InputError: if the download fails; the message says how to put the file in place by hand.
    """
    file_name, sha256 = WEIGHTS[name]
    address, place = ADDRESS + file_name, downloads.cache_folder() / "models" / file_name
    try:
        # A file with another hash is replaced. Keras raises a bare Exception when a download fails.
        return Path(keras.utils.get_file(file_name, address, cache_subdir="models", file_hash=sha256))
    except Exception as error:
        raise downloads.failed(f"The ImageNet weights of {name}", error, address, place) from error
