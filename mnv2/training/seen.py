"""A picture of what training and evaluation make of pictures: people look before they train."""

import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.figure
import matplotlib.image
import numpy as np
from jaxtyping import Array, Shaped

from mnv2 import data
from mnv2.preprocess import Pipeline
from mnv2.preprocess.device import augment
from mnv2.preprocess.host import View
from mnv2.pretrained import imagenet
from mnv2.runtime.files import AnyPath, replacing
from mnv2.runtime.terminal import drawn, note
from mnv2.training.config import Settings
from mnv2.training.setup import (
    check_views,
    device_pipeline,
    image_shape,
    load_shared,
    preprocessing,
    train_view,
)

VERSIONS = 8  # of each picture in training
PICTURES = 4
PHOTOGRAPH = "sample_data/grace_hopper.jpg"  # in the folder of Matplotlib

type Picture = Shaped[np.ndarray, "_h _w _c"]  # of any size, each its own


def draw_seen(settings: Settings, path: AnyPath) -> None:
    """Draws what a run sees: pictures as they are stored, in evaluation, and in training.

    The data set need not be on this machine, nor suit the batches of a run. If training sees no
    picture in two ways, there is one column of it.

    Raises UserError if the settings say nothing that pictures can go through.
    """
    named, stored = _pictures(settings)
    weights = None if settings.weights is None else load_shared(settings.weights, need_head=False)
    shape = image_shape(settings, stored, weights)
    preprocess = preprocessing(settings, shape[2], weights)
    view, eval_view = train_view(settings, shape), preprocess.view_of(shape[:2], shape[2])
    check_views(settings, view, eval_view, stored)
    # A run of one step: pictures are mixed in every version, though a run may end that earlier.
    pipeline = device_pipeline(settings, preprocess.mean, 1, settings.batch_size)
    images = [image for _, image in named]
    columns = [trained(images, view, version, pipeline) for version in range(VERSIONS)]
    if all(np.array_equal(column, columns[0]) for column in columns):
        columns = columns[:1]
    rows = {}
    for number, (name, image) in enumerate(named):
        shown = [image, eval_view(image), *(column[number] for column in columns)]
        rows[name[:20] + " " * number] = shown  # keys of a row differ
    draw_grid(rows, ("stored", "evaluation", *["training"] * len(columns)), path)


def _pictures(
    settings: Settings,
) -> tuple[list[tuple[str, Picture]], tuple[int | None, int | None, int]]:
    """Returns some pictures of the data set with their classes, and the shape of all of them.

    If the data set is not on this machine, they are crops of a photograph that Matplotlib has.
    """
    of = settings.data
    if (shape := data.shape_if_missing(of.name, of.dir)) is not None:
        note(f"{of.name} is not prepared here, so the pictures are crops of a photograph")
        whole = matplotlib.image.imread(Path(matplotlib.get_data_path(), PHOTOGRAPH))
        crops = (whole[:400, 50:450], whole[:, 100:400], whole[150:, :256], whole[150:, 256:])
        return [("photograph", crop) for crop in crops], shape
    dataset = data.open_dataset(of.name, of.dir, on_broken=of.on_broken)
    examples = itertools.islice(dataset.encoded("train"), PICTURES)  # to shuffle reads 16,384
    names = list(map(imagenet.readable, dataset.class_names))
    named = [(names[int(x["label"])], dataset.decode(x).numpy()) for x in examples]
    return named, dataset.image_shape


def trained(
    images: Sequence[np.ndarray], view: View, version: int, pipeline: Pipeline
) -> Shaped[np.ndarray, "n h w c"]:
    """Returns a version of each picture as training sees it, mixed as in a batch of them.

    `view` is what the host does to a picture, and `pipeline` what the devices do to a batch.
    """
    seen = [view(x, np.random.default_rng((version, i))) for i, x in enumerate(images)]
    return np.asarray(on_device(pipeline, np.stack(seen), version))


@functools.partial(jax.jit, static_argnames="pipeline")
def on_device(pipeline: Pipeline, images: Array, version: Array) -> Array:
    """Applies what the devices do to a batch, as in epoch `version` of a run with seed 0."""
    count, key = len(images), jax.random.key(0)
    numbers = jnp.arange(count)
    rows = {"index": numbers, "position": numbers, "epoch": jnp.full(count, version)}
    changed, _ = augment(pipeline, images, numbers, key, rows, classes=count)
    if mixes := pipeline.find("mix"):
        return mixes(changed.astype(jnp.float32), key, version)[0]
    return changed


def draw_grid(rows: Mapping[str, Sequence[Picture]], columns: Sequence[str], path: AnyPath) -> None:
    """Draws rows of pictures with values from 0 to 255, each row with its name at the left."""
    height, width = len(rows), len(columns)
    figure = matplotlib.figure.Figure(
        figsize=(1.25 * width + 1.2, 1.25 * height + 0.3), layout="constrained"
    )
    axes = figure.subplots(height, width, squeeze=False)
    for line, (name, pictures) in zip(axes, rows.items(), strict=True):
        for axis, picture in zip(line, pictures, strict=True):
            shown = np.clip(np.rint(picture), 0, 255).astype(np.uint8)
            gray = shown.shape[-1] == 1
            axis.imshow(shown[..., 0] if gray else shown, cmap="gray", vmin=0, vmax=255)
            axis.set_xticks([], [])
            axis.set_yticks([], [])
        line[0].set_ylabel(drawn(name.strip()), rotation=0, ha="right", va="center", fontsize=8)
    for axis, title in zip(axes[0], columns, strict=True):
        axis.set_title(title, fontsize=8)
    with replacing(path) as unfinished:
        figure.savefig(unfinished, dpi=100, format=path.suffix.removeprefix(".") or "png")
