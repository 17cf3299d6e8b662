"""Reads the tensors of a file that PyTorch has saved, without PyTorch and without running anything that is in the file.

Such a file is a pickle that refers to numbers elsewhere in the file. Python's unpickler would not be safe even if it
allowed nothing but the names below: a few bytes make it reserve gigabytes, a deeply nested key overflows its stack. So
the instructions that build tensors are carried out here, and all others are refused.
"""

import io
import math
import os
import pickletools
import struct
import zipfile
from collections import namedtuple
from pathlib import Path

import numpy as np

from pipeline.errors import InputError

LARGEST_PICKLE = 2**22  # bytes; that of a network with 1,000 tensors has about 200,000
TYPES = {"Double": "f8", "Float": "f4", "Half": "f2", "Long": "i8", "Int": "i4", "Short": "i2", "Char": "i1"}
STORAGES = {f"torch.{name}Storage": np.dtype(code) for name, code in {**TYPES, "Byte": "u1", "Bool": "?"}.items()}
NAMES = {"collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter", *STORAGES}
LITERALS = {"NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
LITERALS |= {"BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING"}  # Python 2 saved the last two
EMPTY = {"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}

Storage = namedtuple("Storage", "key dtype count")
Tensor = namedtuple("Tensor", "storage offset shape strides")  # offset and strides in numbers, not in bytes


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """Reads a file of `torch.save(model.state_dict())`, in PyTorch's zip format or in the format before version 1.6.

    Nothing that the file names is imported or called, and the memory needed is bounded by a multiple of its size.

    Args:
        path: path of the file.

    Returns:
        The tensors by name, in their shapes and types, read-only. Those that share numbers in the file share memory.

    Raises:
        InputError: if the file cannot be read, is corrupt, or is anything else, such as a whole model.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            read = _read_zip if file.read(4) == b"PK\x03\x04" else _read_legacy
            file.seek(0)
            content, numbers = read(file, size)
        if not isinstance(content, dict) or not all(isinstance(each, Tensor) for each in content.values()):
            raise ValueError("it has other objects than named tensors; of a checkpoint, save its state_dict alone")
        return {name: _as_array(tensor, numbers.get(tensor.storage.key, ())) for name, tensor in content.items()}
    except Exception as error:  # a corrupt file can raise any type
        is_clear = isinstance(error, (ValueError, OSError, zipfile.BadZipFile))
        reason = " ".join(str(error).split())[:200] if is_clear else "it is corrupt"
        must_be = "`WEIGHTS` must be a file of PyTorch's `torch.save(model.state_dict())`"
        raise InputError(f"{must_be}. Received: {os.fspath(path)!r} ({reason})") from error


def _read_zip(file, size):
    """The object of a zip file, and the numbers of its storages by their keys."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        # PyTorch never compresses. A few compressed bytes can become gigabytes, and so can entries that overlap.
        if any(entry.compress_type for entry in entries) or sum(entry.file_size for entry in entries) > size:
            raise ValueError("it is a zip file whose entries are compressed or overlap")
        folders = [name.removesuffix("data.pkl") for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(folders) != 1:
            raise ValueError("it is a zip file, but not PyTorch's")
        content, storages = _unpickled(io.BytesIO(archive.read(f"{folders[0]}data.pkl")[:LARGEST_PICKLE]))
        has_order = f"{folders[0]}byteorder" in archive.namelist()  # since PyTorch 2.1
        order = ">" if has_order and archive.read(f"{folders[0]}byteorder") == b"big" else "<"
        numbers = {}
        for key, storage in storages.items():
            data = archive.read(f"{folders[0]}data/{key}")
            numbers[key] = np.frombuffer(data, storage.dtype.newbyteorder(order))
    return content, numbers


def _read_legacy(file, size):
    """The same of a file before version 1.6: five pickles, then the numbers of one storage after the other."""
    pickles = io.BytesIO(file.read(LARGEST_PICKLE))
    if (0x1950A86A20F9469CFC6C).to_bytes(10, "little") not in pickles.getvalue()[:32]:
        raise ValueError("it is in neither of PyTorch's formats")
    (_, _), (protocol, _), (_, _), (content, storages), (keys, _) = (_unpickled(pickles) for _ in range(5))
    if protocol != 1001:
        raise ValueError("it is of another version of PyTorch's format")
    file.seek(pickles.tell())
    numbers = {}
    for key in keys:
        if not isinstance(key, str) or key not in storages:
            raise ValueError("it has numbers that belong to no tensor")
        dtype = storages[key].dtype.newbyteorder("<")  # also where the computer that wrote it is big-endian
        (count,) = struct.unpack("<q", file.read(8))
        if not 0 <= count * dtype.itemsize <= size - file.tell():
            raise ValueError("it is cut off")
        numbers[key] = np.frombuffer(file.read(count * dtype.itemsize), dtype)
    return content, numbers


def _unpickled(stream):
    """The object of the pickle that starts here, and the storages that its tensors refer to, by their keys."""
    stack, marks, memo, storages = [], [], {}, {}

    def taken(count=None):
        """The last objects of the stack: so many, or those after the last mark."""
        start = marks.pop() if count is None else len(stack) - count
        objects = stack[start:]
        del stack[start:]
        return objects

    for code, argument, _ in pickletools.genops(stream):
        match code.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop(), storages
            case literal if literal in LITERALS:
                stack.append(argument)
            case empty if empty in EMPTY:
                stack.append(EMPTY[empty]())
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(taken()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(taken(int(code.name[-1]))))
            case "APPEND" | "APPENDS":
                objects = taken(1) if code.name == "APPEND" else taken()
                stack[-1].extend(objects)
            case "SETITEM" | "SETITEMS":
                objects = taken(2) if code.name == "SETITEM" else taken()
                if not all(isinstance(key, str) for key in objects[::2]):
                    raise ValueError("it has a dict whose keys are no strings")
                stack[-1].update(zip(objects[::2], objects[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                memo[len(memo) if argument is None else argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL" | "STACK_GLOBAL":
                name = ".".join(taken(2) if argument is None else argument.split(" "))
                if name not in NAMES:
                    raise ValueError(f"it refers to {name}")
                stack.append(name)
            case "BINPERSID":
                storage = _storage(stack.pop())
                if storages.setdefault(storage.key, storage) != storage:
                    raise ValueError("it has numbers of two types")
                stack.append(storage)
            case "REDUCE":
                stack.append(_called(*taken(2)))
            case "BUILD":  # attributes of an ordered dict: the versions of the layers
                stack.pop()
            case _:
                raise ValueError(f"it has a pickle with {code.name}")


def _storage(reference):
    match reference:
        case ("storage", str(name), str(key), _, int(count), *view) if name in STORAGES and view in ([], [None]):
            return Storage(key, STORAGES[name], count)
    raise ValueError("it refers to something else than numbers")


def _called(function, arguments):
    match function, arguments:
        case "collections.OrderedDict", ():
            return {}
        case "torch._utils._rebuild_tensor_v2", (
            Storage() as storage,
            offset,
            tuple(shape),
            tuple(strides),
            _,
            {} as hooks,
        ):
            if not hooks:
                return Tensor(storage, offset, shape, strides)
        case "torch._utils._rebuild_parameter", (Tensor() as tensor, _, {} as hooks):
            if not hooks:
                return tensor
    raise ValueError("it has a tensor with hooks, or of an unknown kind")


def _as_array(tensor, numbers):
    """The view of the numbers of a storage. It may skip and repeat some, but not reach beyond them, or be larger."""
    storage, offset, shape, strides = tensor
    sizes = (offset, *shape, *strides)
    if len(shape) > 32 or len(shape) != len(strides) or not all(type(n) is int and 0 <= n < 2**62 for n in sizes):
        raise ValueError("it has a tensor of an impossible shape")
    end = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True)) + 1
    if len(numbers) != storage.count or math.prod(shape) > len(numbers) or (end > len(numbers) and 0 not in shape):
        raise ValueError("it has a tensor that is larger than its numbers")
    if 0 in shape:
        return np.zeros(shape, storage.dtype)
    itemsize = numbers.itemsize
    return np.ndarray(shape, numbers.dtype, numbers, offset * itemsize, [stride * itemsize for stride in strides])
