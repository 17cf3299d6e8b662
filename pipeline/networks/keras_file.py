"""A user's network, from images to features, in a file that Keras has saved."""

import warnings

import keras

from pipeline.errors import InputError

NORMALISING = (keras.layers.Rescaling, keras.layers.Normalization)


def load(path: str, image_size: int) -> keras.Model:
    """Loads a network and checks that it can serve as a backbone.

    Args:
        path: path of a `.keras` file. It is loaded in safe mode: code in it does not run.
        image_size: int, height and width in pixels that it will be given.

    Returns:
        `keras.Model` from images `(batch, height, width, 3)` or `(batch, 3, height, width)` to features of shape
        `(batch, size)`, `(batch, tokens, size)` or, with the axes of the images, `(batch, height, width, channels)`.

    Raises:
        InputError: if it cannot be loaded, or its input or output has another shape; the message names the shapes.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            network = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises many types, also for layers that this process does not know
        reason = " ".join(str(error).split()).split(". ")[0][:300] or type(error).__name__
        raise InputError(
            "`BACKBONE` must be a file that Keras can load in safe mode, with layers of Keras alone or of packages "
            f"that main imports. Received: {path!r} ({reason})"
        ) from error
    inputs, outputs = (getattr(network, name, None) or [] for name in ("inputs", "outputs"))
    shapes = [tuple(each.shape) for each in inputs], [tuple(each.shape) for each in outputs]
    sides = _sides(shapes[0][0]) if len(inputs) == 1 else None
    of = [_container(network, name) for name in ("input", "output")]
    fits = sides is not None and not any(of) and len(outputs) == 1
    if not fits or len(shapes[1][0]) not in (2, 3, 4) or shapes[1][0][-1] is None:
        raise InputError(
            "`BACKBONE` must be a network with one input, images of shape (batch, height, width, 3) or (batch, 3, "
            "height, width), and one output, features of shape (batch, size), (batch, tokens, size) or (batch, height, "
            f"width, channels). Received: {path!r}, from {of[0]}{_text(shapes[0])} to {of[1]}{_text(shapes[1])}"
        )
    if any(side not in (None, image_size) for side in sides):
        height, width = sides
        advice = f"`IMAGE_SIZE` must be {height} for it" if height == width else "its images must be square"
        raise InputError(
            f"`BACKBONE` {path!r} takes images of {height}×{width} pixels: {advice}. Received: {image_size}"
        )
    if getattr(network.layers[-1], "activation", None) is keras.activations.softmax:
        print(
            f"Warning: BACKBONE {path!r} ends with a softmax: its outputs are probabilities of its own classes. "
            "Features of a layer before it are usually better."
        )
    return network


def has_preprocessing(network: keras.Model) -> bool:
    """Whether a layer of the network, or of a network in it, normalises or rescales its input."""
    return any(
        isinstance(layer, NORMALISING) or (isinstance(layer, keras.Model) and has_preprocessing(layer))
        for layer in network.layers
    )


def _container(network, name):
    """What holds the only input or output if it is no tensor, such as `"a dict of "`."""
    value = getattr(network, name, None)
    return f"a {type(value).__name__} of " if isinstance(value, (dict, list, tuple)) and len(value) == 1 else ""


def _sides(shape):
    """Height and width of images of this shape, None for another shape."""
    if len(shape) != 4 or 3 not in (shape[1], shape[3]):
        return None
    return shape[1:3] if shape[3] == 3 else shape[2:]


def _text(shapes):
    return " and ".join(str(each).replace("None", "any") for each in shapes) or "nothing that is fixed"
