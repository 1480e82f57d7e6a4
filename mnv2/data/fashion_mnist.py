"""Prepares Fashion-MNIST (arXiv 1708.07747) from any place that has its files.

The server of its authors has them, and Debian's package `dataset-fashion-mnist` contains the same
four files. If the package is installed, or Debian's mirrors can be reached, nothing else is needed.
"""

import subprocess
import tempfile
from pathlib import Path

import tensorflow_datasets as tfds

from mnv2.data.connection import reachable
from mnv2.runtime.errors import UserError, first_line

PACKAGE = "dataset-fashion-mnist"
FOLDER_IN_PACKAGE = "usr/share/datasets/fashion-mnist"
INSTALLED = Path("/", FOLDER_IN_PACKAGE)


def prepare(builder: tfds.core.DatasetBuilder) -> None:
    """Prepares the TFDS builder from the installed package, the server, or Debian's mirrors.

    Raises UserError if none of them is available.
    """
    if INSTALLED.is_dir():
        _prepare_from(builder, INSTALLED)
    elif reachable(builder.URL):
        builder.download_and_prepare()
    else:
        with tempfile.TemporaryDirectory() as folder:
            _prepare_from(builder, _unpack_package(Path(folder)))


def _prepare_from(builder: tfds.core.DatasetBuilder, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as downloads:
        builder.URL = folder.as_uri() + "/"
        builder.download_and_prepare(download_dir=downloads)


def _unpack_package(folder: Path) -> Path:
    """Downloads the Debian package and unpacks it into `folder`. Neither step needs root.

    Returns the folder of the four files.
    """
    try:
        _download_package(folder)
        (package,) = folder.glob("*.deb")
        _run("dpkg-deb", "-x", str(package), str(folder / "unpacked"))
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        printed = (getattr(error, "stderr", "") or "").strip().splitlines()
        reason = printed[-1] if printed else first_line(error)
        raise UserError(
            "cannot download fashion_mnist: neither its server nor Debian's mirrors can be reached "
            f"({reason}); once there is a connection, run 'apt-get install {PACKAGE}', or copy the "
            f"four files of that package to {INSTALLED}"
        ) from None
    return folder / "unpacked" / FOLDER_IN_PACKAGE


def _download_package(folder: Path) -> None:
    try:
        _run("apt-get", "download", PACKAGE, cwd=folder)
    except subprocess.CalledProcessError:
        # There are no package lists yet, as in a new container: download them into `folder`.
        lists = folder / "lists"
        (lists / "partial").mkdir(parents=True)
        private = ("-o", f"Dir::State::lists={lists}")
        _run("apt-get", *private, "update")
        _run("apt-get", *private, "download", PACKAGE, cwd=folder)


def _run(*command: str, cwd: Path | None = None) -> None:
    subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True)
