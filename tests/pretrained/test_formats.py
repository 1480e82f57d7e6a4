"""The content of a file tells its format, whatever its name is."""

import gzip
import io
import shutil
import tarfile
import zipfile

import h5py
import numpy as np
import pytest
from safetensors.numpy import save_file

from mnv2 import pretrained
from mnv2.pretrained import formats
from mnv2.runtime.errors import UserError
from tests.pretrained import torch_files

NAMES = ("weights", "w.pth", "W.H5", "w.keras", "w.safetensors", "w.pth.tar", "w.bin", "w.ckpt")


@pytest.mark.parametrize("name", NAMES)
def test_the_formats_are_recognised_under_any_name(name, tmp_path):
    path = tmp_path / name
    with h5py.File(path, "w") as file:
        file["a"] = np.ones(2)
    assert formats.format_of(path) == "keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", b"")
    assert formats.format_of(path) == "keras"
    save_file({"a": np.ones(2, np.float32)}, path)
    assert formats.format_of(path) == "torch"
    save_file({"a": np.ones(2, np.float32)}, path, metadata={"mnv2": "{}"})
    assert formats.format_of(path) == "mnv2"
    for write in (torch_files.write, torch_files.write_legacy):
        write(path, {"a": np.ones(2, np.float32)})
        assert formats.format_of(path) == "torch"


def tar():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("weights.pth"), io.BytesIO())
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>", "is a web page or XML, no weights: download the file itself"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
        (gzip.compress(b"weights", mtime=0), "is compressed by gzip: unpack it first"),
        (tar(), "is a tar archive: unpack it first"),
        (b"\x1c\0\0\0TFL3", "is a model of TensorFlow Lite"),
    ],
)
def test_a_file_that_holds_something_else_is_refused_and_named(content, problem, tmp_path):
    for name in ("weights.pth", "weights.h5", "weights"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name} {problem}"):
            pretrained.load(tmp_path / name)


def test_other_zip_files_and_unknown_contents_are_refused(tmp_path):
    shutil.make_archive(str(tmp_path / "folder"), "zip", __file__.rpartition("/")[0], "__init__.py")
    (tmp_path / "folder.zip").rename(tmp_path / "w.pth")
    with pytest.raises(UserError, match="is a zip file of neither Keras nor PyTorch"):
        pretrained.load(tmp_path / "w.pth")
    (tmp_path / "notes.txt").write_text("notes")
    with pytest.raises(UserError, match=r"notes.txt holds no known format: Keras, "):
        pretrained.load(tmp_path / "notes.txt")


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"is neither the folder of a run .* nor of a slim"):
        pretrained.load(tmp_path)
    (tmp_path / "linear/0").mkdir(parents=True)
    (tmp_path / "linear/0/network.json").touch()
    with pytest.raises(UserError, match=rf"several runs: give one, as {tmp_path}/linear/0$"):
        pretrained.load(tmp_path)
