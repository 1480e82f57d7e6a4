"""A picture of what training and evaluation make of pictures: people look before they train."""

import itertools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import tensorflow as tf
from jaxtyping import Shaped

from mnv2.data.preprocess import View, train_image
from mnv2.pretrained import imagenet
from mnv2.runtime.files import AnyPath, replacing
from mnv2.runtime.terminal import drawn
from mnv2.training.config import Settings
from mnv2.training.setup import mixing_of, set_up
from mnv2.training.step import Mixing, mix

VERSIONS = 8  # of each picture in training
PICTURES = 4
NOT_MIXED = Mixing()

type Picture = Shaped[np.ndarray, "h w c"]


def draw_seen(settings: Settings, path: AnyPath) -> None:
    """Draws what a run sees: pictures as they are stored, in evaluation, and in training.

    Of a run whose pictures grow (data.progressive), the columns have its sizes in their order.

    Raises UserError if the settings describe no run.
    """
    setup = set_up(settings)
    examples = itertools.islice(setup.dataset.encoded("train", shuffle_seed=0), PICTURES)
    stored = [(setup.dataset.decode(one), int(one["label"])) for one in examples]
    names = list(map(imagenet.readable, setup.dataset.class_names))
    images, views = [image for image, _ in stored], setup.views(settings)
    examples_of_run = setup.dataset.num_examples("train")
    mixing = mixing_of(settings, setup.durations.total, examples_of_run)
    if mixing.mixes:
        mixing = mixing._replace(until=VERSIONS)
    columns = [
        trained(images, views[version * len(views) // VERSIONS], version, mixing)
        for version in range(VERSIONS)
    ]
    evaluated = setup.eval_view()
    rows = {}
    for number, (image, label) in enumerate(stored):
        versions = [column[number] for column in columns]
        shown = [image.numpy(), np.asarray(evaluated(image)), *versions]
        rows[f"{names[label]}"[:20] + " " * number] = shown  # keys of a row differ
    draw_grid(rows, ("stored", "evaluation", *["training"] * VERSIONS), path)


def trained(
    images: Sequence[tf.Tensor], view: View, version: int, mixing: Mixing = NOT_MIXED
) -> Shaped[np.ndarray, "n h w c"]:
    """Returns a version of each picture as training sees it, mixed as in a batch of them."""
    seeds = [tf.constant([version, number], tf.int64) for number in range(len(images))]
    views = [train_image(*pair, view=view).numpy() for pair in zip(images, seeds, strict=True)]
    batch = np.stack(views)
    if not mixing.mixes:
        return batch
    mixed, _ = mix(jnp.asarray(batch, jnp.float32), jax.random.key(0), jnp.asarray(version), mixing)
    return np.asarray(mixed)


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
