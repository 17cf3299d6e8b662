"""A finished run and the path of an export, checked before Keras is imported, which takes seconds."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.run_folder import RESULTS, read_run
from pipeline.settings.options import STARTED_WITH


def constants_of_finished(folder: str | os.PathLike) -> dict[str, Any]:
    """The constants of the finished run in a folder, as its constants.json has them.

    Raises:
        InputError: if there is none, or files that a classifier needs are missing.
    """
    folder = Path(folder)
    rule = "`RUN_FOLDER` must be the folder of a finished run of init.py"
    if not folder.is_dir():
        raise InputError(f"{rule}. Received: {str(folder)!r}, which is no folder")
    missing = [name for name in ("constants.json", *RESULTS) if not (folder / name).exists()]
    try:
        stored, report = read_run(folder)
    except InputError as error:  # with advice for training
        raise InputError(f"{rule}. Received: {str(folder)!r}; {error.__cause__}") from error
    if stored is not None and not report:
        raise InputError(f"{rule}. Received: {str(folder)!r}, whose run is not finished: it has no report.txt")
    if missing:
        raise InputError(f"{rule}. Received: {str(folder)!r} without {', '.join(missing)}")
    neighbours, value_range = stored.get("NEIGHBOURS"), stored.get(STARTED_WITH, {}).get("value range")
    is_range = isinstance(value_range, list) and len(value_range) == 2 and {*map(type, value_range)} <= {int, float}
    is_range = is_range and -1e38 < value_range[0] <= value_range[1] < 1e38  # of float32
    if (
        type(neighbours) is not int
        or neighbours < 1
        or stored.get("FIT", "scale") not in ("scale", "pad")
        or not (value_range is None or is_range)
    ):
        raise InputError(f"{rule}. Received: {str(folder / 'constants.json')!r} with a wrong NEIGHBOURS, FIT or range")
    return stored


def check_export_path(path: str | None) -> None:
    """Raises InputError unless a path ends with `.onnx`, or can be a new folder without a suffix; None is allowed.

    Also if a package that writes or checks ONNX is missing.
    """
    if path is None:
        return
    is_onnx = Path(path).suffix.lower() == ".onnx"
    if Path(path).is_dir() or (not is_onnx and (Path(path).suffix or Path(path).exists())):
        raise InputError(
            f"`--export` must be a file that ends with .onnx, or a new folder without a suffix. Received: {path!r}"
        )
    if not os.access(Path(path).absolute().parent, os.W_OK):
        raise InputError(f"`--export` must be in an existing folder that is writable. Received: {path!r}")
    missing = [name for name in ("onnx", "onnxruntime") if is_onnx and find_spec(name) is None]
    if missing:
        packages = "pip install onnx onnxruntime tf2onnx (PyTorch needs no tf2onnx)"
        raise InputError(f"`--export` of ONNX needs the package {missing[0]}: {packages}")
