"""The optimiser and its learning rate schedule, as optax objects."""

import re
from typing import Any

import jax
import optax
from jaxtyping import Array

from mnv2.runtime.errors import check_choice
from mnv2.training.checks import OPTIMIZERS, SCHEDULES
from mnv2.training.durations import to_steps
from mnv2.training.settings import Optimization

BATCH_NORM = "bn"  # the name of this layer in all networks


def create_schedule(
    config: Optimization,
    *,
    total_steps: int,
    examples: int,
    batch_size: int,
    peak: Array | None = None,
) -> optax.Schedule:
    """Creates the learning rate as a function of the step: linear warm-up, then `config.schedule`.

    `peak` is the rate after the warm-up, if it is not that of the config.

    cosine       decreases to 0 at the last step
    exponential  multiplied by `decay_rate` every `decay_every` (the papers: 0.98 every epoch)
    constant     stays the same

    The warm-up begins with `config.warmup_from` of the rate. The rate changes every
    `config.rate_every`: PyTorch's recipes change it once per epoch.
    """
    check_choice(config.schedule, SCHEDULES, "schedule")

    def steps(field: str) -> int:
        return to_steps(
            getattr(config, field), examples=examples, batch_size=batch_size, what=field
        )

    warmup = steps("warmup")
    rate: Any = config.learning_rate if peak is None else peak
    if config.schedule == "cosine":
        main = optax.cosine_decay_schedule(rate, max(1, total_steps - warmup))
    elif config.schedule == "exponential":
        main = optax.exponential_decay(
            rate, steps("decay_every"), config.decay_rate, staircase=True
        )
    else:
        main = optax.constant_schedule(rate)
    beginning = optax.linear_schedule(config.warmup_from * rate, rate, warmup)
    smooth = optax.join_schedules([beginning, main], [warmup])
    every = steps("rate_every")
    return smooth if every == 1 else lambda step: smooth(step // every * every)


def create_optimizer(
    config: Optimization, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """Creates SGD with momentum (Nesterov's or the plain one), the papers' RMSProp, or AdamW.

    `weight_decays` says how much each parameter decays. For sgd and rmsprop it is an L2 term of
    the loss, which passes through momentum and scaling as in TensorFlow and PyTorch. For adamw it
    is decoupled; the momentum is adamw's first beta.

    rmsprop is TensorFlow's: epsilon is inside the square root, the mean square starts from 1, and
    the learning rate is inside the momentum buffer. With epsilon = 1, as the authors trained, all
    three matter.

    Gradients whose norm, over all parameters, is larger than `config.clip` are scaled down to it
    first, before weight decay.

    The learning rate of the backbone is `config.backbone_rate` times that of the classifier; 0
    freezes the backbone.
    """
    update = _with_backbone_rate(config.backbone_rate, _update(config, schedule))
    return optax.chain(optax.clip_by_global_norm(config.clip), update) if config.clip else update


def _with_backbone_rate(
    rate: float, update: optax.GradientTransformation
) -> optax.GradientTransformation:
    if rate == 1:
        return update
    backbone = optax.chain(update, optax.scale(rate)) if rate else optax.set_to_zero()
    return optax.multi_transform(
        {"classifier": update, "backbone": backbone},
        lambda params: {
            name: "classifier" if name == "classifier" else "backbone" for name in params
        },
    )


def _update(config: Optimization, schedule: optax.Schedule) -> optax.GradientTransformation:
    check_choice(config.optimizer, OPTIMIZERS, "optimizer")
    # The general one even if it is 0: checkpoints have its place in the optimiser's state.
    special = filter(None, (config.norm_weight_decay, config.bias_weight_decay))
    decay = [_decay_by(config, value) for value in dict.fromkeys((config.weight_decay, *special))]
    if config.optimizer == "adamw":
        return optax.chain(
            optax.scale_by_adam(b1=config.momentum), *decay, optax.scale_by_learning_rate(schedule)
        )
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
        update = optax.sgd(schedule, momentum=config.momentum, nesterov=config.nesterov)
    return optax.chain(*decay, update)


def _decay_by(config: Optimization, value: float) -> optax.GradientTransformation:
    """Decays the parameters whose weight decay is `value`."""

    def chosen(params: Any) -> Any:
        return jax.tree.map(lambda decay: decay == value, weight_decays(params, config))

    return optax.add_decayed_weights(value, chosen)


def weight_decays(params: Any, config: Optimization) -> Any:
    """Returns the weight decay of each parameter, in a tree like `params`.

    It is `config.weight_decay` for those whose path (such as `block_3/expand/kernel`) matches
    `config.weight_decay_on`, and 0 for others. `norm_weight_decay` and `bias_weight_decay`, if they
    are not None, are those of batch norm and of all biases, as in torchvision's training script.
    """

    def of(path: tuple[Any, ...], _: Any) -> float:
        name = "/".join(key.key for key in path)
        if decays_generally(name, config):
            return config.weight_decay
        return _special_decay(name, config) or 0.0

    return jax.tree.map_with_path(of, params)


def decays_generally(name: str, config: Optimization) -> bool:
    """Tells whether `config.weight_decay` is that of the parameter with a path."""
    matches = re.search(config.weight_decay_on, name)
    return matches is not None and _special_decay(name, config) is None


def _special_decay(name: str, config: Optimization) -> float | None:
    *layers, array = name.split("/")
    if array == "bias" and config.bias_weight_decay is not None:
        return config.bias_weight_decay
    return config.norm_weight_decay if BATCH_NORM in layers else None
