"""PyTorch's files, without PyTorch: every layout of tensors is read, and nothing that a file contains is run."""

import io
import os
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided
from processes import run_python

from pipeline.errors import InputError
from pipeline.networks.torch_files import read_tensors

ORDERED_DICT = b"ccollections\nOrderedDict\n)R"  # an empty one
FORMATS = ["zip", "legacy"]
NUMBERS = np.arange(12, dtype="float32")


def pushed(value):
    """The instructions that make a value, without those that start and end a pickle."""
    return pickle.dumps(value, 2)[2:-1]


def tensor(shape, strides, offset=0, key="0", storage="FloatStorage", count=12, hooks=ORDERED_DICT):
    reference = b"(" + pushed("storage") + f"ctorch\n{storage}\n".encode() + pushed(key) + pushed("cpu") + pushed(count)
    views = pushed(offset) + pushed(shape) + pushed(strides)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + reference + b"tQ" + views + b"\x89" + hooks + b"tR"


def state_dict(**tensors):
    return b"\x80\x02}(" + b"".join(pushed(name) + instructions for name, instructions in tensors.items()) + b"u."


def write(path, layout, content, data=None, sizes=None, **more):
    """A file in one of PyTorch's formats, from the pickle of its object and the numbers of each storage."""
    data = {"0": NUMBERS.tobytes()} if data is None else data
    if layout == "zip":
        with zipfile.ZipFile(path, "w", more.pop("compression", zipfile.ZIP_STORED)) as archive:
            archive.writestr("network/data.pkl", content)
            for name, each in {**{f"data/{key}": each for key, each in data.items()}, **more}.items():
                archive.writestr(f"network/{name}", each)
        return path
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    before = [pickle.dumps(each, 2) for each in (0x1950A86A20F9469CFC6C, 1001, system)]
    with open(path, "wb") as file:
        file.write(b"".join([*before, content, pickle.dumps(sorted(data), 2)]))
        for key in sorted(data):
            file.write(struct.pack("<q", (sizes or {}).get(key, 12)) + data[key])
    return path


def refused(path, *words):
    """The file is refused, in one sentence with these words."""
    with pytest.raises(InputError) as caught:
        read_tensors(path)
    message = str(caught.value)
    assert "torch.save(model.state_dict())" in message and str(path) in message and "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize("layout", FORMATS)
def test_views_of_one_storage_are_read_with_their_shapes_strides_and_offsets(layout, tmp_path):
    views = {
        "whole": ((3, 4), (4, 1), 0),
        "transposed": ((4, 3), (1, 4), 0),
        "every_other": ((2, 3), (6, 2), 1),
        "last": ((1,), (1,), 11),
        "scalar": ((), (), 7),
        "repeated": ((2, 3), (0, 1), 2),
        "empty": ((0, 5), (5, 1), 0),
    }
    content = state_dict(**{name: tensor(*view) for name, view in views.items()})
    tensors = read_tensors(write(tmp_path / "weights.pth", layout, content))
    assert list(tensors) == list(views)
    for name, (shape, strides, offset) in views.items():
        expected = as_strided(NUMBERS[offset:], shape, [4 * stride for stride in strides])
        np.testing.assert_array_equal(tensors[name], expected, name)
        assert tensors[name].dtype == "float32"
    assert tensors["scalar"] == 7
    assert np.shares_memory(tensors["whole"], tensors["transposed"])


@pytest.mark.parametrize("layout", FORMATS)
def test_a_file_with_several_storages_gives_each_tensor_its_own(layout, tmp_path):
    content = state_dict(a=tensor((2,), (1,), key="1", count=2), b=tensor((3,), (1,), 0, "0", "LongStorage", 3))
    data = {"0": np.array([1, -2, 3], "<i8").tobytes(), "1": np.array([0.5, 2], "<f4").tobytes()}
    tensors = read_tensors(write(tmp_path / "weights.pth", layout, content, data, {"0": 3, "1": 2}))
    assert tensors["a"].tolist() == [0.5, 2]
    assert tensors["b"].tolist() == [1, -2, 3]


def test_files_of_big_endian_computers_are_read(tmp_path):
    content, data = state_dict(a=tensor((12,), (1,))), {"0": NUMBERS.astype(">f4").tobytes()}
    np.testing.assert_array_equal(
        read_tensors(write(tmp_path / "a", "zip", content, data, byteorder=b"big"))["a"], NUMBERS
    )


@pytest.mark.parametrize("layout", FORMATS)
def test_what_pytorch_saves_is_read(layout, tmp_path):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2))
    network[2].weight = network[2].bias = torch.nn.Parameter(torch.randn(5))  # shared
    state = network.state_dict()
    integers = torch.arange(24).reshape(4, 6)
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.float64):
        state[str(dtype)] = integers.to(dtype)
    state["bool"] = integers % 3 == 0
    state["channels_last"] = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    state["part"] = integers.T[1:5:2, 1:]
    state["parameter"] = torch.nn.Parameter(torch.randn(3))
    state["nothing"] = torch.empty(0, 3)
    for protocol in (2, 4):
        path = tmp_path / f"{protocol}.pth"
        torch.save(state, path, pickle_protocol=protocol, _use_new_zipfile_serialization=layout == "zip")
        tensors = read_tensors(path)
        assert list(tensors) == list(state)
        for name, expected in state.items():
            expected = expected.detach().numpy()
            assert (tensors[name].shape, tensors[name].dtype) == (expected.shape, expected.dtype), name
            np.testing.assert_array_equal(tensors[name], expected, name)


class Command:
    """Pickled as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("layout", FORMATS)
def test_nothing_in_a_file_is_called(layout, tmp_path):
    trace = tmp_path / "trace"
    for number, command in enumerate(
        [
            Command(os.system, f"touch {trace}"),
            Command(eval, f"open({str(trace)!r}, 'w')"),
            Command(io.open, str(trace), "w"),
        ]
    ):
        for protocol in (2, 4):
            content = pickle.dumps({"a": command}, protocol)
            refused(write(tmp_path / f"{number}-{protocol}", layout, content), "refers to", command.call[0].__name__)
    assert not trace.exists()


def test_other_objects_of_pytorch_are_refused(tmp_path):
    torch = pytest.importorskip("torch")
    network = torch.nn.Linear(2, 3)
    state = network.state_dict()
    for name, content, word in [
        ("model", network, "Linear"),
        ("checkpoint", {"state_dict": state, "epoch": 3}, "other objects"),
        ("list", list(state.values()), "other objects"),
        ("tensor", state["weight"], "other objects"),
        ("type", {"a": torch.zeros(2, dtype=torch.complex64)}, "Complex"),
        ("view", {"a": torch.zeros(2, dtype=torch.complex64).conj()}, ""),
        ("sparse", {"a": torch.eye(2).to_sparse()}, "refers to"),
    ]:
        for layout in FORMATS:
            torch.save(content, tmp_path / name, _use_new_zipfile_serialization=layout == "zip")
            refused(tmp_path / name, word)


@pytest.mark.parametrize("layout", FORMATS)
def test_tensors_beyond_their_numbers_are_refused(layout, tmp_path):
    for number, (shape, strides, offset) in enumerate(
        [
            ((13,), (1,), 0),
            ((12,), (1,), 1),
            ((2, 3), (10, 1), 0),
            ((2**40, 2**40), (0, 0), 0),  # without strides no number is out of bounds
            ((2**62, 4), (0, 0), 0),
            ((2**31,), (2**31,), 0),
            ((10**30,), (1,), 0),
            ((0, 10**30), (1, 1), 0),
            ((2,), (-1,), 1),
            ((2,), (1,), -1),
            ((-1, -3), (1, 1), 0),
            ((3, 4), (1,), 0),
            ((1,) * 100, (1,) * 100, 0),
            ((3.0,), (1,), 0),
            (("a",), (1,), 0),
        ]
    ):
        refused(write(tmp_path / str(number), layout, state_dict(a=tensor(shape, strides, offset))), "tensor")


@pytest.mark.parametrize("layout", FORMATS)
def test_a_small_file_never_needs_much_memory(layout, tmp_path):
    files = [
        state_dict(a=tensor((12,), (1,), count=2**50)),
        b"\x80\x02K\x01r\xff\xff\xff\x7f.",  # one object, remembered as the two-billionth
        b"\x80\x02B\xff\xff\xff\x7f.",
        b"\x80\x02\x8b\xff\xff\xff\x7f1.",
        b"\x80\x04\x8e" + struct.pack("<q", 2**45) + b".",
        b"\x80\x05\x96" + struct.pack("<q", 2**45) + b".",
        b"\x80\x02" + pushed([]) + b"q\x00" + b"h\x00h\x00\x86q\x00" * 1000 + b".",  # 2 ** 1000 lists if copied
        b"\x80\x02" + b"(" * 20_000 + b"t" * 20_000 + b".",
    ]
    tracemalloc.start()
    try:
        for number, content in enumerate(files):
            refused(write(tmp_path / str(number), layout, content))
        refused(write(tmp_path / "count", "legacy", state_dict(a=tensor((12,), (1,))), sizes={"0": 2**50}))
        assert tracemalloc.get_traced_memory()[1] < 200e6
    finally:
        tracemalloc.stop()


def test_deeply_nested_objects_are_refused(tmp_path):
    """Hashing such a key would overflow the stack, and with it end Python."""
    content = b"\x80\x02}(" + b")" + b"\x85" * 200_000 + b"K\x01u."
    refused(write(tmp_path / "nested", "zip", content), "keys")


def test_compressed_files_are_refused(tmp_path):
    content, zeros = state_dict(a=tensor((10**7,), (1,), count=10**7)), bytes(4 * 10**7)
    refused(write(tmp_path / "bomb", "zip", content, {"0": zeros}, compression=zipfile.ZIP_DEFLATED), "compressed")


@pytest.mark.parametrize("layout", FORMATS)
def test_wrong_pickles_are_refused(layout, tmp_path):
    good = tensor((12,), (1,))
    for number, (content, word) in enumerate(
        [
            (state_dict(a=tensor((12,), (1,), hooks=b"}" + pushed(1) + pushed(2) + b"s")), "keys"),
            (state_dict(a=tensor((12,), (1,), hooks=b"}" + pushed("a") + pushed(2) + b"s")), "hooks"),
            (state_dict(a=good, b=tensor((12,), (1,), storage="IntStorage")), "two types"),
            (state_dict(a=tensor((12,), (1,), storage="QUInt8Storage")), "QUInt8Storage"),
            (state_dict(a=tensor((12,), (1,), key="missing")), ""),
            (b"\x80\x02}" + pushed(1) + good + b"s.", "keys"),
            (state_dict(a=good, b=pushed(5)), "other objects"),
            (b"\x80\x02" + good + b".", "other objects"),
            (b"\x80\x02}(" + pushed("a") + b"u.", ""),
            (b"\x80\x02R.", ""),
            (b"\x80\x02}h\x07.", ""),
            (b"\x80\x02" + b"ccollections\nOrderedDict\n" + pushed(([["a", 1]],)) + b"R.", ""),
            (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "NEWOBJ"),
            (b"\x80\x02ccollections\nCounter\n)R.", "Counter"),
            (b"cos\nsystem\n(Vtrue\ntR.", "os.system"),
            (b"", ""),
        ]
    ):
        refused(write(tmp_path / str(number), layout, content), word)


@pytest.mark.parametrize("layout", FORMATS)
def test_files_cut_off_anywhere_are_refused(layout, tmp_path):
    content = state_dict(a=tensor((3, 4), (4, 1)), b=tensor((12,), (1,)))
    whole = write(tmp_path / "whole", layout, content).read_bytes()
    assert set(read_tensors(tmp_path / "whole")) == {"a", "b"}
    cut = tmp_path / "cut"
    for length in range(len(whole)):
        cut.write_bytes(whole[:length])
        refused(cut)


@pytest.mark.parametrize("layout", FORMATS)
def test_corrupt_files_give_tensors_or_an_error_and_nothing_else(layout, tmp_path):
    content = state_dict(a=tensor((3, 4), (4, 1)), b=tensor((12,), (1,)))
    whole = np.frombuffer(write(tmp_path / "whole", layout, content).read_bytes(), "uint8")
    generator, corrupt, errors = np.random.default_rng(0), tmp_path / "corrupt", 0
    for _ in range(250):
        data = whole.copy()
        places = generator.integers(0, len(data), generator.integers(1, 4))
        data[places] = generator.integers(0, 256, len(places))
        corrupt.write_bytes(data.tobytes())
        try:
            for each in read_tensors(corrupt).values():
                assert each.size <= len(NUMBERS) * 4
                each.sum()  # reads all numbers
        except InputError:
            errors += 1
    assert errors > 50


def test_files_of_other_kinds_are_refused(tmp_path):
    for name, data in [
        ("empty", b""),
        ("hdf5", b"\x89HDF\r\n\x1a\n" + bytes(100)),
        ("text", b"weights\n"),
        ("PK", b"PK\x03\x04"),
    ]:
        (tmp_path / name).write_bytes(data)
        refused(tmp_path / name)
    np.savez(tmp_path / "arrays.npz", a=NUMBERS)
    refused(tmp_path / "arrays.npz", "not PyTorch's")
    refused(tmp_path / "missing")
    refused(tmp_path)


def test_pytorch_is_not_imported(tmp_path):
    path = write(tmp_path / "weights.pth", "zip", state_dict(a=tensor((12,), (1,))))
    code = "import sys; from pipeline.networks.torch_files import read_tensors"
    code += "; print(read_tensors(sys.argv[1])['a'].sum())"
    result = run_python("-c", f"{code}; assert 'torch' not in sys.modules", str(path))
    assert result.stdout.strip() == "66.0", result.stderr
