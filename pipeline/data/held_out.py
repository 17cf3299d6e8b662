"""Which classes are held out: never trained on, to measure how the network does on classes that it has never seen."""

from collections.abc import Sequence

from pipeline.data.image_list import HELD_OUT, TEST, normal_name, number_of, shortened
from pipeline.errors import InputError


def with_held_out(
    class_names: Sequence[str],
    labels: Sequence[int],
    parts: Sequence[str],
    test_fraction: float,
    setting: str,
    seed: int,
) -> tuple[list[str], float]:
    """Gives the images of held-out classes the part `"held_out"`.

    Held out are the classes that `setting` says, and those that have test images alone.

    Args:
        class_names: names of the classes.
        labels: int, the class of each image, an index into `class_names`.
        parts: one of `PARTS` for each image.
        test_fraction: float, the fraction of the images to test with, if there are no test images.
        setting: as in `held_out_classes`.
        seed: int, as in `held_out_classes`.

    Returns:
        Tuple of the new parts and the fraction that is still to choose for testing: 0 if the data set has a test set of
        its own, even if all its classes are held out.

    Raises:
        InputError: as `held_out_classes`.
    """
    trained = {label for label, part in zip(labels, parts, strict=True) if part != TEST}
    names = set(held_out_classes([class_names[label] for label in sorted(trained)], setting, seed))
    held_out = {label for label, name in enumerate(class_names) if label not in trained or name in names}
    new_parts = [HELD_OUT if label in held_out else part for label, part in zip(labels, parts, strict=True)]
    return new_parts, 0 if TEST in parts else test_fraction


def held_out_classes(class_names: Sequence[str], setting: str, seed: int) -> list[str]:
    """The classes to hold out.

    Args:
        class_names: names of the classes with training images.
        setting: `"none"`; a number of classes, which the seed chooses by their names; or names, with commas between
            them. A name that is a number has to be followed by a comma.
        seed: int.

    Returns:
        List of str.

    Raises:
        InputError: if there is no class of a name, or fewer than two classes would train.
    """
    rule, setting = "`HELD_OUT_CLASSES` must leave two classes for training", normal_name(setting.strip())
    if setting == "none":
        return []
    if setting.isdecimal():
        chosen = sorted(class_names, key=lambda name: number_of(f"class {name}", seed))[: int(setting)]
        if int(setting) > len(class_names) - 2:
            hint = f"; for the class of this name, write '{setting},'" if setting in class_names else ""
            raise InputError(f"{rule}. Received: {setting} of {len(class_names)} classes{hint}")
        return chosen
    names = [setting] if setting in class_names else [name.strip() for name in setting.split(",") if name.strip()]
    unknown = [name for name in names if name not in class_names]
    if unknown or not names:
        raise InputError(
            '`HELD_OUT_CLASSES` must be "none", a number, or names of classes with training images, with commas '
            f"between them: {shortened(class_names)}. Received: {setting!r}"
        )
    if len(set(names)) > len(class_names) - 2:
        raise InputError(f"{rule}. Received: {setting!r}, of {len(class_names)} classes")
    return list(dict.fromkeys(names))
