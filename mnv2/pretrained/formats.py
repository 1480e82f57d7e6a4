"""Tells the format of a file of weights by its first bytes, because names are often wrong."""

import zipfile
from pathlib import Path

from mnv2.pretrained import native, torch
from mnv2.runtime.errors import UserError

FORMATS = {  # by the first bytes
    b"\x89HDF\r\n\x1a\n": "keras",
    b"\x80": "torch",  # every pickle of Python 3, and those of PyTorch
    b"PK": "torch",  # a damaged zip file, as the reader will say
    b"{": "keras",  # the JSON of TensorFlow.js
}
OTHERS = {  # by the position of some bytes
    (0, b"version https://git-lfs"): "a pointer of Git LFS: fetch the file with git lfs pull",
    (0, b"<"): "a web page or XML, no weights: download the file itself",
    (0, b"\x1f\x8b"): "compressed by gzip: unpack it first",
    (0, b"BZh"): "compressed by bzip2: unpack it first",
    (0, b"\xfd7zXZ"): "compressed by xz: unpack it first",
    (257, b"ustar"): "a tar archive: unpack it first",
    (4, b"TFL3"): "a model of TensorFlow Lite, which is not read",
}


def format_of(path: Path) -> str:
    """Returns `mnv2`, `keras` or `torch`. Raises UserError if the file is none of them."""
    try:
        with path.open("rb") as file:
            start = file.read(512)
        if torch.is_safetensors(path):
            return "mnv2" if native.is_export(path) else "torch"
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if not start:
        raise UserError(f"{path} is empty")
    if start.startswith(b"PK") and (names := _names_in_zip(path)):
        if any(name.endswith("model.weights.h5") for name in names):
            return "keras"
        if any(name.rpartition("/")[2] == "data.pkl" for name in names):
            return "torch"
        raise UserError(f"{path} is a zip file of neither Keras nor PyTorch: it holds {names[:3]}")
    for magic, format in FORMATS.items():
        if start.startswith(magic):
            return format
    for (position, magic), text in OTHERS.items():
        if start.startswith(magic, position):
            raise UserError(f"{path} is {text}")
    raise UserError(f"{path} holds no known format: Keras, PyTorch, safetensors or slim")


def _names_in_zip(path: Path) -> list[str]:
    try:
        return zipfile.ZipFile(path).namelist()
    except (OSError, zipfile.BadZipFile):
        return []  # its reader will say that it is damaged
