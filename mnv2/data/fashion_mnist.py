"""Where the files of Fashion-MNIST (arXiv 1708.07747) come from.

Its home on the network serves them; Debian's package `dataset-fashion-mnist` holds the same four
files. Whoever has the package, or can reach Debian's mirrors, needs nothing else.
"""

import shutil
import subprocess
import tempfile
from pathlib import Path

import tensorflow_datasets as tfds

from mnv2.data.download import reachable
from mnv2.runtime.errors import UserError

PACKAGE = "dataset-fashion-mnist"
FOLDER = "usr/share/datasets/fashion-mnist"  # inside the package
INSTALLED = Path("/", FOLDER)


def prepare(builder: tfds.core.DatasetBuilder) -> None:
    """Prepares TFDS's own builder from the installed package, the network, or Debian's mirrors."""
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
    """Downloads the Debian package and unpacks it into `folder`; neither needs root."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise UserError(
            "cannot download fashion_mnist: its server is out of reach, and there is no apt-get "
            f"to fetch Debian's package {PACKAGE}; copy its four files to {INSTALLED}"
        )
    try:
        _download_package(folder)
        (package,) = folder.glob("*.deb")
        _run("dpkg-deb", "-x", str(package), str(folder / "unpacked"))
    except (subprocess.CalledProcessError, ValueError) as error:
        reason = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1]
        raise UserError(
            "cannot download fashion_mnist: neither its server nor Debian's mirrors can be reached "
            f"({reason}); with a network, run 'apt-get install {PACKAGE}'"
        ) from None
    return folder / "unpacked" / FOLDER


def _download_package(folder: Path) -> None:
    try:
        _run("apt-get", "download", PACKAGE, cwd=folder)
    except subprocess.CalledProcessError:
        # No package lists yet, as in a new container: fetch them into a folder of our own.
        lists = folder / "lists"
        (lists / "partial").mkdir(parents=True)
        private = ("-o", f"Dir::State::lists={lists}")
        _run("apt-get", *private, "update")
        _run("apt-get", *private, "download", PACKAGE, cwd=folder)


def _run(*command: str, cwd: Path | None = None) -> None:
    subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True)
