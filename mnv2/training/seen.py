"""A picture of what training and evaluation make of pictures: people look before they train."""

import functools
import itertools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
from jaxtyping import Array, Shaped

from mnv2.preprocess import Pipeline
from mnv2.preprocess.device import augment
from mnv2.preprocess.host import View
from mnv2.pretrained import imagenet
from mnv2.runtime.files import AnyPath, replacing
from mnv2.runtime.terminal import drawn
from mnv2.training.config import Settings
from mnv2.training.setup import device_pipeline, set_up

VERSIONS = 8  # of each picture in training
PICTURES = 4

type Picture = Shaped[np.ndarray, "h w c"]


def draw_seen(settings: Settings, path: AnyPath) -> None:
    """Draws what a run sees: pictures as they are stored, in evaluation, and in training.

    Of a run whose pictures grow (data.progressive), the columns have its sizes in their order.

    Raises UserError if the settings describe no run.
    """
    setup = set_up(settings)
    examples = itertools.islice(setup.dataset.encoded("train", shuffle_seed=0), PICTURES)
    stored = [(setup.dataset.decode(one).numpy(), int(one["label"])) for one in examples]
    names = list(map(imagenet.readable, setup.dataset.class_names))
    images, views = [image for image, _ in stored], setup.views
    pipeline = device_pipeline(
        settings,
        setup.preprocess.mean,
        setup.durations.total,
        setup.dataset.num_examples("train"),
    )
    columns = [
        trained(images, views[version * len(views) // VERSIONS], version, pipeline)
        for version in range(VERSIONS)
    ]
    rows = {}
    for number, (image, label) in enumerate(stored):
        versions = [column[number] for column in columns]
        shown = [image, setup.eval_view(image), *versions]
        rows[f"{names[label]}"[:20] + " " * number] = shown  # keys of a row differ
    draw_grid(rows, ("stored", "evaluation", *["training"] * VERSIONS), path)


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
