"""From a config to an optax transformation and its learning rate schedule."""

import re
from typing import Any

import jax
import optax

from mnv2.runtime.errors import check_choice
from mnv2.training.durations import to_steps

OPTIMIZERS = ("sgd", "rmsprop", "adamw")
SCHEDULES = ("cosine", "exponential", "constant")


def create_schedule(
    config: Any, *, total_steps: int, examples: int, batch_size: int
) -> optax.Schedule:
    """Learning rate as a function of the step: a linear warm-up from 0, then `config.schedule`.

    cosine       to 0 at the last step
    exponential  times `decay_rate` once every `decay_every`, in stairs (the papers': 0.98, 1 epoch)
    constant
    """
    check_choice(config.schedule, SCHEDULES, "schedule")

    def steps(field: str) -> int:
        return to_steps(config[field], examples=examples, batch_size=batch_size, what=field)

    warmup, peak = steps("warmup"), config.learning_rate
    if config.schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, max(1, total_steps - warmup))
    elif config.schedule == "exponential":
        main = optax.exponential_decay(
            peak, steps("decay_every"), config.decay_rate, staircase=True
        )
    else:
        main = optax.constant_schedule(peak)
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), main], [warmup])


def create_optimizer(config: Any, schedule: optax.Schedule) -> optax.GradientTransformation:
    """SGD with Nesterov momentum, the papers' RMSProp, or AdamW.

    Weight decay touches parameters whose path (such as `block_3/expand/kernel`) matches
    `config.weight_decay_on`. For sgd and rmsprop it is an L2 term of the loss, so that it passes
    through momentum and scaling as in TensorFlow and PyTorch; for adamw it is decoupled.

    rmsprop is TensorFlow's: epsilon inside the root, squares starting from 1, and the learning rate
    inside the momentum buffer. With epsilon = 1, as in the authors' runs, all three matter.

    Where the config has a `backbone_rate`, that is the learning rate of all parameters but the
    classifier's, relative to it; 0 leaves them as they are.
    """
    update = _update(config, schedule)
    rate = config.get("backbone_rate", 1.0)
    if rate == 1:
        return update
    backbone = optax.chain(update, optax.scale(rate)) if rate else optax.set_to_zero()
    return optax.multi_transform(
        {"classifier": update, "backbone": backbone},
        lambda params: {
            name: "classifier" if name == "classifier" else "backbone" for name in params
        },
    )


def _update(config: Any, schedule: optax.Schedule) -> optax.GradientTransformation:
    check_choice(config.optimizer, OPTIMIZERS, "optimizer")

    def decayed(params: Any) -> Any:
        return name_mask(params, config.weight_decay_on)

    if config.optimizer == "adamw":
        return optax.adamw(schedule, weight_decay=config.weight_decay, mask=decayed)
    if config.optimizer == "rmsprop":
        update = optax.rmsprop(
            schedule,
            decay=config.rmsprop_decay,
            eps=config.epsilon,
            initial_scale=1.0,
            eps_in_sqrt=True,
            momentum=config.momentum,
        )
    else:
        update = optax.sgd(schedule, momentum=config.momentum, nesterov=True)
    return optax.chain(optax.add_decayed_weights(config.weight_decay, decayed), update)


def name_mask(params: Any, pattern: str) -> Any:
    """True for each parameter whose path, its keys joined by '/', contains `pattern`."""
    return jax.tree.map_with_path(
        lambda path, _: re.search(pattern, "/".join(key.key for key in path)) is not None, params
    )
