"""Backbones by name or from a file: the network without its classifier, and what its input must look like."""

import re
import sys
from functools import partial

import keras
from keras import layers

from pipeline import downloads
from pipeline.errors import InputError
from pipeline.networks import keras_file, torchvision_networks
from pipeline.networks.torch_files import read_tensors

MODES = {"SmallConvNet": "tf", **torchvision_networks.PREPROCESSING}  # of `preprocess_input`; "tf": from -1 to 1


def build(backbone: str, image_size: int, pre_trained: bool) -> keras.Model:
    """Builds a backbone, from preprocessed images to features, with the data format of Keras' configuration.

    Args:
        backbone: as in `fine_tuned_models`. A network from a file has its own data format.
        image_size: int, height and width of the images.
        pre_trained: bool, with ImageNet weights or random ones. A network from a file has its own.

    Returns:
        `keras.Model`.

    Raises:
        InputError: if the backbone is unknown, cannot be loaded or does not support `image_size`, or its weights cannot
            be downloaded.
    """
    if is_file(backbone):
        return keras_file.load(backbone, image_size)
    channels_first = keras.config.image_data_format() == "channels_first"
    shape = (3, image_size, image_size) if channels_first else (image_size, image_size, 3)
    own = {"SmallConvNet": small_conv_net, **torchvision_networks.NETWORKS}
    constructor = own.get(backbone) or partial(_constructor(backbone), include_top=False, weights=None)
    try:
        network = constructor(input_shape=shape)
    except ValueError as error:  # the images are too small, or the architecture has no channels_first
        raise InputError(f"`BACKBONE` {backbone} cannot be built for `IMAGE_SIZE` {image_size}: {error}") from error
    if backbone in torchvision_networks.NETWORKS and pre_trained:
        file = torchvision_networks.download_imagenet(backbone)
        torchvision_networks.set_torch_weights(network, read_tensors(file))
    if backbone in own or not pre_trained:
        return _as_pre_trained(network, backbone)
    try:
        return _constructor(backbone)(include_top=False, weights="imagenet", input_shape=shape)
    except Exception as error:  # Keras raises a bare Exception when a download fails
        url = re.search(r"https?://\S+[^\s:]", str(error))
        address, folder = url.group() if url else "their file", downloads.cache_folder() / "models"
        place = folder / address.rsplit("/", 1)[-1] if url else folder
        raise downloads.failed(f"The ImageNet weights of {backbone}", error, address, place) from error


def is_file(backbone: str) -> bool:
    """Whether a backbone is the path of a file, not a name."""
    return backbone.endswith(".keras")


def data_format_of(network: keras.Model) -> str:
    """`"channels_last"` or `"channels_first"`: the data format of a backbone's images and features."""
    return "channels_last" if network.inputs[0].shape[-1] == 3 else "channels_first"


def preprocessed(images: keras.KerasTensor, backbone: str, preprocessing: str, data_format: str) -> keras.KerasTensor:
    """What a backbone expects, by operations that Keras can save.

    Args:
        images: symbolic float32, red, green and blue from 0 to 255.
        backbone: as in `fine_tuned_models`.
        preprocessing: as in `fine_tuned_models`.
        data_format: of the images.

    Returns:
        Symbolic tensor of the same shape.
    """
    mode = preprocessing
    if mode == "auto":
        mode = "none" if is_file(backbone) else MODES.get(backbone)
    if mode == "none":
        return images
    if mode:
        return keras.applications.imagenet_utils.preprocess_input(images, data_format, mode)
    return sys.modules[_constructor(backbone).__module__].preprocess_input(images, data_format)


def small_conv_net(input_shape: tuple[int, int, int]) -> keras.Model:
    """SmallConvNet: five 3×3 convolutions, for small images (8 to 64 pixels) and training from random weights.

    Args:
        input_shape: `(3, height, width)` in channels_first, height and width at least 8.

    Returns:
        `keras.Model` from images to features `(batch, 128, height // 4, width // 4)` in channels_first.
    """
    channel_axis = 1 if keras.config.image_data_format() == "channels_first" else -1
    images = features = keras.Input(input_shape)
    for channels, pooled in ((32, False), (64, True), (64, False), (128, True), (128, False)):
        features = layers.Conv2D(channels, 3, padding="same", use_bias=False)(features)
        features = layers.BatchNormalization(axis=channel_axis)(features)
        features = layers.ReLU()(features)
        if pooled:
            features = layers.MaxPooling2D()(features)
    return keras.Model(images, features, name="small_conv_net")


def _constructor(backbone):
    constructor = getattr(keras.applications, backbone, None)
    if not callable(constructor):
        names = sorted([*MODES, *(name for name in dir(keras.applications) if name[0].isupper())])
        raise InputError(f"`BACKBONE` must be one of {', '.join(names)}, or a .keras file. Received: {backbone!r}")
    return constructor


def _as_pre_trained(network, backbone):
    """The network with the layer that Keras adds only with ImageNet weights, so that one weights file fits both."""
    if not re.fullmatch("EfficientNetB[0-7]", backbone):
        return network
    # EfficientNetB0 to B7: a division by the roots of ImageNet's deviations of red, green and blue, after the
    # normalisation. Keras has a Rescaling there, which reads the data format anew whenever the network is called.
    axis = 1 if keras.config.image_data_format() == "channels_first" else -1

    def call(layer, *given, **named):
        outputs = layer(*given, **named)
        if not isinstance(layer, layers.Normalization):
            return outputs
        return layers.Normalization(axis, mean=[0.0] * 3, variance=[0.229, 0.224, 0.225])(outputs)

    return keras.models.clone_model(network, call_function=call)
