"""Batch norm's statistics, computed anew for finished parameters.

The running statistics lag behind the parameters, do not belong to averaged ones, and are of another
size of pictures if the test has a larger one (Touvron et al., arXiv 1906.06423).
"""

import itertools

import jax
import numpy as np

from mnv2 import data
from mnv2.runtime.processes import process_shard
from mnv2.training.settings import Settings
from mnv2.training.setup import Setup
from mnv2.training.state import TrainState


def recalibrated(state: TrainState, setup: Setup, settings: Settings) -> TrainState:
    """Returns a state whose statistics are means over `settings.recalibrate` training batches.

    The pictures are seen as in evaluation. The parameters are those that evaluation uses.
    """
    view = setup.eval_view()
    batches = data.train_batches(
        setup.dataset,
        settings.batch_size,
        seed=settings.seed,
        view=lambda images, _: view(images),
        shard=process_shard(),
    )
    total = None
    for number, batch in enumerate(itertools.islice(batches, settings.recalibrate)):
        key = jax.random.key(number)
        found = setup.steps.statistics(state, setup.steps.shard(batch), key)
        total = found if total is None else jax.tree.map(np.add, total, found)
    mean = jax.tree.map(lambda x: np.asarray(x / settings.recalibrate, x.dtype), total)
    batch_stats = setup.steps.place(mean)
    if state.ema is None:
        return state.replace(batch_stats=batch_stats)  # type: ignore[attr-defined]
    return state.replace(ema={**state.ema, "batch_stats": batch_stats})  # type: ignore[attr-defined]
