"""The training steps that are compiled: forward, backward and SGD with momentum, in bfloat16."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from experiments.speed.frameworks.stock_flax import StockNetwork, sgd_step
from mnv2.models import create_model

FRAMEWORKS = ("mnv2", "stock Flax")


@dataclasses.dataclass(frozen=True)
class Task:
    """A network and the images of one chip; or several such networks that one program trains."""

    title: str
    network: str = "mobilenet_v2"
    width: float = 1.0
    size: int = 224  # pixels
    channels: int = 3
    batch: int = 256
    strides: tuple[int, ...] | str = "imagenet"

    def __str__(self) -> str:
        return f"{self.title}, {self.size} px, batch {self.batch}"


ABLATION = Task("V2 0.35", width=0.35, size=28, channels=1, batch=128,
                strides=(2, 1, 2, 2, 1, 1, 2, 1))  # fmt: skip
TASKS = {
    "v2": Task("V2 1.0"),
    "v2-96": Task("V2 1.0", batch=96),
    "v1": Task("V1 1.0", "mobilenet_v1"),
    "resnet50": Task("ResNet-50", "resnet50"),
    "ablation": ABLATION,
    "cifar": Task("V2 0.5", width=0.5, size=32, batch=128, strides="small"),
}  # fmt: skip


def lower(task: Task, framework: str, chip: NamedSharding) -> Any:
    """Lowers the training step of a task for a chip; `.compile()` compiles it."""
    if framework == "mnv2":
        model: Any = create_model(
            task.network, width=task.width, strides=task.strides, dtype="bfloat16"
        )
    else:
        model = StockNetwork(task.network, task.width, task.strides, jnp.bfloat16)
    image = (task.size, task.size, task.channels)
    shapes = jax.eval_shape(
        lambda key: model.init(key, jnp.zeros((1, *image)), train=False), jax.random.key(0)
    )
    optimizer, step = sgd_step(model, learning_rate=0.1)
    state = jax.eval_shape(optimizer.init, shapes["params"])
    images = jax.ShapeDtypeStruct((task.batch, *image), jnp.float32)
    labels = jax.ShapeDtypeStruct((task.batch,), jnp.int32)
    placed = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=chip),
        (shapes["params"], shapes["batch_stats"], state, images, labels),
    )
    return jax.jit(step, donate_argnums=(0, 1, 2), out_shardings=chip).lower(*placed)
