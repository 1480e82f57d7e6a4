"""Files of PyTorch are read without PyTorch, and whatever they contain, nothing in it is run."""

import collections
import pickle
import pickletools
import sys
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest

from mnv2 import pretrained
from mnv2.pretrained import pickles, torch
from mnv2.runtime.errors import UserError
from tests.pretrained import torch_files
from tests.pretrained.torch_files import Call, Name, New, Storage, View

WRITERS = {"zip": torch_files.write, "legacy": torch_files.write_legacy}


def read_back(writer, tree, tmp_path):
    path = tmp_path / "weights.pth"
    WRITERS[writer](path, tree)
    return pickles.read(path)


@pytest.mark.parametrize("writer", WRITERS)
def test_tensors_of_every_type_are_read_exactly(writer, tmp_path):
    values = np.random.default_rng(0).normal(size=(2, 3, 4))
    types = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)
    state = {np.dtype(t).name: values.astype(t) for t in types} | {
        "num_batches_tracked": np.array(2**40 + 1, np.int64),
        "bytes": np.arange(256, dtype=np.uint8),
        "flags": np.array([True, False]),
        "empty": np.zeros((0, 3), np.float32),
    }
    found = read_back(writer, state, tmp_path)
    assert found.keys() == state.keys()
    for name, array in state.items():
        read = found[name].numpy()
        assert (read.dtype, read.shape) == (array.dtype, array.shape), name
        np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize("writer", WRITERS)
def test_tensors_that_share_a_storage_or_are_transposed_are_read_exactly(writer, tmp_path):
    memory = np.arange(24, dtype=np.float32)
    storage = Storage(memory)
    tree = {
        "rows": View(storage, 0, (4, 6), (6, 1)),
        "transposed": View(storage, 0, (6, 4), (1, 6)),
        "part": View(storage, 7, (2, 3), (12, 2)),
        "repeated": View(storage, 5, (3, 2), (0, 0)),
    }
    found = {name: tensor.numpy() for name, tensor in read_back(writer, tree, tmp_path).items()}
    matrix = memory.reshape(4, 6)
    np.testing.assert_array_equal(found["rows"], matrix)
    np.testing.assert_array_equal(found["transposed"], matrix.T)
    np.testing.assert_array_equal(found["part"], [[7, 9, 11], [19, 21, 23]])
    np.testing.assert_array_equal(found["repeated"], np.full((3, 2), 5))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_parameters_and_harmless_objects_beside_the_weights_are_read_without_importing(
    protocol, tmp_path
):
    path, kernel = tmp_path / "weights.pth", np.ones((2, 2), np.float32)
    scalar = Call(Name("numpy.core.multiarray", "scalar"), (Name("numpy", "dtype"), b"12345678"))
    tree = {
        "kernel": Call(Name("torch._utils", "_rebuild_parameter"), (kernel, True, {})),
        "ordered": collections.OrderedDict(a=1),
        "default": Call(Name("collections", "defaultdict"), (Name("builtins", "list"),)),
        "size": Call(Name("torch", "Size"), ((2, 3),)),
        "args": New(Name("argparse", "Namespace"), {"lr": 0.1}),
        "config": New(Name("no_such_module.config", "Config"), {"lr": 0.1}),
        "best": scalar,
        "epoch": 3,
        "set": {1},
    }
    torch_files.write(path, tree, protocol)
    found = pickles.read(path)
    np.testing.assert_array_equal(found.pop("kernel").numpy(), kernel)
    assert found == {
        "ordered": {"a": 1}, "default": {}, "size": (2, 3), "epoch": 3,
        "set": pickles.Foreign("builtins.set"),
        "args": pickles.Foreign("argparse.Namespace"),
        "config": pickles.Foreign("no_such_module.config.Config"),
        "best": pickles.Foreign("numpy.core.multiarray.scalar"),
    }  # fmt: skip
    assert "no_such_module" not in sys.modules


def hostile_trees(command):
    """Returns objects that run `command` when they are unpickled."""
    system, builtin = Name("os", "system"), "builtins"
    module = Call(Name("importlib", "import_module"), ("os",))
    chain = Call(Name(builtin, "getattr"), (module, "system"))
    return {
        "os.system": Call(system, (command,)),
        "posix.system": Call(Name("posix", "system"), (command,)),
        "eval": Call(Name(builtin, "eval"), (f"__import__('os').system({command!r})",)),
        "exec of Python 2": Call(Name("__builtin__", "exec"), (f"import os\n{command}",)),
        "getattr chain": Call(chain, (command,)),
        "dotted name": Call(Name("collections", "OrderedDict.__init__.__globals__"), ()),
        "result of a new object": Call(New(Name("subprocess", "Popen"), {}), (command,)),
        "torch.load": Call(Name("torch.storage", "_load_from_bytes"), (b"anything",)),
        "tensor of another type": Call(
            Name("torch._tensor", "_rebuild_from_type_v2"),
            (system, Name("torch", "Tensor"), (command,), {}),
        ),
        "inside a parameter": Call(
            Name("torch._utils", "_rebuild_parameter"), (Call(system, (command,)), True, {})
        ),
        "state of an object": New(Name("argparse", "Namespace"), {"a": Call(system, (command,))}),
    }  # fmt: skip


@pytest.mark.parametrize("writer", [*WRITERS, "plain", "protocol 4"])
@pytest.mark.parametrize("name", hostile_trees(""))
def test_a_file_that_would_call_a_function_is_refused_and_not_run(name, writer, tmp_path):
    created, path = tmp_path / "created", tmp_path / "weights.pth"
    tree = {"a.weight": np.ones((2, 2), np.float32), "b": hostile_trees(f"touch {created}")[name]}
    if writer == "plain":
        with path.open("wb") as file:
            torch_files.Pickler(file).dump(tree["b"])
    elif writer == "protocol 4":
        torch_files.write(path, tree, protocol=4)
    else:
        WRITERS[writer](path, tree)
    with pytest.raises(UserError, match=r"^it holds more than tensors .* it would ") as error:
        torch.read(path)
    assert "\n" not in str(error.value)
    assert not created.exists()


@pytest.mark.parametrize(
    "code",
    [
        b"(S'touch %s'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nX\x02\x00\x00\x00ido.",  # OBJ
        b"cos\nsystem\n(S'touch %s'\ntR.",  # REDUCE, protocol 0
        b"\x80\x02\x82\x01.",  # EXT1, from copyreg's registry
        b"\x80\x05\x97.",  # NEXT_BUFFER
        b"P1\n.",  # PERSID
        b"\x80\x04\x8c\x02os\x8c\x03a\nb\x93)R.",  # a name of two lines
    ],
)
def test_every_instruction_that_calls_is_refused(code, tmp_path):
    created, path = tmp_path / "created", tmp_path / "weights.pth"
    path.write_bytes(code.replace(b"%s", str(created).encode()))
    pickletools.dis(path.read_bytes(), out=(tmp_path / "listing").open("w"))  # it is valid
    with pytest.raises(UserError, match="holds more than tensors") as error:
        pickles.read(path)
    assert "\n" not in str(error.value)
    assert not created.exists()


REFUSED = r"cannot read|holds more than tensors"


def number(value, size=8):
    return value.to_bytes(size, "little")


@pytest.mark.parametrize(
    "code",
    [
        pickle.BINBYTES8 + number(2**33) + b"x",
        pickle.BYTEARRAY8 + number(2**33) + b"x",
        pickle.BINUNICODE8 + number(2**62) + b"x",
        pickle.LONG4 + number(2**31 - 1, 4) + b"x",
        pickle.FRAME + number(2**62) + b"N.",
        pickle.NONE + pickle.LONG_BINPUT + number(2**32 - 1, 4) + b".",
        b"I" + b"9" * 10**5 + b"\n.",
        b"}" + b"(" * 10**5 + b".",
        b"}" + b")" + pickle.TUPLE1 * 10**5 + b"Ns.",  # a key whose hash needs a deep stack
        b"}" + b")" + b"2" + (pickle.TUPLE2 + b"2") * 10**3 + b"0Ns.",  # ... and 2**1000 steps
        b")2" + (pickle.TUPLE2 + b"2") * 10**3 + b"0NR.",  # called
        b"(X\x07\0\0\0storagectorch\nFloatStorage\n)2"  # the name of a storage
        + (pickle.TUPLE2 + b"2") * 10**3
        + b"0X\x03\0\0\0cpuK\x01NtQ.",
        b"]" + b"2a" * 10**4 + b".",  # a list in itself
    ],
    ids=range(13),
)
def test_a_short_file_that_claims_to_be_large_takes_neither_memory_nor_time(code, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"\x80\x02" + code)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=REFUSED) as error, pretrained.reading(path):
            pickles.read(path)
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()
    assert "\n" not in str(error.value)


def test_attributes_that_a_pickle_sets_on_a_known_function_change_nothing(tmp_path):
    """BUILD would set the defaults of the function that it finds."""
    before = vars(pickles).copy()
    function = Name("torch._utils", "_rebuild_tensor_v2")
    with (tmp_path / "weights.pth").open("wb") as file:
        pickler = torch_files.Pickler(file)
        pickler.save(function)
        pickler.save((None, {"__defaults__": (1, 2)}))
        file.write(pickle.BUILD + pickle.STOP)
    with pytest.raises(UserError), pretrained.reading(tmp_path):
        torch.read(tmp_path / "weights.pth")
    assert vars(pickles) == before


def damaged_files(path):
    """Returns functions that write damaged files to `path`."""
    kernel = np.ones((8, 8), np.float32)

    def whole(tree=None):
        torch_files.write(path, {"a": kernel} if tree is None else tree)
        return path.read_bytes()

    def parts():
        whole()
        with zipfile.ZipFile(path) as archive:
            return {n.removeprefix("archive/"): archive.read(n) for n in archive.namelist()}

    def view(*numbers, **options):
        return lambda: whole({"a": View(Storage(kernel, **options), *numbers)})

    def flip():
        data = bytearray(whole())
        data[data.index(kernel.tobytes()) + 5] ^= 1
        path.write_bytes(data)

    def outside():
        torch_files.write(
            path, {"a": View(Storage(kernel, "../" * 9 + "etc/passwd"), 0, (1,), (1,))}
        )
        with zipfile.ZipFile(path) as archive:
            data = archive.read("archive/data.pkl")
        torch_files.write_zip(path, {"data.pkl": data})

    def legacy(cut):
        torch_files.write_legacy(path, {"a": kernel})
        path.write_bytes(path.read_bytes()[:cut])

    return {
        "cut zip": lambda: path.write_bytes(whole()[:-30]),
        "zip without its end": lambda: path.write_bytes(whole()[:200]),
        "cut pickle": lambda: torch_files.write_zip(
            path, {**parts(), "data.pkl": parts()["data.pkl"][:-9]}
        ),
        "cut storage": lambda: torch_files.write_zip(path, {**parts(), "data/0": b"1234"}),
        "no storage": lambda: torch_files.write_zip(path, {"data.pkl": parts()["data.pkl"]}),
        "two pickles": lambda: torch_files.write_zip(
            path, {**parts(), "b/data.pkl": parts()["data.pkl"]}
        ),
        "flipped bit": flip,
        "compressed zeros": lambda: torch_files.write_zip(
            path, {**parts(), "data/0": bytes(10**7)}, compression=zipfile.ZIP_DEFLATED
        ),
        "big-endian": lambda: torch_files.write_zip(path, {**parts(), "byteorder": b"big"}),
        "storage outside of the archive": outside,
        "more elements than the storage": view(0, (9, 8), (8, 1)),
        "an offset behind the end": view(60, (8,), (1,)),
        "a negative stride": view(8, (8,), (-1,)),
        "a negative offset": view(-1, (8,), (1,)),
        "a huge shape": view(0, (2**40, 2**40), (0, 0)),
        "a shape that is no number": view(0, ("8",), (1,)),
        "a wrong count": view(0, (8, 8), (8, 1), count=10**15),
        "cut legacy pickle": lambda: legacy(150),
        "cut legacy storage": lambda: legacy(-1),
    }  # fmt: skip


@pytest.mark.parametrize("name", damaged_files(None))
def test_a_damaged_file_is_rejected_in_one_line(name, tmp_path):
    path = tmp_path / "weights.pth"
    damaged_files(path)[name]()
    message = r"cannot read .*weights\.pth: [A-Za-z]"
    with pytest.raises(UserError, match=message) as error, pretrained.reading(path):
        assert [tensor.numpy() for tensor in pickles.read(path).values()]
    assert "\n" not in str(error.value)


def test_members_of_a_zip_file_that_overlap_are_rejected(tmp_path):
    """Thousands of names for the same bytes would fill the memory from a small file."""
    path = tmp_path / "weights.pth"
    torch_files.write(path, {"a": np.ones((1000,), np.float32)})
    with zipfile.ZipFile(path, "a") as archive:
        original = archive.getinfo("archive/data/0")
        for i in range(1, 100):
            copy = zipfile.ZipInfo(f"archive/data/{i}")
            for field in ("header_offset", "file_size", "compress_size", "CRC"):
                setattr(copy, field, getattr(original, field))
            archive.filelist.append(copy)
            archive.NameToInfo[copy.filename] = copy
        archive._didModify = True
    with pytest.raises(UserError, match="cannot read"), pretrained.reading(path):
        pickles.read(path)
