"""The steps of this project, ready to be timed: training as `mnv2.main` does it, and inference."""

from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.common.networks import random_network
from experiments.common.timing import Step
from experiments.speed.frameworks.tasks import Task
from mnv2 import data, models
from mnv2.pretrained import Preprocessing
from mnv2.training.config import defaults, from_config
from mnv2.training.setup import steps_of
from mnv2.training.state import TrainState, create_state
from mnv2.training.step import AXIS, Steps, replicate, shard


def begun(
    model: nn.Module, shape: tuple[int, int, int], batch_size: int, examples: int = 1_000_000
) -> tuple[Steps, TrainState]:
    """Returns the steps with which the ablation trains, and a fresh state, for a network."""
    config = defaults()
    config.batch_size = batch_size
    settings = from_config(config)
    steps = steps_of(settings, model, Preprocessing(), total_steps=10_000, examples=examples)
    return steps, replicate(create_state(model, steps.optimizer, shape, seed=0, ema=False))


def training(task: Task, batches: Iterator[data.Batch] | None) -> Step:
    """Returns a training step, on the next of `batches` or on a random one.

    The random one is copied to the devices once, each of `batches` in its step.
    """
    fields = {"width": task.width, "dtype": task.dtype, "axis_name": AXIS}
    model = models.create_model(task.network, **fields)
    shape = (task.size, task.size, 3)
    steps, state = begun(model, shape, task.batch)
    mesh = Mesh(np.array(jax.local_devices()), (AXIS,))
    images = np.random.default_rng(0).integers(0, 256, (task.batch, *shape)).astype(np.uint8)
    batch: Any = shard({"image": images, "label": task.labels()})
    constant = jax.device_put(batch, NamedSharding(mesh, PartitionSpec(AXIS)))
    key = jax.random.key(0)

    def step() -> None:
        nonlocal state
        now = constant if batches is None else shard(next(batches))
        state, sums = steps.train(state, now, key, None)
        jax.block_until_ready((state, sums))

    return step


def inference(task: Task) -> Step:
    """Returns a call of `mnv2.models.for_inference` on images that lie on the device."""
    model, variables = random_network(task.network, width=task.width, dtype=task.dtype)
    infer = models.for_inference(model, variables)
    on_device = jax.device_put(jnp.asarray(task.images()))
    return lambda: infer(on_device).block_until_ready()
