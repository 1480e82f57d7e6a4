"""Writes files as torch.save does, without PyTorch: also damaged and hostile ones."""

import collections
import io
import pickle
import zipfile
from typing import NamedTuple

import ml_dtypes
import numpy as np

STORAGES = {
    np.dtype(np.float64): "DoubleStorage", np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float16): "HalfStorage", np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
    np.dtype(np.int64): "LongStorage", np.dtype(np.uint8): "ByteStorage",
    np.dtype(np.bool_): "BoolStorage",
}  # fmt: skip


class Name(NamedTuple):
    """A class or function, which need not exist."""

    module: str
    name: str


class Call(NamedTuple):
    """A call that takes place when the file is unpickled."""

    function: object
    arguments: tuple


class New(NamedTuple):
    """An object of a class, with its attributes."""

    kind: Name
    attributes: dict


class Storage:
    """Memory that several tensors can share, with its name in the file."""

    def __init__(self, array, key=None, count=None):
        self.array, self.key, self.count = np.ascontiguousarray(array).ravel(), key, count


class View(NamedTuple):
    """A tensor in a storage; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple
    strides: tuple


class Pickler(pickle._Pickler):  # the one in Python, whose methods can be overridden
    def __init__(self, file, protocol=2):
        super().__init__(file, protocol)
        self.storages = {}

    def persistent_id(self, value):
        if not isinstance(value, Storage):
            return None
        key = value.key or str(len(self.storages))
        value.key = key
        self.storages[key] = value
        kind = Name("torch", STORAGES[value.array.dtype])
        count = len(value.array) if value.count is None else value.count
        return ("storage", kind, key, "cpu", count, *self.view_metadata)

    view_metadata = ()

    def save(self, value, save_persistent_id=True):
        match value:
            case np.ndarray():
                strides = tuple(stride // value.itemsize for stride in _c_strides(value))
                self.save(View(Storage(value), 0, value.shape, strides))
            case View():
                arguments = (*value, False, collections.OrderedDict())
                self.save(Call(Name("torch._utils", "_rebuild_tensor_v2"), arguments))
            case Name():
                if self.proto >= 4:
                    self.save(value.module)
                    self.save(value.name)
                    self.write(pickle.STACK_GLOBAL)
                else:
                    self.write(pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode())
            case Call():
                self.save(value.function)
                self.save(tuple(value.arguments))
                self.write(pickle.REDUCE)
            case New():
                self.save(value.kind)
                self.write(pickle.EMPTY_TUPLE + pickle.NEWOBJ)
                self.save(value.attributes)
                self.write(pickle.BUILD)
            case _:
                super().save(value, save_persistent_id)


class LegacyPickler(Pickler):
    view_metadata = (None,)


def write(path, tree, protocol=2):
    """Writes the zip file of PyTorch 1.6 and later. Arrays in `tree` become tensors."""
    file = io.BytesIO()
    pickler = Pickler(file, protocol)
    pickler.dump(tree)
    members = {f"data/{key}": storage.array.tobytes() for key, storage in pickler.storages.items()}
    write_zip(path, {"data.pkl": file.getvalue(), **members, "version": b"3\n"})


def write_zip(path, members, folder="archive/", compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(folder + name, data)


def write_legacy(path, tree):
    """Writes the pickles and the storages of PyTorch before 1.6."""
    file = io.BytesIO()
    for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
        Pickler(file).dump(value)
    pickler = LegacyPickler(file)
    pickler.dump(tree)
    Pickler(file).dump(list(pickler.storages))
    for storage in pickler.storages.values():
        file.write(len(storage.array).to_bytes(8, "little") + storage.array.tobytes())
    path.write_bytes(file.getvalue())


def _c_strides(array):
    return np.empty(array.shape, array.dtype).strides
