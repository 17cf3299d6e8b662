"""The embedding network: a pre-trained backbone, partly frozen, with an embedding head."""

import re
import sys
import warnings
from collections.abc import Iterator

import keras
import numpy as np
from keras import layers

from pipeline import downloads
from pipeline.errors import InputError

MOMENTUM = 0.9  # of batch normalisations that train: the fraction of their moving statistics that each step keeps


def fine_tuned_models(
    input_shape: tuple[int, int, int],
    image_size: int = 224,
    fit: str = "scale",
    backbone: str = "ResNet50",
    weights: str = "imagenet",
    frozen_layers: int = 15,
    embedding_size: int = 128,
) -> keras.Model:
    """Builds the network that turns raw images into embeddings.

    Resizing, the backbone's own preprocessing, the backbone without its classifier, global average pooling and the
    embedding head are one model of Keras' own layers: it is saved as one file, which `keras.saving.load_model(path)`
    loads without this project. Its backbone has the data format of `keras.config.image_data_format()`; images are
    channels-first in either case. Under a mixed precision policy the backbone computes in 16 bits, everything around it
    in float32.

    The head is a batch normalisation, a dense layer and the scaling to unit length. A backbone's features are positive
    and similar for all images: without the batch normalisation, all embeddings start near one point, where the triplet
    loss stays at its margin for a long time.

    With pre-trained weights the backbone's batch normalisations keep their statistics (`trainable = False`), since
    those of small or class-balanced batches would be worse. With random weights they train. Those that train, the
    head's included, have a momentum of 0.9: with Keras' 0.99, predictions would use outdated statistics for hundreds of
    steps.

    Args:
        input_shape: shape of one stored image, `(3, height, width)`.
        image_size: int, height and width in pixels that the backbone is given.
        fit: `"scale"` stretches images to the square; `"pad"` shrinks those that are too large and centres them on
            black.
        backbone: `"SmallConvNet"`, or the name of a constructor in `keras.applications`.
        weights: `"imagenet"`, `"none"` (random), or the path of a weights file of the backbone or of the whole model.
        frozen_layers: int, how many of the backbone's first layers do not train.
        embedding_size: int, length of an embedding.

    Returns:
        `keras.Model` from uint8 images `(batch, *input_shape)` to unit vectors `(batch, embedding_size)`, float32.

    Raises:
        InputError: if the backbone is unknown, `image_size` is too small for it, `frozen_layers` exceeds its depth, or
            the weights cannot be downloaded or belong to another network.
    """
    network = _backbone(backbone, image_size, pre_trained=weights == "imagenet")
    if frozen_layers > len(network.layers):
        raise InputError(
            f"`FROZEN_LAYERS` must be between 0 and {len(network.layers)} for {backbone}. Received: {frozen_layers}"
        )

    images = keras.Input(input_shape, dtype="uint8", name="images")
    features = network(_resized_and_preprocessed(images, image_size, fit, backbone))
    features = layers.GlobalAveragePooling2D(dtype="float32", name="pooling")(features)  # shape (batch, channels)
    features = layers.BatchNormalization(momentum=MOMENTUM, dtype="float32", name="pooled_batch_norm")(features)
    features = layers.Dense(embedding_size, dtype="float32", name="embedding")(features)
    embeddings = layers.UnitNormalization(dtype="float32", name="unit_norm")(features)
    model = keras.Model(images, embeddings, name="embedding_model")

    if weights not in ("imagenet", "none"):
        _load_weights(weights, network, model)
        if not all(np.isfinite(each).all() for each in model.get_weights()):
            raise InputError(f"`WEIGHTS` must be a file of finite weights. Received: {weights!r}")
    for layer in network.layers:
        if isinstance(layer, layers.BatchNormalization):
            if weights == "none":
                layer.momentum = MOMENTUM
            else:
                layer.trainable = False
    for layer in network.layers[:frozen_layers]:
        layer.trainable = False
    if frozen_layers > len(network.layers) / 2:
        remaining = len(network.layers) - frozen_layers
        print(f"Warning: with FROZEN_LAYERS = {frozen_layers}, only {remaining} layers of {backbone} train.")
    return model


def portable_model(
    model: keras.Model, image_size: int = 224, fit: str = "scale", backbone: str = "ResNet50"
) -> keras.Model:
    """Builds the same network for every device: channels_last inside and float32, with the same images as input.

    TensorFlow has channels-first convolutions on few CPUs, and most backends are faster with channels_last there.

    Args:
        model: what `fine_tuned_models` has built.
        image_size, fit, backbone: as given to it.

    Returns:
        `keras.Model` with the same weights, from uint8 images `(batch, *input_shape)` to the same embeddings.
    """
    data_format, policy = keras.config.image_data_format(), keras.config.dtype_policy()
    keras.config.set_image_data_format("channels_last")
    keras.config.set_dtype_policy("float32")
    try:
        shape, size = model.input_shape[1:], model.output_shape[-1]
        portable = fine_tuned_models(shape, image_size, fit, backbone, "none", 0, size)
    finally:
        keras.config.set_image_data_format(data_format)
        keras.config.set_dtype_policy(policy)
    portable.set_weights(model.get_weights())
    return portable


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


def triplet_model(embedding_model: keras.Model) -> keras.Model:
    """Builds the merge model: one network for the anchors, positives and negatives.

    The three branches run as one batch of 3B images, in about half the time of three passes. Batch normalisation uses
    the statistics of all three branches together; three passes would normalise each branch by itself.

    Args:
        embedding_model: `keras.Model` from images to embeddings.

    Returns:
        `keras.Model` from uint8 triplets `(batch, 3, *image_shape)` to embeddings `(batch, 3, embedding_size)`, in the
        order anchor, positive, negative, for `MergeTripletLoss`.
    """
    image_shape, embedding_size = embedding_model.input_shape[1:], embedding_model.output_shape[-1]
    triplets = keras.Input((3, *image_shape), dtype="uint8", name="triplets")
    images = keras.ops.reshape(triplets, (-1, *image_shape))  # shape (3 * batch, *image_shape)
    embeddings = embedding_model(images)  # shape (3 * batch, embedding_size)
    merged = keras.ops.reshape(embeddings, (-1, 3, embedding_size))  # shape (batch, 3, embedding_size)
    return keras.Model(triplets, merged, name="triplet_model")


def data_generator(
    images: np.ndarray,
    labels: np.ndarray,
    batch_size: int,
    image_size: int = 224,
    fit: str = "scale",
    backbone: str = "ResNet50",
    seed: int = 0,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Generates resized and preprocessed batches endlessly, for networks that do not resize images themselves.

    The model of `fine_tuned_models` needs no such generator: it resizes on the device, from far smaller uint8 batches.

    Args:
        images: uint8, shape `(n, 3, height, width)`.
        labels: shape `(n,)` or `(n, ...)`.
        batch_size: int; the last batch of each epoch may be smaller.
        image_size: int, height and width of the generated images, in pixels.
        fit: `"scale"` or `"pad"`, as in `fine_tuned_models`.
        backbone: str, whose preprocessing is applied.
        seed: int, of the order, which differs from epoch to epoch.

    Yields:
        Tuples of float32 images `(batch, 3, image_size, image_size)`, or `(batch, image_size, image_size, 3)` under
        channels_last, and their labels, every image once an epoch.

    Raises:
        ValueError: if there are no images, or not one label for each.
    """
    if len(images) == 0 or len(images) != len(labels):
        raise ValueError(
            f"There must be one label for each image. Received: {len(images)} images, {len(labels)} labels"
        )
    raw = keras.Input(images.shape[1:], dtype="uint8")
    resize = keras.Model(raw, _resized_and_preprocessed(raw, image_size, fit, backbone))
    generator = np.random.default_rng(seed)
    while True:
        order = generator.permutation(len(images))
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            yield keras.ops.convert_to_numpy(resize(images[batch])), labels[batch]


def _resized_and_preprocessed(images, image_size, fit, backbone):
    """Symbolic uint8 images as the float32 input of a backbone, by layers and operations that Keras can save."""
    data_format = keras.config.image_data_format()
    height, width = images.shape[2:]
    if data_format == "channels_last":
        images = keras.ops.transpose(images, (0, 2, 3, 1))  # shape (batch, height, width, 3)
    images = keras.ops.cast(images, "float32")  # before resizing: some backends round integers
    if fit == "scale" or max(height, width) > image_size:
        # Not the layer `Resizing`: with it, `model(images)` would run all layers in training mode, and change the
        # statistics of batch normalisation.
        images = keras.ops.image.resize(
            images, (image_size, image_size), pad_to_aspect_ratio=fit == "pad", data_format=data_format
        )
    else:
        gaps = (image_size - height, image_size - width)
        padding = tuple((gap // 2, gap - gap // 2) for gap in gaps)
        images = layers.ZeroPadding2D(padding, dtype="float32")(images)
    if backbone == "SmallConvNet":
        return images / 127.5 - 1  # from -1 to 1
    return sys.modules[_constructor(backbone).__module__].preprocess_input(images)


def _constructor(backbone):
    constructor = getattr(keras.applications, backbone, None)
    if not callable(constructor):
        names = ["SmallConvNet", *sorted(name for name in dir(keras.applications) if name[0].isupper())]
        raise InputError(f"`BACKBONE` must be one of {', '.join(names)}. Received: {backbone!r}")
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


def _backbone(backbone, image_size, pre_trained):
    channels_first = keras.config.image_data_format() == "channels_first"
    shape = (3, image_size, image_size) if channels_first else (image_size, image_size, 3)
    if backbone == "SmallConvNet":
        return small_conv_net(shape)
    constructor = _constructor(backbone)
    try:
        network = constructor(include_top=False, weights=None, input_shape=shape)
    except ValueError as error:  # the images are too small, or the architecture has no channels_first
        raise InputError(f"`BACKBONE` {backbone} cannot be built for `IMAGE_SIZE` {image_size}: {error}") from error
    if not pre_trained:
        return _as_pre_trained(network, backbone)
    try:
        return constructor(include_top=False, weights="imagenet", input_shape=shape)
    except Exception as error:  # Keras raises a bare Exception when a download fails
        url = re.search(r"https?://\S+[^\s:]", str(error))
        address, folder = url.group() if url else "their file", downloads.cache_folder() / "models"
        place = folder / address.rsplit("/", 1)[-1] if url else folder
        raise downloads.failed(f"The ImageNet weights of {backbone}", error, address, place) from error


def _load_weights(path, network, model):
    """Loads a weights file of the backbone or of the whole model."""
    reasons = []
    for target in (network, model):
        try:
            with warnings.catch_warnings(action="ignore"):  # about layers that the file does not have
                target.load_weights(path)
            return
        except Exception as error:  # h5py and Keras raise many types for a file that does not fit
            reasons.append(f"{target.name}: {' '.join(str(error).split())[:200] or type(error).__name__}")
    raise InputError(f"`WEIGHTS` must be a file of this network's weights. Received: {path!r} ({'; '.join(reasons)})")
