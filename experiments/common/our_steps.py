"""The steps of this project, ready to be timed: training as `mnv2.main` does it, and inference."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from configs import v2_ablation
from experiments.common.initialisation import random_network
from experiments.common.timing import Step
from mnv2 import data, models
from mnv2.pretrained import Preprocessing
from mnv2.sweeps.plan import with_arms
from mnv2.training.config import from_config
from mnv2.training.setup import steps_of
from mnv2.training.state import create_state
from mnv2.training.step import AXIS, replicate, shard


def training(
    model_fields: dict[str, Any], batch: data.Batch, batches: Iterator[data.Batch] | None
) -> Step:
    """Returns a training step on `batch`, or on the next of `batches` each time.

    Args:
        model_fields: The arguments of `mnv2.models.create_model`.
        batch: Images in [0, 255] and labels, which are copied to the devices once.
        batches: Batches of the same shape, each of which is copied in its step, or None.
    """
    config = with_arms(v2_ablation.get_config())
    config.batch_size, config.ema_decay = len(batch["label"]), 0.0
    model = models.create_model(**model_fields, axis_name=AXIS)
    settings = from_config(config)
    steps = steps_of(settings, model, Preprocessing(), total_steps=10_000, examples=1_000_000)
    shape: Any = batch["image"].shape[1:]
    state = replicate(create_state(model, steps.optimizer, shape, seed=0, ema=False))
    mesh = Mesh(np.array(jax.local_devices()), (AXIS,))
    constant = jax.device_put(shard(batch), NamedSharding(mesh, PartitionSpec(AXIS)))
    key = jax.random.key(0)

    def step() -> None:
        nonlocal state
        now = constant if batches is None else shard(next(batches))
        state, sums = steps.train(state, now, key, None)
        jax.block_until_ready((state, sums))

    return step


def inference(model_fields: dict[str, Any], images: np.ndarray) -> Step:
    """Returns a call of `mnv2.models.for_inference` on images that lie on the device."""
    model, variables = random_network(**model_fields)
    infer = models.for_inference(model, variables)
    on_device = jax.device_put(jnp.asarray(images))
    return lambda: infer(on_device).block_until_ready()


def random_batch(count: int, size: int) -> data.Batch:
    """Returns `count` random colour pictures (uint8, `size` pixels) and labels of 1000 classes."""
    random = np.random.default_rng(0)
    return {
        "image": random.integers(0, 256, (count, size, size, 3)).astype(np.uint8),
        "label": random.integers(0, 1000, count).astype(np.int32),
    }
