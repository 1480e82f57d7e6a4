"""Reads the tensors of files that PyTorch saved, without PyTorch and without running anything.

A pickle is a program for a stack machine; `_run` is that machine, but it imports and calls nothing.
It knows tensors and plain containers. An object of any other class becomes a `Foreign`, which only
remembers its class. A pickle that calls any other function is refused.

PyTorch 1.6 and later write a zip file: the pickle `data.pkl`, and one member per storage. Earlier
versions wrote pickles one after another, and then the storages.
"""

import dataclasses
import io
import math
import pickletools
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from mnv2.runtime.errors import UserError

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
SEQUENCES = ("torch.Size", "builtins.set", "builtins.frozenset", "builtins.list", "builtins.tuple")
PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
# What common harmless objects beside the weights would call. Their results are left out.
HARMLESS = (
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core")
      for name in ("scalar", "_reconstruct")),
    "numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer", "numpy.dtype",
    "_codecs.encode", "copyreg._reconstructor", "torch.device", "builtins.complex",
    "builtins.slice", "builtins.range", "builtins.bytearray", "datetime.datetime",
    "datetime.date", "datetime.timedelta", "datetime.timezone",
    *(f"pathlib.{part}{name}" for part in ("", "_local.")
      for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
)  # fmt: skip
OLD_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # their names in Python 2


class Foreign(NamedTuple):
    """An object that is not read: the name of its class, or of the function that would make it."""

    kind: str


class Global(NamedTuple):
    """A class or function that a pickle mentions. It is not imported."""

    name: str


@dataclasses.dataclass
class Storage:
    """Memory that tensors share; `read` returns its bytes."""

    dtype: np.dtype
    read: Callable[[], bytes]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor whose storage is not read yet; offset and strides count elements of `dtype`."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype

    def numpy(self) -> np.ndarray:
        """Reads the tensor. Raises ValueError if it does not fit into its storage."""
        if 0 in self.shape:
            return np.zeros(self.shape, self.dtype)
        elements = np.frombuffer(self.storage.read(), self.dtype)
        steps = zip(self.shape, self.strides, strict=True)
        last = self.offset + sum((size - 1) * stride for size, stride in steps)
        numbers = (self.offset, *self.shape, *self.strides)
        if min(numbers) < 0 or last >= len(elements):
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

    Raises UserError if the file is damaged, or if it would call a function.
    """
    try:
        data = path.read_bytes()
        return _read_zip(data) if data.startswith(b"PK") else _read_legacy(data)
    except _Refused as refusal:
        raise UserError(
            f"{path} holds more than tensors and is not read: it would {refusal}; "
            "save the model's state_dict() with torch.save"
        ) from None
    except Exception as error:  # damaged data can raise almost any type
        raise cannot_read(path, error) from error


def cannot_read(path: Path, error: Exception) -> UserError:
    """Returns the error for a damaged file, in one line."""
    said = error.args[0] if isinstance(error, KeyError) and error.args else error
    reason = " ".join(str(said).split()) or type(error).__name__
    return UserError(f"cannot read {path}: {reason}")


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
    storages: dict[str, bytes] = {}

    def load(persistent_id: Any) -> Storage:
        _, kind, key, _, count = persistent_id
        dtype = _storage_dtype(kind)
        size = count * dtype.itemsize
        return Storage(dtype, partial(_read_storage, archive, storages, folder, key, size))

    return _run(io.BytesIO(archive.read(f"{folder}data.pkl")), load)


def _read_storage(
    archive: zipfile.ZipFile, storages: dict[str, bytes], folder: str, key: str, size: int
) -> bytes:
    """Reads the bytes of a storage, once. Raises ValueError if they are not `size`."""
    if key not in storages:
        storages[key] = archive.read(f"{folder}data/{key}")  # checks the sum of the bytes
        if len(storages[key]) != size:
            raise ValueError(f"storage {key} does not have {size} bytes")
    return storages[key]


def _read_legacy(data: bytes) -> Any:
    stream = io.BytesIO(data)
    storages: dict[str, tuple[np.dtype, int]] = {}
    contents: dict[str, bytes] = {}

    def load(persistent_id: Any) -> Any:
        if persistent_id[0] == "module":  # a class, with its source
            return persistent_id[1]
        _, kind, key, _, count, view = persistent_id
        dtype = _storage_dtype(kind)
        storages[key] = (dtype, count)
        if view is None:
            return Storage(dtype, lambda: contents[key])
        _, start, length = view
        first, last = start * dtype.itemsize, (start + length) * dtype.itemsize
        return Storage(dtype, lambda: contents[key][first:last])

    if _run(stream, load) != MAGIC_NUMBER:
        raise ValueError("it is a pickle, but torch.save did not write it")
    _run(stream, load)  # the version of the protocol
    if not _run(stream, load).get("little_endian", True):
        raise ValueError(BIG_ENDIAN)
    tree = _run(stream, load)
    for key in _run(stream, load):
        dtype, count = storages[key]
        if int.from_bytes(stream.read(8), "little") != count:
            raise ValueError(f"storage {key} does not have {count} elements")
        contents[key] = stream.read(count * dtype.itemsize)
        if len(contents[key]) != count * dtype.itemsize:
            raise ValueError("the file ends within a tensor")
    return tree


def _storage_dtype(kind: Global) -> np.dtype:
    module, _, name = kind.name.rpartition(".")
    if module in ("torch", "torch.cuda", "torch.storage") and name in STORAGES:
        return DTYPES[STORAGES[name]]
    raise _Refused(f"need {kind.name}")


_MARK = object()
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "MARK": _MARK}
_LITERALS = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"),
    *("BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
)


def _run(stream: io.BytesIO, load_storage: Callable[[Any], Any]) -> Any:
    """Runs one pickle and returns its result. Raises _Refused, or any other error if damaged."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    argument: Any

    def pop_to_mark() -> list[Any]:
        items = []
        while (item := stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    for opcode, argument, _ in pickletools.genops(stream):
        match opcode.name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case name if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST" | "EMPTY_SET":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case name if name in _LITERALS:
                stack.append(argument)
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "TUPLE" | "FROZENSET":
                stack.append(tuple(pop_to_mark()))
            case "LIST":
                stack.append(pop_to_mark())
            case "DICT":
                items = pop_to_mark()
                stack.append(_set_items({}, items[::2], items[1::2]))
            case "APPEND" | "APPENDS" | "ADDITEMS":
                items = [stack.pop()] if opcode.name == "APPEND" else pop_to_mark()
                if isinstance(stack[-1], list):
                    stack[-1].extend(items)
            case "SETITEM" | "SETITEMS":
                items = stack[-2:] if opcode.name == "SETITEM" else pop_to_mark()
                del stack[len(stack) - 2 * (opcode.name == "SETITEM") :]
                _set_items(stack[-1], items[::2], items[1::2])
            case "POP" | "BUILD":  # BUILD sets attributes: containers and tensors need none
                stack.pop()
            case "POP_MARK":
                pop_to_mark()
            case "DUP":
                stack.append(stack[-1])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_global(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                qualified, module = stack.pop(), stack.pop()
                stack.append(_global(module, qualified))
            case "BINPERSID":
                stack.append(load_storage(stack.pop()))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_call(function, arguments))
            case "INST":
                stack.append(_call(_global(*argument.split(" ", 1)), tuple(pop_to_mark())))
            case "OBJ":
                function, *arguments = pop_to_mark()
                stack.append(_call(function, tuple(arguments)))
            case "NEWOBJ" | "NEWOBJ_EX":  # a new object whose class is not asked
                del stack[-1 - (opcode.name == "NEWOBJ_EX") :]
                name = _called_name(stack.pop())
                stack.append({} if name in CONTAINERS else Foreign(name))
            case name:
                raise _Refused(f"use the pickle instruction {name}")
    (result,) = stack
    return result


def _global(module: Any, name: Any) -> Global:
    return Global(f"{OLD_MODULES.get(str(module), str(module))}.{name}")


def _called_name(function: Any) -> str:
    if not isinstance(function, Global):
        raise _Refused("call what it computes")
    return function.name


def _call(function: Any, arguments: Any) -> Any:
    """Returns what a call gives if it makes a tensor or a container; calls nothing."""
    name = _called_name(function)
    if name in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"):
        storage, offset, shape, strides = arguments[:4]
        return _tensor(storage, offset, shape, strides, storage.dtype)
    if name == "torch._utils._rebuild_tensor_v3":
        storage, offset, shape, strides, _, _, kind = arguments[:7]
        dtype = DTYPES.get(_called_name(kind).removeprefix("torch."))
        if dtype is None:
            raise _Refused(f"need the type {kind.name}")
        return _tensor(storage, offset, shape, strides, dtype)
    if name in PARAMETERS:
        return arguments[0]
    if name == "torch._tensor._rebuild_from_type_v2":  # a tensor with attributes
        return _call(arguments[0], arguments[2])
    if name in CONTAINERS:
        pairs = arguments[-1] if arguments and isinstance(arguments[-1], list) else []
        return _set_items({}, [key for key, _ in pairs], [value for _, value in pairs])
    if name in SEQUENCES:
        return tuple(arguments[0]) if arguments else ()
    if name in HARMLESS:
        return Foreign(name)
    raise _Refused(f"call {name}")


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, dtype: np.dtype) -> Tensor:
    whole = all(type(number) is int for number in (offset, *shape, *strides))
    if not isinstance(storage, Storage) or not whole:
        raise ValueError("a tensor does not have numbers as shape")
    if math.prod(shape) > 2**40:
        raise ValueError(f"a tensor has the shape {tuple(shape)}")
    return Tensor(storage, offset, tuple(shape), tuple(strides), dtype)


def _set_items(target: Any, keys: list[Any], values: list[Any]) -> Any:
    """Sets items of a dict. Keys other than strings and numbers are left out."""
    if isinstance(target, dict):
        for key, value in zip(keys, values, strict=True):
            if isinstance(key, str | int | float):
                target[key] = value
    return target
