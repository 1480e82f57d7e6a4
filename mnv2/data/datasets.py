"""Data sets by name: from TensorFlow Datasets (TFDS), or from a folder of pictures."""

import contextlib
import functools
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from mnv2.data import fashion_mnist
from mnv2.data.base import Dataset
from mnv2.data.connection import reachable
from mnv2.data.folder_tree import FOLDER_PREFIX, ON_BROKEN
from mnv2.data.image_folder import open_image_folder
from mnv2.data.tfds_dataset import TfdsDataset
from mnv2.runtime.errors import UserError, check_choice, first_line
from mnv2.runtime.files import SCHEME, AnyPath, as_path, did_you_mean, locked, matches
from mnv2.runtime.machine import threads

# TFDS would leave an empty folder behind for each set that is not prepared, in which it copies
# nothing: by default it does not ask Google Cloud Storage what is known of a set.
tfds.core.DatasetInfo.initialize_from_bucket = lambda self: None


def open_dataset(
    name: str, data_dir: str | None = None, validation: int = 0, on_broken: str = "stop"
) -> Dataset:
    """Opens a classification data set by name.

    name        a TFDS data set, which is prepared first if it is missing; the path of one that is
                prepared; or `folder:PATH` for a folder of pictures, PATH/SPLIT/CLASS/PICTURE or
                PATH/CLASS/PICTURE
    data_dir    the folder of TFDS data sets; by default that of TFDS
    validation  the number of examples that are held out from the end of train
    on_broken   what happens if pictures of a folder cannot be read: stop, or skip them

    Raises UserError for an unknown name, for a data set without images and labels, for one that
    cannot be downloaded here, and for a `validation` that leaves no training examples.
    """
    check_choice(on_broken, ON_BROKEN, "data.on_broken")
    _leave_the_machine_to_jax()
    return _open(name, data_dir, validation, on_broken)


@functools.cache  # the runs of one process share it
def _open(name: str, data_dir: str | None, validation: int, on_broken: str) -> Dataset:
    if name.startswith(FOLDER_PREFIX + SCHEME):
        raise UserError(f"{name}: pictures are read from a local folder only; copy them first")
    if name.startswith(FOLDER_PREFIX):
        root = Path(name.removeprefix(FOLDER_PREFIX)).expanduser()
        return open_image_folder(name, root, validation, on_broken)
    if on_broken != "stop":
        raise UserError(f"data.on_broken {on_broken} is for {FOLDER_PREFIX}PATH, got {name}")
    builder = _for_classification(name, data_dir)
    if not builder.data_path.exists():
        builder = _prepare(name, data_dir)
    dataset = TfdsDataset(name, builder, validation)
    if dataset.num_classes < 2:
        raise UserError(f"{name} has only one class: a classifier needs two")
    return dataset


def _leave_the_machine_to_jax() -> None:
    """Keeps TensorFlow, which only reads data here, from taking what JAX needs: GPUs and cores."""
    with contextlib.suppress(RuntimeError):  # it computes already
        tf.config.set_visible_devices([], "GPU")
        tf.config.threading.set_intra_op_parallelism_threads(threads())
        tf.config.threading.set_inter_op_parallelism_threads(threads())


def shape_if_missing(
    name: str, data_dir: str | None = None
) -> tuple[int | None, int | None, int] | None:
    """Returns (height, width, channels) of a TFDS data set if it is not prepared here.

    Leaves nothing behind. Raises UserError as `open_dataset` does for such a name.
    """
    if name.startswith(FOLDER_PREFIX):
        return None
    builder = _for_classification(name, data_dir)
    return None if builder.data_path.exists() else builder.info.features["image"].shape


def _for_classification(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    """Returns the TFDS builder of a classification data set, which may not be prepared."""
    builder = _create_builder(name, data_dir)
    features = builder.info.features
    is_classification = (
        {"image", "label"} <= set(features)
        and isinstance(features["image"], tfds.features.Image)
        and getattr(features["label"], "num_classes", None)
    )
    if not is_classification:
        raise UserError(
            f"data set {name!r} is not for image classification: its features are "
            f"{', '.join(sorted(features))}"
        )
    if features["image"].dtype != np.uint8:
        raise UserError(
            f"the pictures of data set {name!r} are {np.dtype(features['image'].dtype)}: "
            "expected uint8"
        )
    return builder


def _create_builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    """Returns the TFDS builder of a name that TFDS knows, or of a set that is prepared on disk."""
    # Without those of the community, whose names TFDS reads from the network.
    known = tfds.list_builders(with_community_datasets=False)
    base = name.split(":")[0].split("/")[0]
    root = as_path(data_dir) if data_dir else None
    try:
        if base in known:
            return tfds.builder(name, data_dir=root)
        with contextlib.suppress(tfds.core.DatasetNotFoundError, ValueError):
            return tfds.builder(name, data_dir=root)
        if (folder := as_path(name).expanduser()).is_dir():
            return tfds.builder_from_directory(_prepared_in(folder))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"cannot open data set {name!r}: {first_line(error)}") from error
    if name.startswith(("/", ".", "~", SCHEME)):
        raise UserError(
            f"no data set in {name}: there is no such folder{did_you_mean(Path(name).expanduser())}"
        )
    here = (root or as_path(tfds.core.constants.DATA_DIR)).expanduser()
    prepared = {path.parents[1].name for path in matches(here, "*/*/dataset_info.json")}
    check_choice(base, {*known, *prepared}, "data set")
    raise UserError(
        f"cannot open data set {name!r}: {here / base} has no such version or configuration"
    )


def _prepared_in(folder: AnyPath) -> AnyPath:
    """Returns where in a folder TFDS prepared a data set: there, or one or two folders below."""
    found = [
        path.parent
        for pattern in ("", "*/", "*/*/")
        for path in matches(folder, f"{pattern}dataset_info.json")
    ]
    if not found:
        raise UserError(
            f"no data set in {folder}: TFDS writes a dataset_info.json; "
            f"pictures are opened as {FOLDER_PREFIX}{folder}"
        )
    if len(found) > 1:
        raise UserError(
            f"several data sets in {folder}: choose one of {', '.join(map(str, found))}"
        )
    return found[0]


def _prepare(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    """Prepares a data set, or waits while another process prepares it; returns its builder."""
    builder = _create_builder(name, data_dir)
    manual = as_path(str(builder._data_dir_root)) / "downloads" / "manual"
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS and not matches(manual, "*"):
        how = " ".join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
        raise UserError(f"{name} must be downloaded manually, to {manual}: {how}")
    try:
        with locked(as_path(str(builder.data_dir)).parents[1] / f".{builder.name}.lock"):
            # A builder reads what is on disk when it is created, so create it with the lock held.
            builder = _create_builder(name, data_dir)
            if not builder.data_path.exists():
                _download_and_prepare(name, builder)
        return builder
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"cannot prepare {name} in {builder.data_dir}: {first_line(error)}"
        ) from error


def _download_and_prepare(name: str, builder: tfds.core.DatasetBuilder) -> None:
    print(f"preparing {name} in {builder.data_dir}", flush=True)
    if name == "fashion_mnist":
        fashion_mnist.prepare(builder)
        return
    # What must be downloaded by hand is in a folder already, or TFDS says where it should be.
    url = None if builder.MANUAL_DOWNLOAD_INSTRUCTIONS else next(iter(builder.url_infos), None)
    if url and not reachable(url):
        raise UserError(f"cannot download {name}: {url} cannot be reached; check the connection")
    builder.download_and_prepare()
