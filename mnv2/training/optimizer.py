"""The optimiser and its learning rate schedule, as optax objects."""

import inspect
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mnv2.runtime.errors import UserError, call, check_choice, first_line
from mnv2.training.config import SCHEDULES, Optimization, to_steps

BATCH_NORM = "bn"  # the name of this layer in all networks
FIELD = "optimization.optimizer"


def create_schedule(
    config: Optimization, *, total_steps: int, examples: int, batch_size: int
) -> optax.Schedule:
    """Creates the learning rate as a function of the step: linear warm-up, then `config.schedule`.

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

    warmup, rate = steps("warmup"), config.learning_rate
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


def rmsprop_tf(
    learning_rate: optax.ScalarOrSchedule,
    decay: float = 0.9,
    momentum: float = 0.9,
    eps: float = 1.0,
) -> optax.GradientTransformation:
    """Creates the papers' RMSProp, which is TensorFlow's.

    Epsilon is inside the square root, the mean square starts from 1, and the learning rate is
    inside the momentum buffer. With epsilon = 1, as the authors trained, all three matter.
    """
    return optax.rmsprop(
        learning_rate, decay, eps, initial_scale=1.0, eps_in_sqrt=True, momentum=momentum
    )


def create_optimizer(
    config: Optimization, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """Creates the optimiser that `config.optimizer` names, with decay, clipping and rates.

    `weight_decays` says how much each parameter decays. An optimiser with a weight decay of its
    own, as adamw, gets it. For others it is an L2 term of the loss, which passes through momentum
    and scaling as in TensorFlow and PyTorch.

    Gradients whose norm, over all parameters, is larger than `config.clip` are scaled down to it
    first, before weight decay. The learning rate of the backbone is `config.backbone_rate` times
    that of the classifier; 0 freezes the backbone.

    Raises UserError for an optimiser that optax has not, or that needs more than gradients and
    parameters, and for arguments that it has not.
    """
    update = _with_weight_decay(config, _named(config.optimizer, schedule))
    update = _with_backbone_rate(config.backbone_rate, update)
    return optax.chain(optax.clip_by_global_norm(config.clip), update) if config.clip else update


def _named(text: str, schedule: optax.Schedule) -> Callable[..., optax.GradientTransformation]:
    """Returns the function that makes an optimiser; it takes what the text does not give."""
    name, arguments = call(FIELD, text)
    factories = {key: f for key in dir(optax) if (f := getattr(optax, key)) and _is_factory(f)}
    factories["rmsprop_tf"] = rmsprop_tf
    check_choice(name, factories, FIELD)
    known = inspect.signature(factories[name]).parameters
    for argument in arguments:
        check_choice(argument, known.keys() - {"learning_rate"},
                     f"argument of {name} in {FIELD}")  # fmt: skip
        if argument in ("weight_decay", "mask"):
            raise UserError(f"{FIELD} {text}: set optimization.weight_decay instead of {argument}")

    def make(**more: Any) -> optax.GradientTransformation:
        return factories[name](schedule, **arguments, **more)

    make.decays = {"weight_decay", "mask"} <= known.keys()  # type: ignore[attr-defined]
    _check_usable(make, text)
    return make


def _is_factory(function: Any) -> bool:
    """Tells whether a function of optax makes an optimiser with a learning rate."""
    return (
        inspect.isfunction(function)
        and next(iter(inspect.signature(function).parameters), "") == "learning_rate"
    )


def _check_usable(make: Callable[..., optax.GradientTransformation], text: str) -> None:
    """Raises UserError unless an optimiser updates a parameter from its gradient alone."""

    def one_step(params: Any) -> Any:
        optimizer = make()
        return optimizer.update(params, optimizer.init(params), params)

    try:
        jax.eval_shape(one_step, {"kernel": jnp.ones((2, 2))})
    except Exception as error:  # of many types: a missing argument, a value that cannot be
        raise UserError(
            f"{FIELD} {text} cannot be used: training gives an optimiser gradients and parameters "
            f"({type(error).__name__}: {first_line(error)[:120]})"
        ) from error


def _with_weight_decay(
    config: Optimization, make: Callable[..., optax.GradientTransformation]
) -> optax.GradientTransformation:
    if not make.decays:  # type: ignore[attr-defined]
        return optax.chain(_l2(config), make())
    general = config.weight_decay

    def decays_so(params: Any) -> Any:
        return jax.tree.map(lambda decay: decay == general, weight_decays(params, config))

    if not config.norm_weight_decay:
        return make(weight_decay=general, mask=decays_so)
    of_values = {
        x: make(weight_decay=x, mask=None) for x in (general, config.norm_weight_decay, 0.0)
    }
    return optax.multi_transform(of_values, lambda params: weight_decays(params, config))


def _l2(config: Optimization) -> optax.GradientTransformation:
    """Adds the gradient of an L2 term of the loss."""

    def add(gradients: Any, params: Any) -> Any:
        decays = weight_decays(params, config)
        return jax.tree.map(
            lambda g, x, decay: g + decay * x if decay else g, gradients, params, decays
        )

    return optax.stateless(add)


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


def weight_decays(params: Any, config: Optimization) -> Any:
    """Returns the weight decay of each parameter, in a tree like `params`.

    It is `config.weight_decay` for those whose path (such as `block_3/expand/kernel`) matches
    `config.weight_decay_on`, and 0 for others. `norm_weight_decay`, if it is not None, is that of
    batch norm, as in torchvision's training script.
    """

    def of(path: tuple[Any, ...], _: Any) -> float:
        name = "/".join(key.key for key in path)
        if decays_generally(name, config):
            return config.weight_decay
        return (_is_norm(name) and config.norm_weight_decay) or 0.0

    return jax.tree.map_with_path(of, params)


def decays_generally(name: str, config: Optimization) -> bool:
    """Tells whether `config.weight_decay` is that of the parameter with a path."""
    is_special = _is_norm(name) and config.norm_weight_decay is not None
    return not is_special and re.search(config.weight_decay_on, name) is not None


def _is_norm(name: str) -> bool:
    return BATCH_NORM in name.split("/")
