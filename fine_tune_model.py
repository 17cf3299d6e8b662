"""The embedding network: a backbone of `keras.applications`, partly frozen, with an embedding head."""

import math
import re
import sys
import warnings

import keras
import numpy as np
from keras import layers

from command_line import NO_DOWNLOAD, InputError
from keras_settings import cache_folder

MOMENTUM = 0.9  # of batch normalisations that train: the share of their running statistics kept in each step


def fine_tuned_models(
    input_shape,
    image_size=224,
    fit="scale",
    backbone="ResNet50",
    weights="imagenet",
    frozen_layers=15,
    embedding_size=128,
):
    """Builds the network that turns raw images into embeddings.

    Resizing, the backbone's own preprocessing, the backbone without its classifier, global average pooling and the
    embedding head are one model, made of Keras' own layers: it can be saved as one file and loaded with
    `keras.saving.load_model(path)` alone. It follows `keras.config.image_data_format()`. Under a mixed precision
    policy the backbone computes in 16 bits, and everything around it in float32.

    The head is a batch normalisation, a dense layer and the scaling to length 1. What a backbone ends in is mostly
    positive and much the same for every image, so that without the batch normalisation all embeddings begin near one
    point, where a triplet loss stays at its margin for long.

    With pre-trained weights the backbone's batch normalisations keep the statistics that they came with
    (`trainable = False`): those of small or class-balanced batches would be worse. With random weights they train.
    Those that train, the head's among them, have a momentum of 0.9: Keras' 0.99 takes hundreds of steps to forget the
    first statistics, and predictions are wrong for so long.

    Args:
        input_shape: shape of one stored image, `(3, height, width)` in channels_first.
        image_size: int, height and width in pixels that the backbone is given.
        fit: `"scale"`, stretched to the square, or `"pad"`, centred on black and made smaller only where too large.
        backbone: str, the name of a constructor in `keras.applications`.
        weights: `"imagenet"`, `"none"` (random), or the path of a weights file of the backbone or of this model.
        frozen_layers: int, how many of the backbone's first layers do not train.
        embedding_size: int, length of an embedding.

    Returns:
        `keras.Model` from uint8 images `(batch, *input_shape)` to unit vectors `(batch, embedding_size)`, float32.

    Raises:
        InputError: if the backbone is unknown, `image_size` too small for it, `frozen_layers` above its depth, or
            the weights cannot be downloaded or are another network's.
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
    return model


def triplet_model(embedding_model):
    """Builds the merge model: one network for the anchors, positives and negatives.

    The three branches run as one batch of 3B images, not as three passes. That takes about half the time, and batch
    normalisation sees one batch with the statistics of all three branches, where three passes would normalise each
    branch by itself.

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


def data_generator(images, labels, batch_size, image_size=224, fit="scale", backbone="ResNet50", seed=0):
    """Generates resized and preprocessed batches without end, for networks that do not resize by themselves.

    The model of `fine_tuned_models` does this on the device, from far smaller uint8 batches.

    Args:
        images: uint8, shape `(n, 3, height, width)`, or `(n, height, width, 3)` under channels_last.
        labels: shape `(n,)` or `(n, ...)`.
        batch_size: int; the last batch of each pass may be smaller.
        image_size: int, height and width of the generated images, in pixels.
        fit: `"scale"` or `"pad"`, as in `fine_tuned_models`.
        backbone: str, whose preprocessing is applied.
        seed: int, of the order, which is new in each pass.

    Yields:
        Tuples of float32 images `(batch, 3, image_size, image_size)` and their labels, every image once a pass.

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
    """Symbolic uint8 images as the float32 input of a backbone, in layers and operations that Keras can save."""
    data_format = keras.config.image_data_format()
    images = keras.ops.cast(images, "float32")  # before resizing, which rounds integers on some backends
    height, width = images.shape[2:] if data_format == "channels_first" else images.shape[1:3]
    if fit == "scale" or max(height, width) > image_size:
        # Not the layer `Resizing`: with it in a model, `model(images)` would run all layers as in training, and move
        # the batch normalisations' statistics.
        images = keras.ops.image.resize(
            images, (image_size, image_size), pad_to_aspect_ratio=fit == "pad", data_format=data_format
        )
    else:
        gaps = (image_size - height, image_size - width)
        padding = tuple((gap // 2, gap - gap // 2) for gap in gaps)
        images = layers.ZeroPadding2D(padding, dtype="float32")(images)
    return sys.modules[_constructor(backbone).__module__].preprocess_input(images)


def _constructor(backbone):
    constructor = getattr(keras.applications, backbone, None)
    if not callable(constructor):
        names = sorted(name for name in dir(keras.applications) if name[0].isupper())
        raise InputError(f"`BACKBONE` must be one of {', '.join(names)}. Received: {backbone!r}")
    return constructor


def _as_pre_trained(network, backbone):
    """The network with the layers that Keras adds for ImageNet weights alone, so that files of weights fit either.

    That is in EfficientNetB0 to B7 a scaling by 1 / sqrt(deviation) behind the normalisation, without weights.
    """
    if not re.fullmatch("EfficientNetB[0-7]", backbone):
        return network
    scale = [1 / math.sqrt(deviation) for deviation in (0.229, 0.224, 0.225)]  # ImageNet's, of red, green and blue

    def call(layer, *given, **named):
        outputs = layer(*given, **named)
        return layers.Rescaling(scale)(outputs) if isinstance(layer, layers.Normalization) else outputs

    return keras.models.clone_model(network, call_function=call)


def _backbone(backbone, image_size, pre_trained):
    channels_first = keras.config.image_data_format() == "channels_first"
    shape = (3, image_size, image_size) if channels_first else (image_size, image_size, 3)
    constructor = _constructor(backbone)
    try:
        network = constructor(include_top=False, weights=None, input_shape=shape)
    except ValueError as error:  # too small, or the architecture has no channels_first
        raise InputError(f"`BACKBONE` {backbone} cannot be built for `IMAGE_SIZE` {image_size}: {error}") from error
    if not pre_trained:
        return _as_pre_trained(network, backbone)
    try:
        return constructor(include_top=False, weights="imagenet", input_shape=shape)
    except Exception as error:  # Keras raises a bare Exception when a download fails
        address = re.search(r"https?://\S+[^\s:]", str(error))
        raise InputError(
            f"The ImageNet weights of {backbone} could not be loaded ({error}). Put "
            f"{address.group() if address else 'their file'} by hand into {cache_folder() / 'models'}. " + NO_DOWNLOAD
        ) from error


def _load_weights(path, network, model):
    """Loads a weights file that is the backbone's or the whole model's."""
    reasons = []
    for target in (network, model):
        try:
            with warnings.catch_warnings(action="ignore"):  # of all that a file for the other of the two does not have
                target.load_weights(path)
            return
        except Exception as error:  # h5py and Keras raise many kinds for a file that does not fit
            reasons.append(f"{target.name}: {' '.join(str(error).split())[:200] or type(error).__name__}")
    raise InputError(f"`WEIGHTS` must be a file of this network's weights. Received: {path!r} ({'; '.join(reasons)})")
