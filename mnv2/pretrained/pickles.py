"""Reads the tensors of files that PyTorch saved, without PyTorch and without running anything.

A pickle is a program for a stack machine. The machine is that of the standard library, but whatever
a file names becomes a `Foreign`, which, called, gives tensors and plain containers only.

PyTorch 1.6 and later write a zip file: the pickle `data.pkl`, and one member per storage. Earlier
versions wrote pickles one after another, and then the storages.
"""

import dataclasses
import functools
import io
import math
import pickle
import re
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

from mnv2.runtime.errors import UserError
from mnv2.runtime.terminal import as_line

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C  # the first pickle of a file from before PyTorch 1.6
BIG_ENDIAN = "it was written on a big-endian machine"

# The types of tensors by PyTorch's name, and of storages by the name of their class.
DTYPES = {
    name: np.dtype(name)
    for name in (
        *("float64", "float32", "float16", "complex64", "complex128", "bool", "uint8", "int8"),
        *("int16", "int32", "int64", "uint16", "uint32", "uint64"),
    )
} | {"bfloat16": np.dtype(ml_dtypes.bfloat16)}
STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "LongStorage": "int64", "IntStorage": "int32",
    "ShortStorage": "int16", "CharStorage": "int8", "ByteStorage": "uint8",
    "BoolStorage": "bool", "UntypedStorage": "uint8",
}  # fmt: skip

CONTAINERS = ("collections.OrderedDict", "collections.defaultdict", "collections.Counter")
WRAPPERS = (  # what they get is what they give, as far as weights are concerned
    *("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"),
    *("torch.Size", "builtins.list", "builtins.tuple"),
)
# What harmless objects beside the weights would call. Their results are left out.
HARMLESS = re.compile(
    r"numpy\._?core\.(multiarray\.(scalar|_reconstruct)|numeric\._frombuffer)|numpy\.dtype"
    r"|datetime\.\w+|pathlib\.(_local\.)?\w+|_codecs\.encode|copyreg\._reconstructor"
    r"|torch\.device|builtins\.(bytearray|complex|frozenset|range|set|slice)"
)
OLD_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # their names in Python 2


@dataclasses.dataclass(frozen=True)
class Foreign:
    """A class or function that a pickle names, or an object of such a class. It is not imported.

    What a pickle puts into it is left out.
    """

    name: str

    def append(self, *_: Any) -> None:
        pass

    extend = add = __setitem__ = append

    def __call__(self, *arguments: Any) -> Any:
        """Returns what a call gives if it makes a tensor or a container; calls nothing."""
        name = self.name
        if re.fullmatch(r"torch\._utils\._rebuild_tensor(_v[23])?", name):
            storage, offset, shape, strides, *others = arguments
            kind = others[2].name if name.endswith("_v3") else f"torch.{storage.dtype}"
            if (dtype := DTYPES.get(kind.removeprefix("torch."))) is None:
                raise _Refused(f"need the type {kind}")
            return Tensor(storage, offset, tuple(shape), tuple(strides), dtype)
        if name == "torch._tensor._rebuild_from_type_v2":  # a tensor with attributes
            function, _, inner = arguments[:3]
            return function(*inner)
        if name in CONTAINERS:
            pairs = arguments[-1] if arguments and isinstance(arguments[-1], list) else []
            container = _Dict(pairs)
            pairs.clear()  # else a small file could ask for many copies
            return container
        if name in WRAPPERS:
            return arguments[0] if arguments else ()
        if HARMLESS.fullmatch(name):
            return self
        raise _Refused(f"call {name}")


@dataclasses.dataclass(eq=False)
class Storage:
    """Memory of `size` bytes that tensors share; it is read when a tensor is."""

    dtype: np.dtype
    size: int
    read: Callable[[], bytes]

    def contents(self) -> bytes:
        """Returns the bytes. Raises ValueError if the file has more or fewer."""
        contents = self.read()
        if len(contents) != self.size:
            raise ValueError(f"a storage does not have {self.size} bytes")
        return contents


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor whose storage is not read yet; offset and strides count elements of `dtype`."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype

    def __post_init__(self) -> None:
        numbers = (self.offset, *self.shape, *self.strides)
        whole = all(type(number) is int for number in numbers)
        if not isinstance(self.storage, Storage) or not whole:
            raise ValueError("a tensor does not have numbers as shape")
        if math.prod(self.shape) > 2**40:
            raise ValueError(f"a tensor has the shape {self.shape}")

    def numpy(self) -> np.ndarray:
        """Reads the tensor. Raises ValueError if it does not fit into its storage."""
        if 0 in self.shape:
            return np.zeros(self.shape, self.dtype)
        elements = np.frombuffer(self.storage.contents(), self.dtype)
        steps = zip(self.shape, self.strides, strict=True)
        last = self.offset + sum((size - 1) * stride for size, stride in steps)
        if min((self.offset, *self.shape, *self.strides)) < 0 or last >= len(elements):
            raise ValueError(f"a tensor of shape {self.shape} lies outside of its storage")
        return np.lib.stride_tricks.as_strided(
            elements[self.offset :],
            self.shape,
            [stride * self.dtype.itemsize for stride in self.strides],
            writeable=False,
        )


class _Refused(Exception):
    """The pickle would do more than hold data; the message says what."""


def read(path: Path) -> Any:
    """Returns what a file holds: containers, numbers, strings, and `Tensor` and `Foreign` objects.

    Raises UserError if it would call a function, and almost any other error if it is damaged.
    """
    data = path.read_bytes()
    try:
        return _read_zip(data) if data.startswith(b"PK") else _read_legacy(data)
    except _Refused as refusal:
        raise UserError(
            f"it holds more than tensors and is not read: it would {as_line(refusal)[:200]}; "
            "save the model's state_dict()"
        ) from None


def _read_zip(data: bytes) -> Any:
    archive = zipfile.ZipFile(io.BytesIO(data))
    members, names = archive.infolist(), archive.namelist()
    if any(name.endswith("/constants.pkl") for name in names):
        raise _Refused("run a TorchScript program")
    compressed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if compressed or sum(member.file_size for member in members) > len(data):
        raise ValueError("its zip file is compressed, which PyTorch never does")
    pickles = [name for name in names if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError(f"its zip file has {len(pickles)} members data.pkl instead of one")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
        raise ValueError(BIG_ENDIAN)
    contents = functools.cache(archive.read)  # which checks the sum of the bytes

    def load(persistent_id: Any) -> Storage:
        _, kind, key, _, count = persistent_id
        return _storage(kind, count, lambda: contents(f"{folder}data/{_key(key)}"))

    return _Unpickler(io.BytesIO(archive.read(f"{folder}data.pkl")), load).load()


def _read_legacy(data: bytes) -> Any:
    stream = io.BytesIO(data)
    storages: dict[str, Storage] = {}
    contents: dict[str, bytes] = {}

    def load(persistent_id: Any) -> Any:
        if persistent_id[0] == "module":  # a class, with its source
            return persistent_id[1]
        _, kind, key, _, count, view = persistent_id
        storages[_key(key)] = whole = _storage(kind, count, lambda: contents[key])
        if view is None:
            return whole
        _, start, length = view
        first, last = (i * whole.dtype.itemsize for i in (start, start + length))
        return _storage(kind, length, lambda: whole.contents()[first:last])

    if _Unpickler(stream, load).load() != MAGIC_NUMBER:
        raise ValueError("it is a pickle, but torch.save did not write it")
    _Unpickler(stream, load).load()  # the version of the protocol
    if not _Unpickler(stream, load).load().get("little_endian", True):
        raise ValueError(BIG_ENDIAN)
    tree = _Unpickler(stream, load).load()
    for key in map(_key, _Unpickler(stream, load).load()):
        storage = storages[key]
        if int.from_bytes(stream.read(8), "little") * storage.dtype.itemsize != storage.size:
            raise ValueError(f"the sizes of storage {key} differ")
        contents[key] = stream.read(storage.size)
    return tree


def _key(key: Any) -> str:
    """Returns the name of a storage, which is a string: the hash of something else may not end."""
    if not isinstance(key, str):
        raise ValueError("a storage has a name that is no string")
    return key


def _storage(kind: Foreign, count: int, read: Callable[[], bytes]) -> Storage:
    module, _, name = kind.name.rpartition(".")
    if module not in ("torch", "torch.cuda", "torch.storage") or name not in STORAGES:
        raise _Refused(f"need {kind.name}")
    dtype = DTYPES[STORAGES[name]]
    return Storage(dtype, count * dtype.itemsize, read)


class _Dict(dict[Any, Any]):
    """A dict without keys other than strings and numbers: to hash nested tuples may never end."""

    def __init__(self, pairs: Iterable[tuple[Any, Any]] = ()):
        super().__init__()
        for key, value in pairs:
            self[key] = value

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(key, str | int | float):
            super().__setitem__(key, value)


def _load_dict(machine: Any) -> None:
    items = machine.pop_mark()
    machine.append(_Dict(zip(items[::2], items[1::2], strict=True)))


def _load_frozenset(machine: Any) -> None:
    machine.pop_mark()
    machine.append(Foreign("builtins.frozenset"))


def _load_reduce(machine: Any) -> None:
    arguments, function = machine.stack.pop(), machine.stack.pop()
    if not isinstance(function, Foreign):
        raise _Refused("call what it computes")
    machine.append(function(*arguments))


def _load_object(machine: Any, has_keywords: bool = False) -> None:
    """Puts a new object, whose class is not asked, in place of a class and arguments."""
    del machine.stack[-1 - has_keywords :]
    if machine.stack[-1].name in CONTAINERS:
        machine.stack[-1] = _Dict()


def _refuse(instruction: str, _: Any) -> None:
    raise _Refused(f"use the pickle instruction {instruction}")


class _Unpickler(pickle._Unpickler):
    """The standard library's machine in Python, which takes memory only for what a file holds.

    That in C takes what the file claims to hold. Attributes (BUILD) are left out.
    """

    dispatch: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,
        pickle.EMPTY_DICT[0]: lambda machine: machine.append(_Dict()),
        pickle.DICT[0]: _load_dict,
        pickle.EMPTY_SET[0]: lambda machine: machine.append(Foreign("builtins.set")),
        pickle.FROZENSET[0]: _load_frozenset,
        pickle.REDUCE[0]: _load_reduce,
        pickle.NEWOBJ[0]: _load_object,
        pickle.NEWOBJ_EX[0]: functools.partial(_load_object, has_keywords=True),
        pickle.BUILD[0]: lambda machine: machine.stack.pop(),
        pickle.BYTEARRAY8[0]: pickle._Unpickler.dispatch[pickle.BINBYTES8[0]],
    } | {
        getattr(pickle, name)[0]: functools.partial(_refuse, name)  # what no file of tensors needs
        for name in ("PERSID", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER")
    }

    def __init__(self, stream: io.BytesIO, load_storage: Callable[[Any], Any]):
        super().__init__(stream, encoding="latin1")  # as the strings of Python 2
        self.load_storage = load_storage

    def find_class(self, module: str, name: str) -> Foreign:
        return Foreign(f"{OLD_MODULES.get(module, module)}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        return self.load_storage(pid)
