"""What a batch goes through on the devices, but for the mixing of pictures."""

from collections.abc import Mapping

import jax
from jaxtyping import Array, Int, Real

from mnv2.preprocess.text import LABELS, PICTURES, Pipeline

KEY = 0x61756721  # sets the random numbers of augmentation apart from those of dropout and mixing
LABELS_KEY = 0x6C616265  # the same for noise of labels


def augment(
    pipeline: Pipeline,
    images: Real[Array, "b h w c"],
    labels: Int[Array, " b"],
    key: Array,
    rows: Mapping[str, Array],
    classes: int,
) -> tuple[Real[Array, "b h w c"], Int[Array, " b"]]:
    """Applies the operations of a pipeline that change a batch on the devices, but for `mix`.

    The images are uint8 if an operation changes pictures. `key` is that of the run. `rows` has the
    `index` of each example in the data set, its `epoch` and its `position` there. What happens to a
    picture depends on the run, epoch and position; what happens to a label, on the run and the
    index, so that it is the same in every epoch.
    """

    def fold(key: Array, numbers: Array) -> Array:
        return jax.vmap(jax.random.fold_in, (None if key.ndim == 0 else 0, 0))(key, numbers)

    for number, call in enumerate(pipeline.of(PICTURES, LABELS)):
        if call.operation.kind == PICTURES:
            of_run = jax.random.fold_in(jax.random.fold_in(key, KEY), number)
            images = call(images, fold(fold(of_run, rows["epoch"]), rows["position"]))
        else:
            of_run = jax.random.fold_in(jax.random.fold_in(key, LABELS_KEY), number)
            labels = call(labels, fold(of_run, rows["index"]), classes)
    return images, labels
