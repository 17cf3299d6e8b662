"""The embedding network: a pre-trained backbone, partly frozen, with an embedding head."""

import warnings
from collections.abc import Iterator

import keras
import numpy as np
from keras import layers

from pipeline.errors import InputError
from pipeline.networks.backbone import build, data_format_of, is_file, preprocessed
from pipeline.networks.keras_file import has_preprocessing
from pipeline.networks.torch_files import read_tensors
from pipeline.networks.torchvision_networks import set_torch_weights
from pipeline.settings.backbones import TORCH_SUFFIXES

MOMENTUM = 0.9  # of batch normalisations that train: the fraction of their moving statistics that each step keeps


def fine_tuned_models(
    input_shape: tuple[int, int, int],
    image_size: int = 224,
    fit: str = "scale",
    backbone: str = "ResNet50",
    weights: str = "imagenet",
    frozen_layers: int = 15,
    embedding_size: int = 128,
    preprocessing: str = "auto",
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
        backbone: `"SmallConvNet"`, `"AlexNet"`, `"GoogLeNet"`, the name of a constructor in `keras.applications`, or
            the path of a `.keras` file of a network from images to features.
        weights: `"imagenet"`, `"none"` (random), or the path of a weights file of the backbone or of the whole model.
            With a `.keras` file, `"imagenet"` means the weights in that file.
        frozen_layers: int, how many of the backbone's first layers do not train.
        embedding_size: int, length of an embedding.
        preprocessing: what is done to pixels from 0 to 255 before they enter the backbone: `"auto"`, what the named
            backbone expects, and nothing for a `.keras` file; `"none"`; or a mode of
            `keras.applications.imagenet_utils.preprocess_input`: `"tf"`, `"torch"` or `"caffe"`.

    Returns:
        `keras.Model` from uint8 images `(batch, *input_shape)` to unit vectors `(batch, embedding_size)`, float32.

    Raises:
        InputError: if the backbone is unknown, `image_size` is too small for it, `frozen_layers` exceeds its depth, or
            the weights cannot be downloaded or belong to another network.
    """
    network = build(backbone, image_size, pre_trained=weights == "imagenet")
    if frozen_layers > len(network.layers):
        raise InputError(
            f"`FROZEN_LAYERS` must be between 0 and {len(network.layers)} for {backbone}. Received: {frozen_layers}"
        )

    if is_file(backbone) and preprocessing == "auto" and not has_preprocessing(network):
        print("BACKBONE gets pixels from 0 to 255, and has no layer that rescales them: is PREPROCESSING right?")

    images = keras.Input(input_shape, dtype="uint8", name="images")
    data_format = data_format_of(network)
    features = network(_resized_and_preprocessed(images, image_size, fit, backbone, preprocessing, data_format))
    features = _pooling(len(features.shape), data_format)(features)  # shape (batch, channels)
    features = layers.BatchNormalization(momentum=MOMENTUM, dtype="float32", name="pooled_batch_norm")(features)
    features = layers.Dense(embedding_size, dtype="float32", name="embedding")(features)
    embeddings = layers.UnitNormalization(dtype="float32", name="unit_norm")(features)
    model = keras.Model(images, embeddings, name="embedding_model")

    if weights not in ("imagenet", "none"):
        _load_weights(weights, network, model)
        if not all(np.isfinite(each).all() for each in model.get_weights()):
            raise InputError(f"`WEIGHTS` must be a file of finite weights. Received: {weights!r}")
    for layer in _batch_normalisations(network):
        if weights == "none":
            layer.momentum = MOMENTUM
        else:
            layer.trainable = False
    for layer in network.layers[:frozen_layers]:
        layer.trainable = False
    if frozen_layers > len(network.layers) / 2:
        remaining = (
            f"only {len(network.layers) - frozen_layers} layers" if frozen_layers < len(network.layers) else "no layer"
        )
        print(f"Warning: with FROZEN_LAYERS = {frozen_layers}, {remaining} of {backbone} and the embedding head train.")
    return model


def portable_model(
    model: keras.Model,
    image_size: int = 224,
    fit: str = "scale",
    backbone: str = "ResNet50",
) -> keras.Model:
    """Builds the same network for every device: channels_last inside and float32, with the same images as input.

    TensorFlow has channels-first convolutions on few CPUs, and most backends are faster with channels_last there. A
    model whose backbone comes from a `.keras` file is returned as it is.

    Args:
        model: what `fine_tuned_models` has built.
        image_size, fit, backbone: as given to it.

    Returns:
        `keras.Model` with the same weights, from uint8 images `(batch, *input_shape)` to the same embeddings.
    """
    if is_file(backbone):
        return model
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
    data_format = keras.config.image_data_format()
    resize = keras.Model(raw, _resized_and_preprocessed(raw, image_size, fit, backbone, "auto", data_format))
    generator = np.random.default_rng(seed)
    while True:
        order = generator.permutation(len(images))
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            yield keras.ops.convert_to_numpy(resize(images[batch])), labels[batch]


def _resized_and_preprocessed(images, image_size, fit, backbone, preprocessing, data_format):
    """Symbolic uint8 images as the float32 input of a backbone, by layers and operations that Keras can save."""
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
        images = layers.ZeroPadding2D(padding, data_format, dtype="float32")(images)
    return preprocessed(images, backbone, preprocessing, data_format)


def _pooling(axes, data_format):
    """A layer that averages features over positions or tokens; of vectors, it leaves them as they are."""
    settings = {"dtype": "float32", "name": "pooling"}
    if axes == 2:
        return layers.Activation("linear", **settings)
    if axes == 3:  # (batch, tokens, channels)
        return layers.GlobalAveragePooling1D("channels_last", **settings)
    return layers.GlobalAveragePooling2D(data_format, **settings)


def _batch_normalisations(network):
    """Those of nested models and inside other layers too, for which Keras has no public method."""
    return [layer for layer in network._flatten_layers() if isinstance(layer, layers.BatchNormalization)]


def _load_weights(path, network, model):
    """Loads a weights file of the backbone or of the whole model."""
    if path.endswith(TORCH_SUFFIXES):
        set_torch_weights(network, read_tensors(path))
        return
    reasons = []
    for target in (network, model):
        try:
            with warnings.catch_warnings(action="ignore"):  # about layers that the file does not have
                target.load_weights(path)
            return
        except Exception as error:  # h5py and Keras raise many types for a file that does not fit
            reasons.append(f"{target.name}: {' '.join(str(error).split())[:200] or type(error).__name__}")
    if path.endswith(".h5") and not path.endswith(".weights.h5"):
        reasons.append("if Keras 3 has written it, its name must end with .weights.h5")
    raise InputError(f"`WEIGHTS` must be a file of this network's weights. Received: {path!r} ({'; '.join(reasons)})")
