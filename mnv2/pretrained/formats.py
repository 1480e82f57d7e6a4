"""Tells the format of a file of weights by its first bytes, because names are often wrong."""

import zipfile
from pathlib import Path

from mnv2.pretrained import native, torch
from mnv2.runtime.errors import UserError

# For a file whose content shows nothing, such as a damaged one.
FORMAT_OF_SUFFIX = {
    **dict.fromkeys((".h5", ".hdf5", ".keras", ".json"), "keras"),
    **dict.fromkeys((".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar", ".pkl"), "torch"),
}
HDF5 = b"\x89HDF\r\n\x1a\n"
PICKLE = b"\x80"  # every pickle of Python 3, and those of PyTorch
OTHER_CONTENTS = {
    b"version https://git-lfs": "a pointer of Git LFS: fetch the file itself with git lfs pull",
    b"<": "a web page or XML, no weights: download the file itself",
    b"\x1f\x8b": "compressed by gzip: unpack it first",
    b"BZh": "compressed by bzip2: unpack it first",
    b"\xfd7zXZ": "compressed by xz: unpack it first",
}
TAR, TAR_AT = b"ustar", 257
TFLITE, TFLITE_AT = b"TFL3", 4


def format_of(path: Path) -> str:
    """Returns `mnv2`, `keras` or `torch`.

    Raises UserError if the file cannot be read, or if it holds something else.
    """
    try:
        with path.open("rb") as file:
            start = file.read(512)
        if torch.is_safetensors(path):
            return "mnv2" if native.is_export(path) else "torch"
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if not start:
        raise UserError(f"{path} is empty")
    if start.startswith(HDF5):
        return "keras"
    if start.startswith(b"PK"):
        return _format_of_zip(path)
    if start.startswith(PICKLE):
        return "torch"
    others = [text for magic, text in OTHER_CONTENTS.items() if start.startswith(magic)]
    if start[TAR_AT:].startswith(TAR):
        others.append("a tar archive: unpack it first")
    if start[TFLITE_AT:].startswith(TFLITE):
        others.append("a model of TensorFlow Lite, which is not read")
    if others:
        raise UserError(f"{path} is {others[0]}")
    return _format_of_suffix(path)


def _format_of_zip(path: Path) -> str:
    try:
        names = zipfile.ZipFile(path).namelist()
    except (OSError, zipfile.BadZipFile):
        return _format_of_suffix(path)  # its reader will say that it is damaged
    if any(name.endswith("model.weights.h5") for name in names):
        return "keras"
    if any(name == "data.pkl" or name.endswith("/data.pkl") for name in names):
        return "torch"
    raise UserError(f"{path} is a zip file of neither Keras nor PyTorch: it holds {names[:3]}")


def _format_of_suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix in FORMAT_OF_SUFFIX:
        return FORMAT_OF_SUFFIX[suffix]
    raise UserError(
        f"unknown format {suffix!r} of {path}: known are {', '.join(FORMAT_OF_SUFFIX)} files and "
        "slim's checkpoints"
    )
